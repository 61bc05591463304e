/**
 * Sound as the transcriber takes it: one channel, 16 bits, in pieces of a tenth of a second.
 */

export const SAMPLE_RATE = 16000;
const PIECE = SAMPLE_RATE / 10; // samples

/* Runs in the audio thread: collects samples and passes on full pieces. */
const COLLECTOR = `
  class Collector extends AudioWorkletProcessor {
    piece = new Int16Array(${PIECE});
    size = 0;
    process([[samples = []]]) {
      for (const sample of samples) {
        this.piece[this.size++] = Math.max(-1, Math.min(1, sample)) * 32767;
        if (this.size === this.piece.length) {
          this.port.postMessage(this.piece.slice());
          this.size = 0;
        }
      }
      return true;
    }
  }
  registerProcessor("collector", Collector);
`;

/**
 * Records from the microphone until `stop`.
 *
 * @param {(piece: Int16Array) => void} onPiece
 * @returns {Promise<() => void>} stops it
 */
export async function record(onPiece) {
  if (!navigator.mediaDevices) throw new Error("A microphone needs a page that came over https, or from localhost.");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: SAMPLE_RATE });
  const stop = () => {
    for (const track of stream.getTracks()) track.stop();
    if (context.state !== "closed") context.close();
  };
  try {
    const code = URL.createObjectURL(new Blob([COLLECTOR], { type: "text/javascript" }));
    await context.audioWorklet.addModule(code);
    URL.revokeObjectURL(code);
    const collector = new AudioWorkletNode(context, "collector", { numberOfOutputs: 0, channelCount: 1 });
    collector.port.onmessage = (event) => onPiece(event.data);
    context.createMediaStreamSource(stream).connect(collector);
  } catch (error) {
    stop();
    throw error;
  }
  return stop;
}

/**
 * The sound of a file, in pieces.
 *
 * @param {File} file
 * @returns {Promise<Int16Array[]>}
 */
export async function decode(file) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE);
  const sound = await context.decodeAudioData(await file.arrayBuffer());
  const samples = sound.getChannelData(0);
  const pieces = [];
  for (let start = 0; start < samples.length; start += PIECE) {
    pieces.push(Int16Array.from(samples.subarray(start, start + PIECE), (sample) => sample * 32767));
  }
  return pieces;
}
