"""Clients that vanish, rudely or politely, at every stage: ``on_stop`` once, and nothing is left of them while the
server goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest
from tests.integration.support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FLAVOURS,
    POLLERS,
    TEXT,
    Gate,
    RawClient,
    close_frame,
    eventually,
    frame,
    living_greenlets,
    native_threads,
    open_descriptors,
    upgrade_request,
)

Serve = Callable[..., SiteServer]
VANISH = {"reset": RawClient.reset, "half-close": RawClient.half_close, "close": RawClient.close}
EVERY_WAY = pytest.mark.parametrize("vanish", VANISH.values(), ids=VANISH.keys())
EVERYWHERE = pytest.mark.parametrize(("flavour", "poller"), [(f, p) for f in FLAVOURS for p in POLLERS])
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])


def watched(base: type[WebsocketsCtrlBase]) -> type[Any]:
    """A class like ``base`` that notes its instances and every ``on_stop``."""

    class Watched(base):  # type: ignore[misc, valid-type]
        instances: list[Any] = []  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.stops: list[int | None] = []
            self.instances.append(self)

        def on_stop(self) -> None:
            self.stops.append(self.close_code)
            super().on_stop()

    return Watched


@contextmanager
def running(site: SiteServer, path: str = "/") -> Iterator[None]:
    """While the server goes on, everything of the clients inside must go. A first client warms it up: the workers
    of route scripts stay."""
    with RawClient(site.port, path) as client:
        client.send(close_frame(1000))
        while client.receive_frame().opcode != CLOSE:
            pass
    eventually(lambda: not site.server.sessions)
    before = state_of(site)
    yield
    eventually(
        lambda: not site.server.sessions and all(now <= then for now, then in zip(state_of(site), before, strict=True)),
        what="sessions, descriptors, threads and greenlets as before",
    )


def state_of(site: SiteServer) -> tuple[int, ...]:
    workers = site.server.workers.size
    return len(open_descriptors()), len(native_threads()) - workers, len(living_greenlets())


def check_stopped_once(controller: Any, *codes: int) -> None:
    assert controller.wait_stop(20)
    assert controller.wait_stopped(20)
    eventually(lambda: controller.stops)
    assert len(controller.stops) == 1
    assert controller.stops[0] in codes
    assert controller.close_code == controller.stops[0]


@EVERY_WAY
@EVERYWHERE
def test_between_messages(serve: Serve, flavour: str, poller: str, vanish: Callable[[RawClient], None]) -> None:
    runs_on, base = FLAVOURS[flavour]
    controller_class = watched(base)
    site = serve(controller_class, runs_on=runs_on, poller=poller)
    with running(site), RawClient(site.port) as client:
        client.send_frame(TEXT, "hello")
        client.expect("hello")
        vanish(client)
        check_stopped_once(controller_class.instances[-1], 1006)
    assert all(len(controller.stops) == 1 for controller in controller_class.instances)


PARTS: dict[str, bytes] = {
    "in a head": frame(TEXT, "x" * 70_000)[:5],
    "in a payload": frame(TEXT, "x" * 70_000)[:30_000],
    "in a control frame": frame(CLOSE, b"\x03\xe8")[:4],
    "in a fragmented message": frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"y", fin=False),
    "behind a message": frame(TEXT, "last words"),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@EVERY_WAY
def test_inside_a_message(serve: Serve, vanish: Callable[[RawClient], None], flavour: str) -> None:
    runs_on, base = FLAVOURS[flavour]
    controller_class = watched(base)
    site = serve(controller_class, runs_on=runs_on)
    with running(site):
        for part in PARTS.values():
            with RawClient(site.port) as client:
                client.send(part)
                vanish(client)
                check_stopped_once(controller_class.instances[-1], 1006)


@pytest.mark.parametrize(
    "sent",
    [b"", b"G", b"GET / HTTP/1.1\r\n", upgrade_request()[:-2], upgrade_request()[:-1]],
    ids=["nothing", "one byte", "one line", "almost all", "all but one"],
)
@EVERY_WAY
def test_during_the_handshake(serve: Serve, vanish: Callable[[RawClient], None], sent: bytes) -> None:
    controller_class = watched(FLAVOURS["thread"][1])
    site = serve(controller_class)
    with running(site):
        for _ in range(5):
            with RawClient(site.port, upgrade=False) as client:
                client.send(sent)
                vanish(client)
    assert len(controller_class.instances) == 1  # the one that warmed it up


@EVERY_WAY
@HANDLERS
def test_while_the_route_script_decides(serve: Serve, runs_on: str, vanish: Callable[[RawClient], None]) -> None:
    """The client is away when the 101 goes out: the controller has been started by then and must end."""
    controller_class = watched(FLAVOURS["thread"][1])
    inside, leave = threading.Event(), threading.Event()

    def decide(request: WebsocketsRequest) -> WebsocketsCtrlBase:
        if "slow" in request.query:
            inside.set()
            assert leave.wait(30)
        controller: WebsocketsCtrlBase = controller_class()
        return controller

    site = serve(decide, runs_on=runs_on)
    with running(site), RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request("/?slow=1"))
        assert inside.wait(20)
        vanish(client)
        leave.set()
        eventually(lambda: len(controller_class.instances) == 2)
        check_stopped_once(controller_class.instances[-1], 1006)


@EVERY_WAY
@HANDLERS
def test_at_once_after_the_101(serve: Serve, runs_on: str, vanish: Callable[[RawClient], None]) -> None:
    controller_class = watched(FLAVOURS["thread"][1])
    site = serve(controller_class, runs_on=runs_on)
    with running(site):
        for _ in range(20):
            with RawClient(site.port) as client:
                vanish(client)
        for controller in controller_class.instances[1:]:
            check_stopped_once(controller, 1006)
    assert len(controller_class.instances) == 21


class Pusher(WebsocketsCtrlBase):
    """Pushes without end, so that a push waits when nobody reads."""

    def on_thread_start(self) -> None:
        while self.push_out_message(bytes(16 * 1024)):
            pass


@EVERY_WAY
@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_while_the_handler_pushes(serve: Serve, poller: str, runs_on: str, vanish: Callable[[RawClient], None]) -> None:
    controller_class = watched(Pusher)
    site = serve(controller_class, runs_on=runs_on, poller=poller, max_out_messages=16, close_timeout=0.5)
    with running(site), RawClient(site.port, receive_buffer=4096) as client:
        client.receive_frame()
        vanish(client)
        check_stopped_once(controller_class.instances[-1], 1006)


@EVERY_WAY
@pytest.mark.parametrize("poller", POLLERS)
def test_while_nobody_pops(serve: Serve, poller: str, vanish: Callable[[RawClient], None]) -> None:
    """Reading is paused, so that the end of the stream cannot be read; a reset is noticed all the same, and a silent
    end as soon as the handler pops."""
    gate = Gate()

    class Late(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            gate.wait()
            for _ in self.messages():
                pass

    controller_class = watched(Late)
    site = serve(controller_class, poller=poller, max_in_messages=4)
    with RawClient(site.port) as client:
        client.send_until_blocked(frame(BINARY, bytes(16 * 1024)), 64 << 20)
        vanish(client)
        gate.open()
        check_stopped_once(controller_class.instances[-1], 1006)
    eventually(lambda: not site.server.sessions)


@EVERY_WAY
@EVERYWHERE
def test_while_we_close(serve: Serve, flavour: str, poller: str, vanish: Callable[[RawClient], None]) -> None:
    """The client sees our close and goes without an answer."""
    runs_on, base = FLAVOURS[flavour]
    controller_class = watched(base)
    site = serve(controller_class, runs_on=runs_on, poller=poller, close_timeout=5)
    with running(site), RawClient(site.port) as client:
        controller_class.instances[-1].close(4000, "bye")
        assert client.receive_frame().opcode == CLOSE
        vanish(client)
        check_stopped_once(controller_class.instances[-1], 4000)


@pytest.mark.parametrize("poller", POLLERS)
def test_while_it_closes(serve: Serve, poller: str) -> None:
    """The client sends its close and is away before the answer."""
    controller_class = watched(FLAVOURS["thread"][1])
    site = serve(controller_class, poller=poller)
    with running(site):
        for _ in range(20):
            with RawClient(site.port) as client:
                client.send(close_frame(1000))
                client.reset()
        for controller in controller_class.instances[1:]:
            check_stopped_once(controller, 1000, 1006)


def test_a_client_that_closes_and_never_ends_its_stream_is_cut_off(serve: Serve) -> None:
    controller_class = watched(FLAVOURS["thread"][1])
    site = serve(controller_class, close_timeout=0.3)
    with running(site), RawClient(site.port) as client:
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)
        eventually(lambda: not site.server.sessions)


@HANDLERS
def test_a_hundred_at_once(serve: Serve, runs_on: str) -> None:
    controller_class = watched(FLAVOURS["thread"][1])
    site = serve(controller_class, runs_on=runs_on)
    with running(site):
        clients = [RawClient(site.port) for _ in range(100)]
        for number, client in enumerate(clients):
            client.send_frame(TEXT, "hello")
            list(VANISH.values())[number % 3](client)
        for controller in controller_class.instances[1:]:
            check_stopped_once(controller, 1006)
        for client in clients:
            client.close()
    assert len(controller_class.instances) == 101


def test_during_a_plain_request(serve_files: Serve) -> None:
    site = serve_files(
        {
            "large.bin": bytes(8 << 20),
            "stream.py": "import krait_ws\ndef http(request):\n"
            "    return krait_ws.Response((b'x' * 65536 for _ in range(500)), mimetype='text/plain')\n",
            "post.py": "import krait_ws\ndef http(request):\n    return krait_ws.Response('done')\n",
            "index.py": "from krait_ws.websockets import *\ndef websocket(request):\n"
            "    return WebsocketsResponse(WebsocketsCtrlBase())\n",
        }
    )
    requests = [
        b"GET /large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /post HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly this",
    ]
    with running(site):
        for request in requests:
            for vanish in (RawClient.reset, RawClient.close):
                with RawClient(site.port, upgrade=False, receive_buffer=4096) as client:
                    client.send(request)
                    if b"POST" not in request:
                        client.sock.recv(100)
                    vanish(client)
    assert site.get("/post").text == "done"
