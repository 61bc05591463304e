"""From the peer's bytes to whole messages (RFC 6455 sections 5 and 8.1).

Comes in: what one read of the socket gave, cut anywhere. Goes out: the messages that ended in it, in order. Owned by
the network loop; no lock.

A short message whose frame lies whole in the read takes the short way: one unmasking call, one decoding call. Every
other frame is consumed as it arrives, so that each byte is looked at once however the peer cuts its frames, a bad
byte of text fails at once, and no memory is spent on bytes that a head merely announces.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple, TypeAlias

from krait_ws.errors import ProtocolError
from krait_ws.protocol.deflate import RSV1, Deflate
from krait_ws.protocol.frames import (
    BINARY,
    CONTINUATION,
    FIN,
    INVALID_DATA,
    MAX_CONTROL_PAYLOAD,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Message,
)

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform for which websockets ships no compiled module
    from websockets.utils import apply_mask

Data: TypeAlias = bytes | memoryview


class Piece(NamedTuple):
    """A part of a message, as it arrived: what a reader gives that does not join."""

    data: Message
    is_first: bool
    is_last: bool


Item: TypeAlias = Message | Piece

_WHOLE_TEXT, _WHOLE_BINARY = FIN | TEXT, FIN | BINARY
_CONTROL = 0x8
# A frame costs 0.3 to 2 µs however small it is, and inflating makes a thousand bytes of one: what a read costs is
# counted in frames.
MAX_WORK_A_TURN = 256
"""Frames."""
_FRAMES_A_COMPRESSED = 8  # frames that a compressed one counts as, however small
_INFLATED_A_FRAME = 512  # bytes
_LARGE_PART = 4 * 1024  # bytes
_MASKED = 0x80
_RESERVED_BITS = 0x70
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class MessageReader:
    """Joins the frames of one peer to messages. A subclass says what a control frame does.

    Args:
        deflate: The codec, when permessage-deflate was negotiated.
        max_message_size: Largest message in bytes of payload as it is sent, all its fragments together. A larger
            one fails with 1009 as soon as a head announces it.
        streams: Gives each message in pieces, as they arrive; ``max_message_size`` is of no account then, but what is
            compressed is limited by ``max_inflated_size`` all the same.

    Attributes:
        bytes_expected: Payload bytes of the current data frame that are still to come: a hint for how much to read.
        is_holding: Bytes of the last read wait for their turn, because it gave work enough for one. ``read_into`` is to
            be called without new bytes until they are through.
        work_a_turn: Frames that are read in one turn.
    """

    __slots__ = (
        "_begun",
        "_buffered",
        "_compressed",
        "_decoder",
        "_deflate",
        "_fin",
        "_inflated",
        "_mask",
        "_opcode",
        "_payload",
        "_short",
        "_size",
        "_streams",
        "_work",
        "bytes_expected",
        "is_holding",
        "max_message_size",
        "work_a_turn",
    )

    def __init__(self, max_message_size: int, deflate: Deflate | None = None, *, streams: bool = False) -> None:
        self.work_a_turn = MAX_WORK_A_TURN
        self.max_message_size = (1 << 63) - 1 if streams else max_message_size
        self._streams = streams
        self._begun = False  # with streams: a piece of the message has been given
        self._deflate = deflate
        self._compressed = False  # the message whose frames are arriving
        self._short = -1 if streams else min(125, max_message_size)  # largest payload that the short way takes
        self._buffered = b""  # the start of a head or of a control frame
        self._inflated = 0  # bytes that the current message was inflated to so far
        self._work = 0  # frames in the last read, and what it was inflated to counted as frames
        self._opcode = 0  # of the message whose frames are arriving; 0 between messages
        self._size = 0  # payload bytes that the frames of that message have announced
        self._payload: list[bytes | bytearray] | None = None  # what has arrived of it
        self._decoder: codecs.IncrementalDecoder | None = None  # checks a text as it arrives
        self.bytes_expected = 0
        self.is_holding = False
        self._mask = b""  # its masking key, turned to the next byte
        self._fin = False

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing of a message or a frame has come yet, so that the next byte begins one."""
        return not (self._opcode or self._buffered or self.bytes_expected or self.is_holding)

    def drop_held(self) -> None:
        """Forgets what waits for its turn: nothing that the peer sent is looked at any more."""
        self._buffered = b""
        self.is_holding = False

    def on_control(self, opcode: int, payload: bytes) -> bool:
        """Called by: ``read_into`` for each control frame. Returns whether to go on reading."""
        raise NotImplementedError(f"{type(self).__name__} must say what a control frame does")

    def read_into(self, messages: list[Item], data: Data) -> None:
        """Appends to ``messages`` what ends in ``data``.

        Raises:
            ProtocolError: The peer broke the protocol. What ended before that is in ``messages``.
        """
        self._work = 0
        most = self.work_a_turn
        self.is_holding = False
        if self._buffered:
            data = self._buffered + bytes(data)
            self._buffered = b""
        position = 0
        end = len(data)
        if self.bytes_expected and end:
            position = self._read_payload(messages, data, 0, end)
        short = self._short
        while position < end:
            if self._work >= most:
                self._wait_for_more(data, position, end)
                self.is_holding = True
                return
            if end - position > 5:
                first = data[position]
                size = data[position + 1] - _MASKED
                start = position + 6
                if (
                    0 <= size <= short
                    and start + size <= end
                    and (first == _WHOLE_TEXT or first == _WHOLE_BINARY)  # noqa: SIM109  a tuple is slower
                    and not self._opcode
                ):
                    payload = apply_mask(data[start : start + size], bytes(data[position + 2 : start]))
                    messages.append(_decode(payload) if first == _WHOLE_TEXT else payload)
                    position = start + size
                    self._work += 1
                    continue
            self._work += 1
            position = self._read_frame(messages, data, position, end)

    def _read_frame(self, messages: list[Item], data: Data, position: int, end: int) -> int:
        """Reads one frame, or its part that has arrived; returns the position behind it."""
        opcode = self._check_first_byte(data[position])
        if end - position < 2:
            return self._wait_for_more(data, position, end)
        size = data[position + 1] - _MASKED
        if size < 0:
            raise ProtocolError(PROTOCOL_ERROR, "frame without a mask")
        if opcode & _CONTROL:
            return self._read_control(opcode, data, position, end, size)
        start = position + 2
        if size > 125:
            width = 2 if size == 126 else 8
            if end - start < width:
                return self._wait_for_more(data, position, end)
            size = int.from_bytes(data[start : start + width], "big")
            start += width
            if size < 126 or (width == 8 and size < 65536):
                raise ProtocolError(PROTOCOL_ERROR, "length not in its shortest form")
            if size >> 63:
                raise ProtocolError(PROTOCOL_ERROR, "length with its highest bit set")
        limit = self.max_message_size
        # Noise grows a little when it is compressed; what it inflates to has a limit of its own.
        if data[position] & RSV1 or (self._compressed and opcode == CONTINUATION):
            limit += limit // 1000 + 64
        if self._size + size > limit:
            raise ProtocolError(TOO_BIG, f"message larger than {self.max_message_size} bytes")
        if end - start < 4:
            return self._wait_for_more(data, position, end)
        self._size += size
        self.bytes_expected = size
        self._mask = bytes(data[start : start + 4])
        self._fin = data[position] >= FIN
        if opcode != CONTINUATION:
            self._opcode = opcode
            self._compressed = data[position] & RSV1 != 0
        return self._read_payload(messages, data, start + 4, end)

    def _check_first_byte(self, first: int) -> int:
        """Returns the opcode of a frame that may come now (sections 5.2, 5.4 and 5.5)."""
        opcode = first & 0x0F
        reserved = first & _RESERVED_BITS
        if reserved and (reserved != RSV1 or self._deflate is None or opcode not in (TEXT, BINARY)):
            raise ProtocolError(PROTOCOL_ERROR, "reserved bit set")
        if opcode & _CONTROL:
            if opcode > PONG:
                raise ProtocolError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            if first < FIN:
                raise ProtocolError(PROTOCOL_ERROR, "fragmented control frame")
        elif opcode > BINARY:
            raise ProtocolError(PROTOCOL_ERROR, f"unknown opcode {opcode}")
        elif opcode == CONTINUATION and not self._opcode:
            raise ProtocolError(PROTOCOL_ERROR, "continuation of no message")
        elif opcode != CONTINUATION and self._opcode:
            raise ProtocolError(PROTOCOL_ERROR, "new message inside a fragmented one")
        return opcode

    def _read_control(self, opcode: int, data: Data, position: int, end: int, size: int) -> int:
        if size > MAX_CONTROL_PAYLOAD:
            raise ProtocolError(PROTOCOL_ERROR, "control frame with more than 125 bytes")
        start = position + 6
        if start + size > end:
            return self._wait_for_more(data, position, end)
        payload = apply_mask(data[start : start + size], bytes(data[position + 2 : start]))
        return start + size if self.on_control(opcode, payload) else end

    def _read_payload(self, messages: list[Item], data: Data, position: int, end: int) -> int:
        """Takes what has arrived of the current data frame; ends the message with the last byte of its last frame."""
        stop = min(position + self.bytes_expected, end)
        chunk = apply_mask(memoryview(data)[position:stop], self._mask)
        taken = stop - position
        self.bytes_expected -= taken
        ends = self._fin and not self.bytes_expected
        if self._compressed and self._deflate is not None:
            is_first = self._payload is None and not self._begun
            chunk = self._deflate.inflate(chunk, self._inflated, is_first=is_first, is_last=ends)
            self._inflated += len(chunk)
            self._work += _FRAMES_A_COMPRESSED + len(chunk) // _INFLATED_A_FRAME
        if self._streams:
            self._give_piece(messages, chunk, ends)
        elif ends and self._payload is None:
            messages.append(_decode(chunk) if self._opcode == TEXT else chunk)
        else:
            self._collect(messages, chunk, ends)
        if ends:
            self._end_message()
        elif self.bytes_expected:
            turn = taken & 3
            self._mask = self._mask[turn:] + self._mask[:turn]
        return stop

    def _collect(self, messages: list[Item], chunk: bytes, ends: bool) -> None:
        if self._payload is None:
            self._payload = []
        parts = self._payload
        # Large parts are copied once, at the end; small ones, of which there may be millions, are joined as they come.
        if len(chunk) >= _LARGE_PART:
            parts.append(chunk)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += chunk
        else:
            parts.append(bytearray(chunk))
        if self._opcode == TEXT:
            self._decode_part(chunk, ends)  # only to fail early; decoding the whole at its end is cheaper than joining
        if ends:
            payload = b"".join(parts)
            messages.append(payload.decode() if self._opcode == TEXT else payload)

    def _give_piece(self, messages: list[Item], chunk: bytes, ends: bool) -> None:
        data = self._decode_part(chunk, ends) if self._opcode == TEXT else chunk
        messages.append(Piece(data, not self._begun, ends))
        self._begun = True

    def _decode_part(self, chunk: bytes, ends: bool) -> str:
        if self._decoder is None:
            self._decoder = _Utf8Decoder()
        try:
            return self._decoder.decode(chunk, ends)
        except UnicodeDecodeError:
            raise ProtocolError(INVALID_DATA, "text is not UTF-8") from None

    def _end_message(self) -> None:
        self._opcode = self._size = self._inflated = 0
        self._begun = False
        self._payload = self._decoder = None

    def _wait_for_more(self, data: Data, position: int, end: int) -> int:
        self._buffered = bytes(data[position:end])
        return end


def _decode(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "text is not UTF-8") from None
