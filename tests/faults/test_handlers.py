"""Handlers that hang, threads that cannot be started, descriptors that run out."""

from __future__ import annotations

import logging
import resource
import threading
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws import handlers
from krait_ws.testing import Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    CLOSE,
    TEXT,
    EventEcho,
    Gate,
    HandlerEcho,
    RawClient,
    close_frame,
    eventually,
    frame,
    open_descriptors,
    upgrade_request,
)

Serve = Callable[..., SiteServer]
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@HANDLERS
def test_a_handler_that_hangs_is_reported_with_its_stack_while_the_server_goes_on(
    serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str
) -> None:
    gate = Gate()
    hung: list[Any] = []

    class Hangs(WebsocketsCtrlBase):
        stop_timeout = 0.2

        def on_thread_start(self) -> None:
            self.hangs_here()

        def hangs_here(self) -> None:
            hung.append(self)
            gate.wait(60)

    site = serve({"hangs": Hangs, "echo": HandlerEcho}, runs_on=runs_on)
    try:
        with RawClient(site.port, "/hangs") as client:
            eventually(lambda: hung, what="the handler hangs")
            client.send(close_frame(1000))
            client.expect_close(1000, answer=False)  # the peer is not kept waiting for the handler
        (record,) = eventually(lambda: errors(caplog))
        assert "abandoned" in record.getMessage()
        assert hung[0].id in record.getMessage()
        assert "hangs_here" in record.getMessage()
        assert hung[0].wait_stopped(0) is False
        with site.connect("/echo") as echo:
            echo.send("on")
            echo.expect("on")
    finally:
        gate.open()
    assert hung[0].wait_stopped(20)
    eventually(lambda: not site.server.sessions)
    assert len(errors(caplog)) == 1


def test_a_server_that_stops_does_not_wait_for_a_handler_that_hangs(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    hung: list[Any] = []

    class Hangs(WebsocketsCtrlBase):
        stop_timeout = 0.3

        def on_thread_start(self) -> None:
            hung.append(self)
            gate.wait(60)

    site = serve(Hangs)
    with RawClient(site.port) as client:
        eventually(lambda: hung)
        site.server.request_stop()
        client.expect_close(1001)
        site.close()
    assert not gate._open.is_set()
    assert hung[0].wait_stopped(0) is False
    (record,) = errors(caplog)
    assert "abandoned" in record.getMessage()
    gate.open()
    assert hung[0].wait_stopped(20)


def test_a_thread_that_cannot_start_is_a_503_and_leaves_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[Any] = []

    class Both(HandlerEcho):
        """Two threads: a handler and a delivery."""

        def on_in_message(self, message: Any) -> None:
            super().on_in_message(message)

        def on_stop(self) -> None:
            stops.append(self)
            super().on_stop()

    site = serve(
        {
            "handler": HandlerEcho,
            "events": EventEcho,
            "both": Both,
            "greenlet": type("G", (HandlerEcho,), {"runs_on": "greenlet"}),
        }
    )
    start = handlers._start_new_thread
    refused = 0

    def refuse(after: int) -> Callable[..., None]:
        left = after

        def start_or_not(run: Callable[[], None], arguments: tuple[()]) -> None:
            nonlocal left, refused
            left -= 1
            if left < 0:
                refused += 1
                raise RuntimeError("can't start new thread")
            start(run, arguments)

        return start_or_not

    with monkeypatch.context() as patch:
        patch.setattr(handlers, "_start_new_thread", refuse(0))
        for path in ("/handler", "/events", "/both"):
            with pytest.raises(Refused) as answer:
                site.connect(path)
            assert answer.value.status == 503
        assert "the system gives no thread for a handler: can't start new thread" in caplog.text
        assert refused >= 3
        with site.connect("/greenlet") as client:
            client.send("greenlets go on")
            client.expect("greenlets go on")
    with monkeypatch.context() as patch:
        patch.setattr(handlers, "_start_new_thread", refuse(1))  # the second one fails
        with pytest.raises(Refused):
            site.connect("/both")
    eventually(lambda: not site.server.sessions)
    for path in ("/handler", "/events"):
        with site.connect(path) as client:
            client.send("again")
            client.expect("again")


def test_descriptors_that_run_out_stop_nothing_for_good(serve: Serve) -> None:
    """The server accepts again once there is room; connections that live are not hurt."""
    site = serve(HandlerEcho)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients: list[RawClient] = []
    with site.connect("/") as living:
        try:
            highest = max(int(name) for name in open_descriptors())
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 30, hard))
            for _ in range(40):
                client = RawClient(site.port, upgrade=False)
                clients.append(client)
                client.send(upgrade_request())
        except OSError:
            pass
        try:
            assert clients
            living.send("still here")
            living.expect("still here")
        finally:
            for client in clients:
                client.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        living.send("on")
        living.expect("on")

    def accepts_again() -> bool:
        try:
            with site.connect("/") as client:
                client.send("again")
                client.expect("again")
        except (Refused, OSError):
            return False
        return True

    eventually(accepts_again)


@pytest.mark.parametrize("runs_on", ["thread", "greenlet", "loop"])
def test_exceptions_of_every_kind_leave_nothing(serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str) -> None:
    class Breaks(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            raise {"exception": ValueError, "base": KeyboardInterrupt, "generator": GeneratorExit}[message]

    site = serve(Breaks, runs_on=runs_on)
    for kind in ("exception", "base", "generator"):
        caplog.clear()
        with RawClient(site.port) as client:
            client.send(frame(TEXT, kind) * 2)
            client.expect_close(1011)
        eventually(lambda: errors(caplog))
        assert len(errors(caplog)) == 1
    eventually(lambda: not site.server.sessions)


def test_close_frames_cross(serve: Serve) -> None:
    """Both sides close at the same moment; each sees one close frame."""
    controllers: list[Any] = []

    class Noted(EventEcho):
        def __init__(self) -> None:
            super().__init__()
            controllers.append(self)

    site = serve(Noted)
    for _ in range(50):
        with RawClient(site.port) as client:
            closer = threading.Thread(target=controllers[-1].close, args=(4000,))
            closer.start()
            client.send(close_frame(4001))
            received = client.receive_frame()
            assert received.opcode == CLOSE
            assert int.from_bytes(received.payload, "big") in (4000, 4001)
            client.expect_end()
            closer.join()
