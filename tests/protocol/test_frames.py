"""Frames that we send (RFC 6455 section 5.2) and the rules for close codes (sections 5.5.1 and 7.4)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krait_ws.errors import ProtocolError
from krait_ws.protocol import frames
from tests.helpers import BINARY, CLOSE, PING, PONG, TEXT, server_frames

ENCODED = [
    # The unmasked examples of section 5.7.
    pytest.param("Hello", bytes.fromhex("810548656c6c6f"), id="text of the RFC"),
    pytest.param(bytes(256), bytes.fromhex("827e0100") + bytes(256), id="256 bytes of the RFC"),
    pytest.param(bytes(65536), bytes.fromhex("827f0000000000010000") + bytes(65536), id="64 KiB of the RFC"),
    pytest.param("", b"\x81\x00", id="empty text"),
    pytest.param(b"", b"\x82\x00", id="empty binary"),
    pytest.param("é€😀", b"\x81\x09" + "é€😀".encode(), id="length counts bytes, not characters"),
    pytest.param("a" * 125, b"\x81\x7d" + b"a" * 125, id="text 125: seven bits"),
    pytest.param("a" * 126, b"\x81\x7e\x00\x7e" + b"a" * 126, id="text 126: two bytes"),
    pytest.param("é" * 63, b"\x81\x7e\x00\x7e" + b"\xc3\xa9" * 63, id="63 characters of two bytes: two bytes"),
    pytest.param("a" * 65535, b"\x81\x7e\xff\xff" + b"a" * 65535, id="text 65,535: two bytes"),
    pytest.param("a" * 65536, b"\x81\x7f\0\0\0\0\0\1\0\0" + b"a" * 65536, id="text 65,536: eight bytes"),
    pytest.param(b"a" * 125, b"\x82\x7d" + b"a" * 125, id="binary 125: seven bits"),
    pytest.param(b"a" * 126, b"\x82\x7e\x00\x7e" + b"a" * 126, id="binary 126: two bytes"),
    pytest.param(b"a" * 65535, b"\x82\x7e\xff\xff" + b"a" * 65535, id="binary 65,535: two bytes"),
]


def encode(message: str | bytes) -> bytes:
    return frames.encode_text(message) if isinstance(message, str) else frames.encode_binary(message)


@pytest.mark.parametrize(("message", "encoded"), ENCODED)
def test_a_message_is_one_frame_with_the_shortest_length(message: str | bytes, encoded: bytes) -> None:
    assert encode(message) == encoded


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.binary(max_size=300))
def test_any_message_can_be_decoded(message: str | bytes) -> None:
    [(opcode, payload)] = server_frames(encode(message))
    assert opcode == (TEXT if isinstance(message, str) else BINARY)
    assert payload == (message.encode() if isinstance(message, str) else message)


@pytest.mark.parametrize("make", [bytearray, memoryview, bytes], ids=lambda make: make.__name__)
def test_bytes_like_is_binary(make: Any) -> None:
    encoded = frames.encode_binary(make(b"\x00\xff"))
    assert encoded == b"\x82\x02\x00\xff"
    assert type(encoded) is bytes


def test_binary_is_copied() -> None:
    buffer = bytearray(b"before")
    encoded = frames.encode_binary(buffer)
    buffer[:] = b"after!"
    assert encoded == b"\x82\x06before"


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        frames.encode_text("\ud800")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_control_frames_carry_125_bytes_at_most(opcode: int) -> None:
    assert frames.encode_control(opcode, b"x" * 125) == bytes((0x80 | opcode, 125)) + b"x" * 125
    with pytest.raises(ValueError, match="125 bytes, not 126"):
        frames.encode_control(opcode, b"x" * 126)


def test_which_close_codes_may_be_sent() -> None:
    allowed = {code for code in range(65536) if frames.may_be_sent(code)}
    assert allowed == {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535, 65536])
def test_another_close_code_is_not_encoded(code: int) -> None:
    with pytest.raises(ValueError, match=f"close code {code} "):
        frames.encode_close(code)


@pytest.mark.parametrize(
    ("code", "reason", "encoded"),
    [
        (1000, "", b"\x88\x02\x03\xe8"),
        (4999, "bye", b"\x88\x05\x13\x87bye"),
        (1001, "é" * 61, b"\x88\x7c\x03\xe9" + "é".encode() * 61),
        (1001, "a" * 123, b"\x88\x7d\x03\xe9" + b"a" * 123),
    ],
    ids=["no reason", "reason", "122 bytes", "123 bytes"],
)
def test_close_frames(code: int, reason: str, encoded: bytes) -> None:
    assert frames.encode_close(code, reason) == encoded
    assert frames.decode_close(encoded[2:]) == (code, reason)


@pytest.mark.parametrize(("reason", "size"), [("a" * 124, 124), ("é" * 62, 124)], ids=["ascii", "two bytes each"])
def test_a_close_reason_has_123_bytes_at_most(reason: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        frames.encode_close(1000, reason)


def test_a_close_frame_without_a_code_is_1005() -> None:
    assert frames.decode_close(b"") == (1005, "")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        pytest.param(b"\x03", 1002, id="one byte"),
        pytest.param(b"\x03\xe7", 1002, id="999"),
        pytest.param(b"\x03\xec", 1002, id="1004 is reserved"),
        pytest.param(b"\x03\xed", 1002, id="1005 is never on the wire"),
        pytest.param(b"\x03\xee", 1002, id="1006 is never on the wire"),
        pytest.param(b"\x03\xf7", 1002, id="1015 is never on the wire"),
        pytest.param(b"\x0b\xb7", 1002, id="2999"),
        pytest.param(b"\x13\x88", 1002, id="5000"),
        pytest.param(b"\x03\xe8\xff", 1007, id="reason is no UTF-8"),
        pytest.param(b"\x03\xe8\xe2\x82", 1007, id="reason ends inside a character"),
        pytest.param(b"\x03\xe8\xed\xa0\x80", 1007, id="reason has a surrogate"),
    ],
)
def test_close_payloads_that_are_refused(payload: bytes, code: int) -> None:
    with pytest.raises(ProtocolError) as refused:
        frames.decode_close(payload)
    assert refused.value.code == code
