"""Servers that the clients are tested against: ours and two foreign ones, which all understand the same few words.

``close CODE REASON`` closes; ``parts N`` is answered with ``part 1`` … ``part N`` and ``end``; ``silence`` with
nothing; everything else is echoed. All of them refuse ``/closed`` with 403, ask for ``Authorization: Bearer good`` at
``/private``, and choose the subprotocol ``talk.v2`` when it is offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from websockets.sync.server import ServerConnection, serve

from krait_ws.client.link import Link
from krait_ws.testing import SiteServer

PROTOCOL = "talk.v2"

SITE = """
import krait_ws
from krait_ws import websockets
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
from tests.client.servers import PROTOCOL, answers


class Talk(WebsocketsCtrlBase):
    def on_thread_start(self):
        for message in self.messages():
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                return self.close(int(code), reason)
            for answer in answers(message):
                self.push_out_message(answer)


def websocket(request):
    if request.path == "/closed":
        return krait_ws.Response("no", status=403)
    if request.path == "/private" and request.headers.get("Authorization") != "Bearer good":
        return krait_ws.Response("who are you?", status=401)
    return WebsocketsResponse(Talk(), PROTOCOL if PROTOCOL in (request.protocols or ()) else None)
"""


def answers(message: str | bytes) -> Iterator[str | bytes]:
    if message == "silence":
        return
    if isinstance(message, str) and message.startswith("parts "):
        yield from (f"part {number}" for number in range(1, int(message.split()[1]) + 1))
        yield "end"
    else:
        yield message


@contextlib.contextmanager
def krait_server(folder: Path) -> Iterator[int]:
    for name in ("talk", "closed", "private"):
        (folder / f"{name}.py").write_text(SITE)
    with SiteServer(folder, max_message_size=8 << 20) as site:
        yield site.port


@contextlib.contextmanager
def websockets_server(folder: Path) -> Iterator[int]:
    def talk(connection: ServerConnection) -> None:
        for message in connection:
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                connection.close(int(code), reason)
                break
            for answer in answers(message):
                connection.send(answer)

    def admit(connection: ServerConnection, request: Any) -> Any:
        if request.path == "/closed":
            return connection.respond(http.HTTPStatus.FORBIDDEN, "no")
        if request.path == "/private" and request.headers.get("Authorization") != "Bearer good":
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "who are you?")
        return None

    with websockets_serve(talk, process_request=admit) as port:
        yield port


@contextlib.contextmanager
def websockets_serve(handler: Callable[[ServerConnection], None], **options: Any) -> Iterator[int]:
    """A foreign server whose connections are handled by a function of the test. Gives its port."""
    options = {"subprotocols": [PROTOCOL], "select_subprotocol": _select, "max_size": 8 << 20, **options}
    ended: list[threading.Thread] = []

    def handle(connection: ServerConnection) -> None:
        ended.append(threading.current_thread())
        with contextlib.suppress(Exception):  # a client that was cut, or a test that is over
            handler(connection)

    with serve(handle, "127.0.0.1", 0, close_timeout=1, **options) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()
        for handler_thread in ended:
            handler_thread.join(10)


def is_read(link: Link | None) -> bool:
    """Whether a thread is in ``recv`` of our end. To try it with another ``recv`` might take the place from it."""
    return link is not None and bool(link._websocket.recv_messages.get_in_progress)


def _select(connection: ServerConnection, offered: Any) -> Any:
    return PROTOCOL if PROTOCOL in offered else None


@contextlib.contextmanager
def aiohttp_server(folder: Path) -> Iterator[int]:
    async def talk(request: web.Request) -> web.StreamResponse:
        if request.path == "/closed":
            return web.Response(text="no", status=403)
        if request.path == "/private" and request.headers.get("Authorization") != "Bearer good":
            return web.Response(text="who are you?", status=401)
        connection = web.WebSocketResponse(protocols=[PROTOCOL], max_msg_size=8 << 20)
        await connection.prepare(request)
        async for message in connection:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            if isinstance(message.data, str) and message.data.startswith("close "):
                _, code, reason = message.data.split(" ", 2)
                await connection.close(code=int(code), message=reason.encode())
                break
            for answer in answers(message.data):
                await (connection.send_str if isinstance(answer, str) else connection.send_bytes)(answer)  # type: ignore[operator]
        return connection

    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/{path:.*}", talk)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield runner.addresses[0][1]
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


SERVERS = {"krait": krait_server, "websockets": websockets_server, "aiohttp": aiohttp_server}
