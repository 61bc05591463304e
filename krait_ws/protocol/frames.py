"""Frames (RFC 6455 section 5.2): how a message of ours becomes bytes, and the rules for close codes.

Comes in: a message or a control payload. Goes out: the bytes of one unmasked frame. Pure functions, callable from
any thread; the pusher of a message encodes it, so that the network loop only writes.
"""

from __future__ import annotations

from typing import TypeAlias

from krait_ws.errors import ProtocolError

Message: TypeAlias = str | bytes
BYTES_LIKE = (bytes, bytearray, memoryview)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
MAX_CONTROL_PAYLOAD = 125
"""Bytes; RFC 6455 section 5.5."""

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED = 1000, 1001, 1002, 1003
NO_STATUS, ABNORMAL = 1005, 1006
INVALID_DATA, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR = 1007, 1008, 1009, 1011
SERVICE_RESTART, TRY_AGAIN_LATER = 1012, 1013  # of the IANA registry

SHORT_TEXT_HEADS = [bytes((FIN | TEXT, size)) for size in range(126)]
SHORT_BINARY_HEADS = [bytes((FIN | BINARY, size)) for size in range(126)]


def head(first_byte: int, size: int) -> bytes:
    """The head of an unmasked frame whose payload has ``size`` bytes, in the minimal form of section 5.2."""
    if size < 126:
        return bytes((first_byte, size))
    if size < 65536:
        return bytes((first_byte, 126)) + size.to_bytes(2, "big")
    return bytes((first_byte, 127)) + size.to_bytes(8, "big")


def encode_text(message: str) -> bytes:
    """One text frame. Raises ``UnicodeEncodeError`` for a lone surrogate, which UTF-8 cannot express."""
    payload = message.encode()
    size = len(payload)
    return (SHORT_TEXT_HEADS[size] if size < 126 else head(FIN | TEXT, size)) + payload


def encode_binary(message: bytes | bytearray | memoryview) -> bytes:
    """One binary frame with a copy of ``message``, so that the caller may go on changing its buffer."""
    payload = message if isinstance(message, bytes) else bytes(message)
    size = len(payload)
    return (SHORT_BINARY_HEADS[size] if size < 126 else head(FIN | BINARY, size)) + payload


def encode_fragment(opcode: int, payload: bytes, *, is_last: bool) -> bytes:
    """A frame of a fragmented message (section 5.4); ``opcode`` is CONTINUATION but for the first."""
    return head(FIN | opcode if is_last else opcode, len(payload)) + payload


def encode_control(opcode: int, payload: bytes) -> bytes:
    """One control frame. Raises ``ValueError`` above 125 bytes (section 5.5)."""
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError(f"a control frame carries at most {MAX_CONTROL_PAYLOAD} bytes, not {len(payload)}")
    return head(FIN | opcode, len(payload)) + payload


def is_whole(frame: bytes) -> bool:
    """Whether a frame is an unfragmented message."""
    return frame[0] >= FIN and frame[0] & 0x0F != CONTINUATION


def payload_of(frame: bytes) -> bytes:
    """The payload of a frame that a function here made."""
    size = frame[1]
    return frame[2 if size < 126 else 4 if size == 126 else 10 :]


def may_be_sent(code: int) -> bool:
    """Whether a close code may stand in a frame (section 7.4 and the registry of section 11.7)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame.

    Raises:
        ValueError: The code may not be sent, or the reason is longer than 123 bytes of UTF-8 (section 5.5.1).
    """
    if not may_be_sent(code):
        raise ValueError(f"close code {code} may not be sent: use 1000-1003, 1007-1014 or 3000-4999")
    payload = code.to_bytes(2, "big") + reason.encode()
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError(f"a close reason has at most 123 bytes of UTF-8, not {len(payload) - 2}")
    return encode_control(CLOSE, payload)


def decode_close(payload: bytes) -> tuple[int, str]:
    """Code and reason of a peer's close frame.

    Raises:
        ProtocolError: 1002 for a payload of one byte or a code that may not be sent, 1007 for a reason that is not
            UTF-8 (sections 5.5.1, 7.4 and 8.1).
    """
    if not payload:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise ProtocolError(PROTOCOL_ERROR, "close frame with a payload of one byte")
    code = int.from_bytes(payload[:2], "big")
    if not may_be_sent(code):
        raise ProtocolError(PROTOCOL_ERROR, f"close code {code} may not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_DATA, "close reason is not UTF-8") from None
