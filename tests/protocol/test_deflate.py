"""permessage-deflate (RFC 7692) against the codec of the ``websockets`` library, without a socket."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import parse_extension

from krait_ws.config import Config
from krait_ws.protocol.connection import ProtocolState
from krait_ws.protocol.deflate import Deflate, negotiate
from krait_ws.protocol.frames import encode_binary, encode_text
from tests.helpers import BINARY, CLOSE, CONTINUATION, PING, TEXT, frame, splits

RSV1 = 0x40
OFFER = "permessage-deflate; client_max_window_bits"
LONG = "compressible " * 200


def codec(offer: str = OFFER, **options: object) -> Deflate:
    negotiated = negotiate(offer, Config(compress=True, **options))  # type: ignore[arg-type]
    assert negotiated is not None
    return negotiated[0]


def compressed(payload: bytes) -> bytes:
    """A payload compressed alone, as section 7.2.1 says."""
    deflater = zlib.compressobj(wbits=-12)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; no_such=1", None),
        ("permessage-deflate", "permessage-deflate"),
        (OFFER, "permessage-deflate"),
        ("no-such, permessage-deflate", "permessage-deflate"),
        ("permessage-deflate; no_such=1, permessage-deflate", "permessage-deflate"),
    ],
)
def test_negotiation(header: str, expected: str | None) -> None:
    negotiated = negotiate(header, Config(compress=True))
    if expected is None:
        assert negotiated is None
    else:
        assert negotiated is not None
        [(name, parameters)] = parse_extension(negotiated[1])
        assert name == expected
        assert ("server_max_window_bits", "12") in parameters


def test_compression_is_off_unless_it_is_asked_for() -> None:
    assert Config().compress is False
    assert negotiate(OFFER, Config()) is None


@pytest.mark.parametrize("context", [True, False], ids=["context kept", "no context"])
def test_a_client_reads_what_we_compress_and_we_read_what_it_does(context: bool) -> None:
    negotiated = negotiate(OFFER, Config(compress=True, compress_context=context, compress_threshold=0))
    assert negotiated is not None
    ours, header = negotiated
    client = ClientPerMessageDeflateFactory(client_max_window_bits=True).process_response_params(
        parse_extension(header)[0][1], []
    )
    protocol = ProtocolState(1 << 20, ours)
    for message in (LONG, "short", "", "é€😀" * 100, LONG):
        data = ours.deflate(encode_text(message))
        assert data[0] == 0x80 | RSV1 | TEXT
        start = 2 if data[1] < 126 else 4
        received = client.decode(Frame(Opcode.TEXT, data[start:], True, True))
        assert bytes(received.data).decode() == message
        back = client.encode(Frame(Opcode.TEXT, message.encode()))
        assert protocol.receive(frame(TEXT, bytes(back.data), reserved=RSV1)) == [message]


def test_messages_below_the_threshold_are_sent_as_they_are() -> None:
    ours = codec(compress_threshold=100)
    assert ours.deflate(encode_binary(b"x" * 99)) == encode_binary(b"x" * 99)
    assert ours.deflate(encode_binary(b"x" * 100))[0] & RSV1


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        pytest.param(frame(TEXT, compressed(b"Hello"), reserved=RSV1), ["Hello"], id="compressed text"),
        pytest.param(frame(TEXT, bytes.fromhex("f248cdc9c90700"), reserved=RSV1), ["Hello"], id="section 7.2.3.1"),
        pytest.param(frame(BINARY, compressed(bytes(300)), reserved=RSV1), [bytes(300)], id="compressed binary"),
        pytest.param(frame(TEXT, b"plain"), ["plain"], id="not compressed"),
        pytest.param(
            frame(TEXT, compressed("a€b".encode())[:3], reserved=RSV1, fin=False)
            + frame(PING)
            + frame(CONTINUATION, compressed("a€b".encode())[3:])
            + frame(TEXT, b"plain"),
            ["a€b", "plain"],
            id="fragments",
        ),
    ],
)
def test_compressed_messages_however_they_are_cut(data: bytes, messages: list[str | bytes]) -> None:
    for chunks in splits(data):
        protocol = ProtocolState(1 << 20, codec())
        assert [message for chunk in chunks for message in protocol.receive(chunk)] == messages
        assert protocol.close_code is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"\xff\xff\xff\xff", reserved=RSV1), 1007, id="no deflate"),
        pytest.param(frame(TEXT, compressed(b"a\xff"), reserved=RSV1), 1007, id="no UTF-8"),
        pytest.param(frame(TEXT, compressed(bytes(2000)), reserved=RSV1), 1009, id="inflates above the limit"),
        pytest.param(frame(PING, b"x", reserved=RSV1), 1002, id="compressed ping"),
        pytest.param(frame(CLOSE, b"\x03\xe8", reserved=RSV1), 1002, id="compressed close"),
        pytest.param(frame(TEXT, b"x", reserved=0x20), 1002, id="RSV2"),
        pytest.param(frame(TEXT, b"x", reserved=0x60), 1002, id="RSV1 and RSV2"),
        pytest.param(
            frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"y", reserved=RSV1), 1002, id="compressed continuation"
        ),
    ],
)
def test_faults(data: bytes, code: int) -> None:
    for chunks in splits(data):
        protocol = ProtocolState(1 << 20, codec(max_inflated_size=1000))
        assert [message for chunk in chunks for message in protocol.receive(chunk)] == []
        assert protocol.close_code == code


def test_a_bomb_is_stopped_before_it_has_grown() -> None:

    bomb = frame(BINARY, compressed(bytes(1 << 26)), reserved=RSV1)
    protocol = ProtocolState(1 << 20, codec(max_inflated_size=1 << 16))
    tracemalloc.start()
    try:
        assert protocol.receive(bomb) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert protocol.close_code == 1009
    assert peak < 1 << 20
