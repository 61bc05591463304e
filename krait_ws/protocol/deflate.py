"""permessage-deflate (RFC 7692).

Comes in: payloads of the peer as they arrive, frames of ours. Goes out: inflated bytes, checked against a limit while
they are made, and frames with compressed payloads. One instance serves one connection; owned by the network loop.

The ``websockets`` library negotiates. Its codec takes whole frames, and ends for good at a block that says to be the
last; here parts of frames are inflated as they arrive, and zlib's memory is taken with the first message that needs it.
"""

from __future__ import annotations

import zlib
from typing import Any

from websockets import exceptions as library
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from krait_ws.config import Config
from krait_ws.errors import ProtocolError
from krait_ws.protocol.frames import (
    BINARY,
    CONTINUATION,
    FIN,
    INVALID_DATA,
    TEXT,
    TOO_BIG,
    encode_fragment,
    head,
    payload_of,
)

RSV1 = 0x40
"""Marks the first frame of a compressed message (section 6)."""

_NAME = "permessage-deflate"
_PART = 64 * 1024  # bytes that are compressed in one turn: 2 ms of random data
_TAIL = b"\x00\x00\xff\xff"
_MAX_LAST_BLOCKS = 16  # in one part of a message: each costs a new stream, so a peer may not send thousands
_MEMORY_LEVEL = 5  # of zlib's 1 to 9; what it makes of the windows stands in docs/reference.md, measured


class Deflate:
    """The codec of one connection, as negotiated.

    Attributes:
        window_bits: Of our side: what the peer can inflate.
    """

    __slots__ = ("_compressor", "_config", "_forgets", "_inflater", "_peer_bits", "_peer_forgets", "window_bits")

    def __init__(self, parameters: PerMessageDeflate, config: Config) -> None:
        # Only its numbers are kept: the library's object holds a compressor of its own, 86 KB a connection.
        self.window_bits = parameters.local_max_window_bits
        self._forgets = parameters.local_no_context_takeover
        self._peer_bits = parameters.remote_max_window_bits
        self._peer_forgets = parameters.remote_no_context_takeover
        self._config = config
        self._inflater: Any = None
        self._compressor: Any = None

    def inflate(self, chunk: bytes, have: int, *, is_first: bool, is_last: bool) -> bytes:
        """The inflated bytes of a part of a compressed message.

        Args:
            chunk: The part, which need not end where a frame does.
            have: Inflated bytes of this message so far.
            is_first: It begins the message.
            is_last: It ends the message.

        Raises:
            ProtocolError: 1009 as soon as the message exceeds ``max_inflated_size``, whatever it would grow to; 1007
                for data that cannot be inflated.
        """
        if self._inflater is None:
            self._inflater = self._new_inflater()
        limit = self._config.max_inflated_size
        room = limit - have
        data = chunk + _TAIL if is_last else chunk
        inflated: list[bytes] = []
        for _ in range(_MAX_LAST_BLOCKS):
            try:
                inflated.append(self._inflater.decompress(data, room + 1))
            except zlib.error:
                break
            room -= len(inflated[-1])
            if room < 0:
                raise ProtocolError(TOO_BIG, f"message inflates to more than {limit} bytes")
            if not self._inflater.eof:
                if is_last and self._peer_forgets:
                    self._inflater = None  # the next message begins anew; until then its memory is free
                return inflated[0] if len(inflated) == 1 else b"".join(inflated)
            # A block that says to be the last is allowed anywhere (section 7.2.3.4); a new stream follows it.
            data = self._inflater.unused_data
            self._inflater = self._new_inflater()
        raise ProtocolError(INVALID_DATA, "compressed data cannot be inflated")

    def parts(self, frame: bytes) -> list[bytes]:
        """A large frame as fragments, so that compressing it can be spread over several turns."""
        opcode = frame[0] & 0x0F
        payload = payload_of(frame) if len(frame) > _PART and not frame[0] & RSV1 else b""
        if len(payload) <= _PART or opcode not in (TEXT, BINARY, CONTINUATION):
            return [frame]
        last = (len(payload) - 1) // _PART
        return [
            encode_fragment(
                CONTINUATION if index else opcode,
                payload[index * _PART : (index + 1) * _PART],
                is_last=frame[0] >= FIN and index == last,
            )
            for index in range(last + 1)
        ]

    def deflate(self, frame: bytes) -> bytes:
        """A frame of ours with its payload compressed; unchanged when the message is below the threshold."""
        first = frame[0]
        if first & RSV1:  # compressed for many; the window of the peer holds it now, so ours begins anew
            self._compressor = None
            return frame
        opcode = first & 0x0F
        payload = payload_of(frame)
        if first >= FIN and opcode != CONTINUATION and len(payload) < self._config.compress_threshold:
            return frame  # a fragmented message is compressed in any case: its size is not known at its start
        is_first = opcode != CONTINUATION
        if self._compressor is None:
            self._compressor = _new_compressor(self.window_bits)
        data: bytes = self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if first >= FIN:
            data = data[: -len(_TAIL)]  # section 7.2.1
            if self._forgets:
                self._compressor = None
        return head(first | RSV1 if is_first else first, len(data)) + data

    def _new_inflater(self) -> Any:
        return zlib.decompressobj(wbits=-self._peer_bits)


def deflate_shared(frame: bytes, window_bits: int) -> bytes:
    """A whole frame with its payload compressed by itself: any peer with such a window can inflate it, whatever came
    before. Thread: any."""
    compressor = _new_compressor(window_bits)
    data: bytes = compressor.compress(payload_of(frame)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    data = data[: -len(_TAIL)]
    return head(frame[0] | RSV1, len(data)) + data


def inflate_shared(payload: bytes) -> bytes:
    """What ``deflate_shared`` compressed."""
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(payload + _TAIL)


def _new_compressor(window_bits: int) -> Any:
    return zlib.compressobj(wbits=-window_bits, memLevel=_MEMORY_LEVEL)


def negotiate(header: str, config: Config) -> tuple[Deflate, str] | None:
    """Accepts the first offer of permessage-deflate that can be met (section 7.1).

    Args:
        header: Sec-WebSocket-Extensions of the request; it can be read, as ``check_upgrade`` has found.
        config: The settings of the controller.

    Returns:
        The codec and the header of the answer, or ``None`` for no compression.
    """
    if not config.compress or not header:
        return None
    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=not config.compress_context,
        client_no_context_takeover=not config.compress_context,
        server_max_window_bits=config.compress_window_bits,
        client_max_window_bits=config.compress_window_bits,
    )
    for name, parameters in parse_extension(header):
        if name != _NAME:
            continue
        try:
            answer, parameters_in_force = factory.process_request_params(parameters, [])
        except library.NegotiationError:
            continue  # the client may have a more modest offer behind this one
        return Deflate(parameters_in_force, config), build_extension([(factory.name, answer)])
    return None
