"""The clients that people use: websockets (asyncio and threads), websocket-client, aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import websocket
from websockets.asyncio.client import connect as connect_asyncio
from websockets.sync.client import connect as connect_sync

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest, WebsocketsResponse
from tests.integration.support import FLAVOURS, PATIENCE, POLLERS, HandlerEcho

Serve = Callable[..., SiteServer]

MESSAGES = ["hello", "", b"", "ä€😀", b"\x00\xff", "x" * 126, b"y" * 65_536, "ü" * (1 << 19), b"z" * (1 << 20)]
COUNT, WINDOW = 10_000, 250
WHOLE = "ä€😀"
SPLIT = [WHOLE.encode()[n : n + 1] for n in range(len(WHOLE.encode()))]


@pytest.fixture(params=[(flavour, poller) for flavour in FLAVOURS for poller in POLLERS], ids="-".join)
def url(request: Any, serve: Serve) -> str:
    flavour, poller = request.param
    runs_on, controller = FLAVOURS[flavour]
    return ws(serve(controller, runs_on=runs_on, poller=poller))


def ws(site: SiteServer) -> str:
    return site.url.replace("http", "ws", 1)


def run(talk: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(talk, 2 * PATIENCE))


def windows() -> list[list[str]]:
    return [[str(n) for n in range(start, start + WINDOW)] for start in range(0, COUNT, WINDOW)]


def test_websockets_asyncio(url: str) -> None:
    async def talk() -> None:
        async with connect_asyncio(url, proxy=None) as client:
            for message in MESSAGES:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["one ", "two ", "three"])
            assert await client.recv() == "one two three"
            await client.send(SPLIT, text=True)
            assert await client.recv() == WHOLE
            await (await client.ping())
            for window in windows():
                for message in window:
                    await client.send(message)
                assert [await client.recv() for _ in window] == window
            await client.close(1000, "done")
            assert client.close_code == 1000

    run(talk())


def test_websockets_threads(url: str) -> None:
    with connect_sync(url, proxy=None) as client:
        for message in MESSAGES:
            client.send(message)
            assert client.recv(PATIENCE) == message
        client.send([b"\x01", b"\x02", b"\x03"])
        assert client.recv(PATIENCE) == b"\x01\x02\x03"
        client.send(SPLIT, text=True)
        assert client.recv(PATIENCE) == WHOLE
        assert client.ping().wait(PATIENCE)
        for window in windows():
            for message in window:
                client.send(message)
            assert [client.recv(PATIENCE) for _ in window] == window
    assert client.protocol.close_code == 1000


def test_websocket_client(url: str) -> None:
    client = websocket.create_connection(url, timeout=PATIENCE)
    try:
        for message in MESSAGES:
            client.send_binary(message) if isinstance(message, bytes) else client.send(message)
            assert client.recv() == message
        for number, part in enumerate(SPLIT):
            opcode = websocket.ABNF.OPCODE_TEXT if number == 0 else websocket.ABNF.OPCODE_CONT
            client.send_frame(websocket.ABNF(int(number == len(SPLIT) - 1), 0, 0, 0, opcode, 1, part))
        assert client.recv() == WHOLE
        client.ping("now?")
        assert client.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"now?")
        for window in windows():
            for message in window:
                client.send(message)
            assert [client.recv() for _ in window] == window
    finally:
        client.close(timeout=5)


def test_aiohttp(url: str) -> None:
    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=2 << 20) as client,
        ):
            for message in MESSAGES:
                if isinstance(message, bytes):
                    await client.send_bytes(message)
                    assert await client.receive_bytes() == message
                else:
                    await client.send_str(message)
                    assert await client.receive_str() == message
            await client.ping(b"now?")
            for window in windows():
                for message in window:
                    await client.send_str(message)
                assert [await client.receive_str() for _ in window] == window
            await client.close(code=1000, message=b"done")
            assert client.close_code == 1000

    run(talk())


def test_compression_that_is_offered_is_not_taken_against_the_clients_will(serve: Serve) -> None:
    """websockets offers permessage-deflate by default: whatever is negotiated, the messages are right."""
    with connect_sync(ws(serve(HandlerEcho)), proxy=None, compression="deflate") as client:
        for message in MESSAGES:
            client.send(message)
            assert client.recv(PATIENCE) == message


class Chosen(WebsocketsCtrlBase):
    def on_thread_start(self) -> None:
        self.push_out_message(f"{self.protocol} of {self.request.protocols}")  # type: ignore[union-attr]
        self.pop_in_message(None)


def choose_second(request: WebsocketsRequest) -> WebsocketsResponse:
    return WebsocketsResponse(Chosen(), (request.protocols or [])[1])


def test_subprotocol_that_the_script_picks(serve: Serve) -> None:
    site = serve(choose_second)
    expected = "b of ['a', 'b', 'c']"

    async def with_aiohttp() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(ws(site), protocols=["a", "b", "c"]) as client,
        ):
            assert client.protocol == "b"
            assert await client.receive_str() == expected

    async def with_websockets() -> None:
        async with (
            connect_asyncio(ws(site), proxy=None, subprotocols=["a", "b", "c"]) as client,  # type: ignore[list-item]
        ):
            assert client.subprotocol == "b"
            assert await client.recv() == expected

    run(with_aiohttp())
    run(with_websockets())
    with site.connect("/", protocols=["a", "b", "c"]) as client:
        assert client.protocol == "b"
        client.expect(expected)
    old = websocket.create_connection(ws(site), timeout=PATIENCE, subprotocols=["a", "b", "c"])
    try:
        assert old.getsubprotocol() == "b"
        assert old.recv() == expected
    finally:
        old.close(timeout=5)
