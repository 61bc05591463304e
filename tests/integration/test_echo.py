"""Messages there and back, in every way to run a controller, over both pollers, with a raw client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import (
    BINARY,
    CONTINUATION,
    FLAVOURS,
    PING,
    POLLERS,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    frame,
)

Serve = Callable[..., SiteServer]

TEXTS = ["hello", "", "a\x00b", "ä€😀", "x" * 125, "x" * 126, "ü" * 40_000]
BINARIES = [b"", b"\x00\xff", bytes(range(256)), b"y" * 65_535, b"y" * 65_536]


@pytest.fixture(params=[(flavour, poller) for flavour in FLAVOURS for poller in POLLERS], ids="-".join)
def client(request: Any, serve: Serve) -> Iterator[RawClient]:
    flavour, poller = request.param
    runs_on, controller = FLAVOURS[flavour]
    with RawClient(serve(controller, runs_on=runs_on, poller=poller).port) as client:
        yield client


def test_texts_and_binaries_come_back_as_they_were(client: RawClient) -> None:
    for text in TEXTS:
        client.send_frame(TEXT, text)
        client.expect(text)
    for binary in BINARIES:
        client.send_frame(BINARY, binary)
        client.expect(binary)


def test_largest_message(client: RawClient) -> None:
    text = "0123456789abcdef" * 65_536
    assert len(text) == 1 << 20
    client.send_frame(TEXT, text)
    client.expect(text)
    client.send_frame(BINARY, text.encode())
    client.expect(text.encode())


def test_ten_thousand_messages_in_order(client: RawClient) -> None:
    for start in range(0, 10_000, 500):
        numbers = range(start, start + 500)
        client.send(b"".join(frame(TEXT, str(number)) for number in numbers))
        for number in numbers:
            client.expect(str(number))


def test_fragments_are_joined(client: RawClient) -> None:
    client.send_frame(TEXT, "one ", fin=False)
    client.send_frame(CONTINUATION, "two ", fin=False)
    client.send_frame(CONTINUATION, "", fin=False)
    client.send_frame(CONTINUATION, "three")
    client.expect("one two three")
    client.send(b"".join(frame(BINARY if n == 0 else CONTINUATION, bytes([n]), fin=n == 199) for n in range(200)))
    client.expect(bytes(range(200)))


def test_utf8_split_across_fragments(client: RawClient) -> None:
    text = "ä€😀"
    data = text.encode()
    for n in range(len(data)):
        client.send_frame(TEXT if n == 0 else CONTINUATION, data[n : n + 1], fin=n == len(data) - 1)
    client.expect(text)


def test_control_frames_between_fragments(client: RawClient) -> None:
    client.send_frame(TEXT, "before ", fin=False)
    client.send_frame(PING, "now?")
    pong = client.receive_frame()
    assert (pong.opcode, pong.payload) == (PONG, b"now?")
    client.send_frame(PONG, "nobody asked")
    client.send_frame(CONTINUATION, "after")
    client.expect("before after")


def test_byte_by_byte(client: RawClient) -> None:
    for byte in frame(TEXT, "drip") + frame(BINARY, b"z" * 126):
        client.send(bytes([byte]))
    client.expect("drip")
    client.expect(b"z" * 126)


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_bytes_right_behind_the_handshake_are_not_lost(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    port = serve(controller, runs_on=runs_on, poller=poller).port
    whole = frame(TEXT, "rest")
    with RawClient(port, behind=frame(TEXT, "early") + frame(BINARY, b"\x01" * 70_000) + whole[:3]) as client:
        client.send(whole[3:])
        client.expect("early")
        client.expect(b"\x01" * 70_000)
        client.expect("rest")


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_close_right_behind_the_handshake_is_answered(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    port = serve(controller, runs_on=runs_on, poller=poller).port
    with RawClient(port, behind=frame(PING, "p") + close_frame(1000, "bye")) as client:
        assert client.receive_frame().opcode == PONG
        client.expect_close(1000, answer=False)


def test_many_connections_keep_apart(serve: Serve) -> None:
    port = serve(FLAVOURS["thread"][1]).port
    clients = [RawClient(port) for _ in range(50)]
    try:
        for turn in range(5):
            for number, client in enumerate(clients):
                client.send_frame(TEXT, f"{number}:{turn}")
        for turn in range(5):
            for number, client in enumerate(clients):
                client.expect(f"{number}:{turn}")
    finally:
        for client in clients:
            client.close()
