"""permessage-deflate with the clients that people use, and with one of our own that sees what is on the wire."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect as connect_asyncio
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect as connect_sync

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    CONTINUATION,
    FLAVOURS,
    PATIENCE,
    PING,
    TEXT,
    EventEcho,
    Frame,
    HandlerEcho,
    RawClient,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]
RSV1 = 4
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
MEBIBYTE = 1 << 20
PATTERN = bytes(range(200)) * 5000  # a million bytes, which repeat within every window
NOISE = zlib.compress(b"".join(str(number).encode() for number in range(200_000)))[:300_000]
MESSAGES: list[Any] = [
    "hello", "", b"", "ä€😀", b"\x00\xff", "x" * 126, b"y" * 65_536, "ü" * (1 << 19), b"z" * MEBIBYTE,
    PATTERN, NOISE, "end",
]  # fmt: skip
WINDOWS = pytest.mark.parametrize("bits", [9, 12, 15])
CONTEXTS = pytest.mark.parametrize("context", [True, False], ids=["context kept", "no context"])


def ws(site: SiteServer) -> str:
    return site.url.replace("http", "ws", 1)


def run(talk: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(talk, 2 * PATIENCE))


class DeflateClient(RawClient):
    """Inflates what it receives and notes which messages were compressed. It compresses with ``send_deflated``."""

    def __init__(self, port: int, offer: str = OFFER, **options: Any) -> None:
        self.compressed: list[bool] = []
        super().__init__(port, headers=(offer,), **options)
        self._inflater = zlib.decompressobj(wbits=-15)
        self._deflater = zlib.compressobj(wbits=-12)

    @property
    def agreed(self) -> str:
        """The header of the answer."""
        lines = [line for line in self.head.split("\r\n") if line.lower().startswith("sec-websocket-extensions:")]
        return lines[0].partition(":")[2].strip() if lines else ""

    def deflated(self, payload: bytes) -> bytes:
        return (self._deflater.compress(payload) + self._deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def send_deflated(self, opcode: int, payload: bytes) -> None:
        self.send_frame(opcode, self.deflated(payload), reserved=RSV1)

    def receive_frame(self) -> Frame:
        first, second = self._take(2)
        assert not second & 0x80
        assert not first & 0x30
        size = second
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        payload = bytes(self._take(size))
        fin, opcode = first >= 0x80, first & 0x0F
        if opcode in (TEXT, BINARY):
            self.compressed.append(bool(first & 0x40))
        else:
            assert not first & 0x40
        if opcode <= BINARY and self.compressed[-1]:
            payload = self._inflater.decompress(payload + (b"\x00\x00\xff\xff" if fin else b""))
        return Frame(fin, opcode, payload)

    def receive(self) -> str | bytes:
        received = self.receive_frame()
        opcode, data = received.opcode, received.payload
        assert opcode in (TEXT, BINARY), received
        while not received.fin:
            received = self.receive_frame()
            assert received.opcode == CONTINUATION
            data += received.payload
        return data.decode() if opcode == TEXT else data


# ---- foreign clients


@pytest.fixture(params=FLAVOURS)
def url(request: Any, serve: Serve) -> str:
    runs_on, controller = FLAVOURS[request.param]
    return ws(serve(controller, runs_on=runs_on, compress=True, compress_threshold=0))


def test_websockets_asyncio(url: str) -> None:
    async def talk() -> None:
        async with connect_asyncio(url, proxy=None, max_size=2 * MEBIBYTE) as client:
            assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
            for message in MESSAGES:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["one ", "two ", "three " * 1000])
            assert await client.recv() == "one two " + "three " * 1000
            for number in range(200):
                await client.send(f"message {number}")
            assert [await client.recv() for _ in range(200)] == [f"message {number}" for number in range(200)]
            await client.close()
            assert client.close_code == 1000

    run(talk())


def test_websockets_threads(url: str) -> None:
    with connect_sync(url, proxy=None, max_size=2 * MEBIBYTE) as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for message in MESSAGES:
            client.send(message)
            assert client.recv(PATIENCE) == message
        client.send([b"\x01" * 1000, b"", b"\x02", b"\x03"])
        assert client.recv(PATIENCE) == b"\x01" * 1000 + b"\x02\x03"
    assert client.protocol.close_code == 1000


def test_aiohttp(url: str) -> None:
    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=2 * MEBIBYTE, compress=15) as client,
        ):
            assert client.compress
            for message in MESSAGES:
                if isinstance(message, bytes):
                    await client.send_bytes(message)
                    assert await client.receive_bytes() == message
                else:
                    await client.send_str(message)
                    assert await client.receive_str() == message

    run(talk())


# ---- what is agreed on


@WINDOWS
@CONTEXTS
def test_windows_and_contexts_of_websockets(serve: Serve, context: bool, bits: int) -> None:
    site = serve(HandlerEcho, compress=True, compress_threshold=0, compress_window_bits=bits, compress_context=context)
    offers = [
        ClientPerMessageDeflateFactory(client_max_window_bits=True),
        ClientPerMessageDeflateFactory(server_max_window_bits=10, client_max_window_bits=11),
        ClientPerMessageDeflateFactory(
            server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=True
        ),
    ]
    for offer in offers:
        with connect_sync(ws(site), proxy=None, compression=None, extensions=[offer], max_size=2 * MEBIBYTE) as client:
            assert client.response is not None
            agreed = client.response.headers["Sec-WebSocket-Extensions"]
            assert ("server_no_context_takeover" in agreed) == (not context or offer is offers[2])
            assert ("client_no_context_takeover" in agreed) == (not context or offer is offers[2])
            for message in ["again and again " * 50] * 3 + [PATTERN, NOISE, "end"]:
                client.send(message)
                assert client.recv(PATIENCE) == message


@WINDOWS
def test_windows_of_aiohttp(serve: Serve, bits: int) -> None:
    site = serve(HandlerEcho, compress=True, compress_threshold=0, compress_window_bits=bits)

    async def talk() -> None:
        for offered in (9, 15):
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(site.url, max_msg_size=2 * MEBIBYTE, compress=offered) as client,
            ):
                for message in ("again and again " * 50, "again and again " * 50):
                    await client.send_str(message)
                    assert await client.receive_str() == message
                await client.send_bytes(PATTERN)
                assert await client.receive_bytes() == PATTERN

    run(talk())


@CONTEXTS
def test_a_kept_context_makes_a_repeated_message_small(serve: Serve, context: bool) -> None:
    site = serve(HandlerEcho, compress=True, compress_context=context, compress_threshold=0)
    sizes = []
    with RawClient(site.port, headers=(OFFER,)) as client:
        for _ in range(2):
            client.send_frame(BINARY, NOISE[:2000])
            first, second = client._take(2)
            assert first & 0x40
            assert second == 126 or second < 126
            size = int.from_bytes(client._take(2), "big") if second == 126 else second
            client._take(size)
            sizes.append(size)
    assert (sizes[1] < sizes[0] / 10) == context


@pytest.mark.parametrize("offered", [None, "x-unknown", "permessage-deflate; no_such_parameter"])
def test_a_client_that_offers_nothing_we_know(serve: Serve, offered: str | None) -> None:
    site = serve(HandlerEcho, compress=True, compress_threshold=0)
    headers = () if offered is None else (f"Sec-WebSocket-Extensions: {offered}",)
    with RawClient(site.port, headers=headers) as client:
        assert "sec-websocket-extensions" not in client.head.lower()
        for message in ("plain " * 1000, ""):
            client.send_frame(TEXT, message)
            client.expect(message)  # which refuses a reserved bit
        client.send_frame(TEXT, b"x", reserved=RSV1)
        client.expect_close(1002)


def test_a_server_that_does_not_compress(serve: Serve) -> None:
    with DeflateClient(serve(HandlerEcho).port) as client:
        assert client.agreed == ""
        client.send_frame(TEXT, "plain " * 1000)
        client.expect("plain " * 1000)
        assert client.compressed == [False]


def test_compression_is_each_controllers_own_choice(serve: Serve) -> None:
    class Compressing(HandlerEcho):
        compress = True
        compress_threshold = 0

    class Plain(HandlerEcho):
        compress = False

    site = serve({"yes": Compressing, "no": Plain, "server": HandlerEcho}, compress=True, compress_threshold=10_000)
    for path, agreed, compressed in (("/yes", True, True), ("/no", False, False), ("/server", True, False)):
        with DeflateClient(site.port, path=path) as client:
            assert bool(client.agreed) == agreed
            client.send_frame(TEXT, "words " * 100)
            client.expect("words " * 100)
            assert client.compressed == [compressed]


# ---- on the wire


def test_the_threshold(serve: Serve) -> None:
    site = serve(HandlerEcho, compress=True, compress_threshold=100)
    with DeflateClient(site.port) as client:
        for size in (0, 1, 99, 100, 101, 10_000):
            client.send_frame(TEXT, "x" * size)
            client.expect("x" * size)
        client.send_frame(TEXT, "ü" * 50)  # bytes count, not characters
        client.expect("ü" * 50)
        assert client.compressed == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_compressed_messages_that_come_in_parts(serve: Serve, flavour: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    site = serve(controller, runs_on=runs_on, compress=True, compress_threshold=0)
    text = "ä€😀 and more " * 100
    with DeflateClient(site.port) as client:
        for step in (1, 7, 100):
            data = client.deflated(text.encode())
            parts = [data[start : start + step] for start in range(0, len(data), step)]
            client.send_frame(TEXT, parts[0], fin=False, reserved=RSV1)
            client.send_frame(PING, b"between")
            assert client.receive_frame().payload == b"between"
            for part in parts[1:]:
                client.send_frame(CONTINUATION, part, fin=False)
            client.send_frame(CONTINUATION)
            client.expect(text)
        client.send_deflated(BINARY, b"")
        client.expect(b"")
        client.send_frame(TEXT, "not compressed")
        client.expect("not compressed")
        client.send_deflated(BINARY, PATTERN)
        client.expect(PATTERN)


def test_a_stream_is_compressed_fragment_by_fragment(serve: Serve) -> None:
    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message(iter(["again and again ", "and again ", "", "until the end"]))

    with DeflateClient(serve(Talker, compress=True).port) as client:
        client.expect("again and again and again until the end")
        assert client.compressed == [True]
        client.expect_close(1000)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_bomb_closes_with_1009(serve: Serve, flavour: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    site = serve(controller, runs_on=runs_on, compress=True)
    deflater = zlib.compressobj(9, wbits=-12)
    bomb = b"".join(deflater.compress(bytes(MEBIBYTE)) for _ in range(64)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    bomb = bomb[:-4]
    assert len(bomb) < 100_000
    for opcode in (TEXT, BINARY):
        with DeflateClient(site.port) as client:
            client.send(frame(opcode, bomb, reserved=RSV1))
            client.expect_close(1009)
        with DeflateClient(site.port) as client:
            client.send(frame(opcode, bomb[:1000], reserved=RSV1, fin=False))
            client.send(frame(CONTINUATION, bomb[1000:]))
            client.expect_close(1009)


def test_the_limit_of_what_is_inflated_is_exact(serve: Serve) -> None:
    site = serve(HandlerEcho, compress=True, max_inflated_size=5000)
    with DeflateClient(site.port) as client:
        client.send_deflated(BINARY, bytes(5000))
        client.expect(bytes(5000))
        client.send_deflated(BINARY, bytes(5001))
        client.expect_close(1009)


def test_what_cannot_be_inflated_closes_with_1007(serve: Serve) -> None:
    with DeflateClient(serve(HandlerEcho, compress=True).port) as client:
        client.send_frame(BINARY, b"\xff" * 20, reserved=RSV1)
        client.expect_close(1007)


# ---- many messages to many


@pytest.mark.parametrize("runs_on", ["thread", "greenlet", "loop"])
def test_a_broadcast_reaches_everybody_in_order(serve: Serve, runs_on: str) -> None:
    members: list[WebsocketsCtrlBase] = []
    messages = [f"message {number} " + "and more " * (number % 200) for number in range(500)]

    class Member(EventEcho):
        def __init__(self) -> None:
            super().__init__()
            members.append(self)

    site = serve(Member, runs_on=runs_on, compress=True, max_out_messages=10_000)
    clients = [DeflateClient(site.port) if number % 2 else RawClient(site.port) for number in range(6)]
    try:
        eventually(lambda: len(members) == len(clients))

        def send() -> None:
            for message in messages:
                for member in members:
                    assert member.push_out_message(message)

        sender = threading.Thread(target=send)
        sender.start()
        for message in messages:
            for client in clients:
                client.expect(message)
        sender.join(PATIENCE)
        assert not sender.is_alive()
    finally:
        for client in clients:
            client.close()
