"""A stand-in for speech recognition: it understands no word, and says what it received instead.

Something real takes the same place: it gets audio as it comes and says from time to time what it has understood so
far. It may block: it is called in the thread of its own connection.
"""

from __future__ import annotations

import array
import time
from typing import Any

FORMATS = ("pcm", "wav", "mp3", "opus", "speex", "aac", "amr")
COUNTED = ("pcm", "wav")  # 16 bits a sample and one channel: their bytes tell their time

RESULT_EVERY = 300  # milliseconds of audio between two results
SENTENCE = 5000  # milliseconds of audio that the stand-in takes for a sentence


class Recognition:
    """What comes out of one stream of audio. Thread: one at a time.

    Args:
        audio_format: One of ``FORMATS``.
        sample_rate: Samples a second.
    """

    def __init__(self, audio_format: str, sample_rate: int) -> None:
        self.bytes_in = 0
        self._format = audio_format
        self._sample_rate = sample_rate
        self._started = time.monotonic()
        self._half_sample = b""
        self._said_at = 0  # milliseconds
        self._new_sentence(0)

    def hear(self, audio: bytes) -> dict[str, Any] | None:
        """Takes audio. Returns the sentence so far, or ``None`` when it is too early to say more."""
        self.bytes_in += len(audio)
        self._sentence_bytes += len(audio)
        self._measure(audio)
        now = self._now()
        if now - self._begin >= SENTENCE:
            return self.finish()
        if now - self._said_at < RESULT_EVERY:
            return None
        self._said_at = now
        return self._sentence(end=None)

    def finish(self) -> dict[str, Any] | None:
        """The last words of the sentence; ``None`` when nothing came since the one before."""
        if not self._sentence_bytes:
            return None
        sentence = self._sentence(end=self._now())
        self._new_sentence(self._now())
        return sentence

    def _new_sentence(self, begin: int) -> None:
        self._begin = self._said_at = begin  # milliseconds
        self._sentence_bytes = 0
        self._peak = 0

    def _now(self) -> int:
        """Milliseconds of audio so far; of a format whose bytes do not tell, the time that it took to come."""
        if self._format in COUNTED:
            return self.bytes_in // 2 * 1000 // self._sample_rate
        return int((time.monotonic() - self._started) * 1000)

    def _measure(self, audio: bytes) -> None:
        if self._format not in COUNTED:
            return
        audio = self._half_sample + audio
        self._half_sample = audio[len(audio) & ~1 :]
        samples = array.array("h", audio[: len(audio) & ~1])
        if samples:
            self._peak = max(self._peak, max(samples), -min(samples))

    def _sentence(self, end: int | None) -> dict[str, Any]:
        heard = f"{(self._now() - self._begin) / 1000:.1f} s of {self._format}, {self._sentence_bytes:,} bytes"
        loudness = f", at most {self._peak / 327.68:.0f} % loud" if self._format in COUNTED else ""
        return {"begin_time": self._begin, "end_time": end, "text": heard + loudness, "words": []}
