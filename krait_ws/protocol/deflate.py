"""permessage-deflate (RFC 7692) on the codec of the ``websockets`` library.

Comes in: payloads of the peer as they arrive, frames of ours. Goes out: inflated bytes, checked against a limit while
they are made, and frames with compressed payloads. One instance serves one connection; owned by the network loop.
"""

from __future__ import annotations

from websockets import exceptions as library
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension

from krait_ws.config import Config
from krait_ws.errors import ProtocolError
from krait_ws.protocol.frames import CONTINUATION, FIN, INVALID_DATA, TOO_BIG, head, payload_of

RSV1 = 0x40
"""Marks the first frame of a compressed message (section 6)."""

_NAME = "permessage-deflate"
_MEMORY_LEVEL = 5  # of zlib's 1 to 9; with windows of 12 bits a compressor takes about 32 KiB


class Deflate:
    """The codec of one connection, as negotiated."""

    __slots__ = ("_codec", "_max_inflated", "_threshold")

    def __init__(self, codec: PerMessageDeflate, config: Config) -> None:
        self._codec = codec
        self._threshold = config.compress_threshold
        self._max_inflated = config.max_inflated_size

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
        room = self._max_inflated - have
        frame = Frame(Opcode.TEXT if is_first else Opcode.CONT, chunk, is_last, is_first)
        try:
            data = bytes(self._codec.decode(frame, max_size=room + 1).data)
        except library.PayloadTooBig:
            data = None
        except library.ProtocolError:
            raise ProtocolError(INVALID_DATA, "compressed data cannot be inflated") from None
        if data is None or len(data) > room:
            raise ProtocolError(TOO_BIG, f"message inflates to more than {self._max_inflated} bytes")
        return data

    def deflate(self, frame: bytes) -> bytes:
        """A frame of ours with its payload compressed; unchanged when the message is below the threshold."""
        first = frame[0]
        opcode = first & 0x0F
        payload = payload_of(frame)
        if first >= FIN and opcode != CONTINUATION and len(payload) < self._threshold:
            return frame  # a fragmented message is compressed in any case: its size is not known at its start
        encoded = self._codec.encode(Frame(Opcode(opcode), payload, first >= FIN))
        return head(first | RSV1 if encoded.rsv1 else first, len(encoded.data)) + encoded.data


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
        compress_settings={"memLevel": _MEMORY_LEVEL},
    )
    for name, parameters in parse_extension(header):
        if name != _NAME:
            continue
        try:
            answer, codec = factory.process_request_params(parameters, [])
        except library.NegotiationError:
            continue  # the client may have a more modest offer behind this one
        return Deflate(codec, config), build_extension([(factory.name, answer)])
    return None
