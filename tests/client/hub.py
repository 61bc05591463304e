"""A server of events, in three makes: ours and two foreign ones. A test publishes, kicks and looks at what came in."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from websockets.sync.server import ServerConnection, serve

import krait_ws
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
from tests.helpers import until
from tests.integration.support import route


class Hub:
    """What the servers have in common: who is connected, what newcomers get, who may come in."""

    def __init__(self) -> None:
        self.port = 0
        self.replay: list[str] = []
        self.token: str | None = None  # that is asked for; None asks for none
        self.refusals: list[int] = []  # statuses of the next answers to upgrades
        self.only_one = False  # a newcomer makes the others go
        self.seen: list[str] = []  # Authorization headers
        self.received: list[str | bytes] = []
        self.joins = 0
        self._members: dict[Any, tuple[Callable[[str], Any], Callable[[int, str], Any]]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/events"

    @property
    def count(self) -> int:
        """How many are connected."""
        return len(self._members)

    def admit(self, authorization: str | None) -> int:
        """The status of the answer to an upgrade."""
        self.seen.append(authorization or "")
        if self.refusals:
            return self.refusals.pop(0)
        return 401 if self.token is not None and authorization != f"Bearer {self.token}" else 101

    def join(self, member: Any, send: Callable[[str], Any], close: Callable[[int, str], Any]) -> None:
        """The replay goes first, and nothing is published in between."""
        with self._lock:
            for message in self.replay:
                send(message)
            if self.only_one:
                for _, close_other in self._members.values():
                    close_other(4409, "only one of you")
            self._members[member] = (send, close)
            self.joins += 1

    def leave(self, member: Any) -> None:
        with self._lock:
            self._members.pop(member, None)

    def publish(self, message: str) -> None:
        """To everybody, in one order."""
        with self._lock:
            for send, _ in self._members.values():
                with contextlib.suppress(Exception):  # one that is leaving
                    send(message)

    def kick(self, code: int = 1001, reason: str = "bye") -> None:
        """Closes every connection."""
        with self._lock:
            members = list(self._members.values())
        for _, close in members:
            with contextlib.suppress(Exception):
                close(code, reason)

    def wait_for(self, count: int) -> None:
        until(lambda: self.count == count, f"{count} connections, there are {self.count}")

    def wait_joined(self, times: int = 1) -> None:
        """Whoever is let in joins a moment later, in a thread of the server: the client may be CONNECTED before that.
        Until then it would not hear what is published, and a kick would miss it."""
        until(lambda: self.joins >= times, f"{times} connections have joined, there were {self.joins}")


@contextlib.contextmanager
def krait_hub(folder: Path, **settings: Any) -> Iterator[Hub]:
    hub = Hub()

    class Member(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            hub.join(self, self.push_out_message, self.close)
            for message in self.messages():
                hub.received.append(message)
            hub.leave(self)

    def websocket(request: Any) -> Any:
        status = hub.admit(request.headers.get("Authorization"))
        return WebsocketsResponse(Member()) if status == 101 else krait_ws.Response("no", status=status)

    (folder / "events.py").write_text(route(websocket))
    with SiteServer(folder, **settings) as site:
        hub.port = site.port
        yield hub


@contextlib.contextmanager
def websockets_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub()
    threads: list[threading.Thread] = []

    def member(connection: ServerConnection) -> None:
        threads.append(threading.current_thread())
        hub.join(connection, connection.send, connection.close)
        with contextlib.suppress(Exception):
            for message in connection:
                hub.received.append(message)
        hub.leave(connection)

    def admit(connection: ServerConnection, request: Any) -> Any:
        status = hub.admit(request.headers.get("Authorization"))
        return None if status == 101 else connection.respond(status, "no")

    with serve(member, "127.0.0.1", 0, process_request=admit, close_timeout=1) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.port = server.socket.getsockname()[1]
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join(10)
            for one in threads:
                one.join(10)


@contextlib.contextmanager
def aiohttp_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub()
    loop = asyncio.new_event_loop()

    async def member(request: web.Request) -> web.StreamResponse:
        status = hub.admit(request.headers.get("Authorization"))
        if status != 101:
            return web.Response(status=status, text="no")
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        waiting: asyncio.Queue[str] = asyncio.Queue()

        async def forward() -> None:
            while True:
                await connection.send_str(await waiting.get())

        def close(code: int, reason: str) -> None:
            asyncio.run_coroutine_threadsafe(connection.close(code=code, message=reason.encode()), loop)

        hub.join(connection, lambda message: loop.call_soon_threadsafe(waiting.put_nowait, message), close)
        forwarding = loop.create_task(forward())
        try:
            async for message in connection:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                    hub.received.append(message.data)
        finally:
            hub.leave(connection)
            forwarding.cancel()
        return connection

    async def begin() -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/events", member)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    hub.port = runner.addresses[0][1]
    try:
        yield hub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


HUBS = {"krait": krait_hub, "websockets": websockets_hub, "aiohttp": aiohttp_hub}
