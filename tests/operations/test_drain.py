"""How a server ends: in batches, with what is queued sent, within its time."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import gevent
import pytest

from krait_ws.network import drain as drain_module
from krait_ws.network import server as server_module
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import FLAVOURS, PATIENCE, Gate, HandlerEcho, RawClient, eventually

Serve = Callable[..., SiteServer]


def test_connections_are_closed_in_batches(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_module, "_BATCH", 5)
    site = serve(HandlerEcho, close_timeout=1)
    clients = [RawClient(site.port) for _ in range(30)]
    eventually(lambda: len(site.server.sessions) == 30)
    closed: list[RawClient] = []
    batches: list[int] = []

    def pause(seconds: float) -> None:
        """However late the clients are, they hear of a batch before the next one is closed, and nobody else does."""
        with gevent.Timeout(PATIENCE, False):
            while len(closed) < 5 * (len(batches) + 1):
                gevent.sleep(0.005)
        gevent.sleep(seconds)
        batches.append(len(closed))

    pauses = note_pauses(monkeypatch, pause)

    def wait_for_close(client: RawClient) -> None:
        client.expect_close(1001)
        closed.append(client)

    threads = [threading.Thread(target=wait_for_close, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    site.close()
    for thread in threads:
        thread.join(PATIENCE)
    for client in clients:
        client.close()
    assert batches == [5, 10, 15, 20, 25], "the first batch does not wait, the others do"
    assert len(closed) == 30
    assert min(pauses) >= 0.05


def note_pauses(monkeypatch: pytest.MonkeyPatch, pause: Callable[[float], None]) -> list[float]:
    """Calls ``pause`` where the drain pauses between two batches; returns for how long it wanted to."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == drain_module._LOOK_EVERY:
            gevent.sleep(seconds)
        else:
            pauses.append(seconds)
            pause(seconds)

    monkeypatch.setattr(drain_module, "gevent", SimpleNamespace(sleep=sleep))
    return pauses


def test_many_connections_do_not_take_longer_than_a_third_of_the_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not measured: one at a time they would take the whole time."""
    monkeypatch.setattr(drain_module, "_BATCH", 1)
    pauses = note_pauses(monkeypatch, lambda _: gevent.sleep(0))
    site = serve(HandlerEcho, drain_timeout=30.0, close_timeout=1)
    clients = [RawClient(site.port) for _ in range(300)]
    site.close()
    assert sum(pauses) < 30.0 / 3
    for client in clients:
        client.expect_close(1001)
        client.close()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_queued_is_sent_before_the_close(serve: Serve, flavour: str) -> None:
    runs_on, _ = FLAVOURS[flavour]
    large = "x" * 200_000

    class Queues(WebsocketsCtrlBase):
        def __init__(self) -> None:
            super().__init__(use_in_message_queue=False)

        def on_in_message(self, message: object) -> None:
            for _ in range(10):
                self.push_out_message(large)

    site = serve(Queues, runs_on=runs_on)
    with RawClient(site.port, receive_buffer=4096) as client:
        client.send_frame(0x1, "go")
        eventually(lambda: any(session.messages_out >= 10 for session in site.server.sessions), what="all are queued")
        site.server.request_stop()
        messages, code, _ = client.skip_to_close()
        assert (messages, code) == ([large] * 10, 1001)


def test_a_restart_closes_with_1012(serve: Serve) -> None:
    site = serve(HandlerEcho)
    with RawClient(site.port) as client:
        site.server.request_stop(restarts=True)
        assert "restart" in client.expect_close(1012)


def test_everybody_hears_it_even_where_the_time_is_over_by_then(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that stands still for a while just then."""
    clock = itertools.count(0, 1_000_000)
    monkeypatch.setattr(drain_module, "monotonic", lambda: next(clock))
    site = serve(HandlerEcho)
    with RawClient(site.port) as client:
        eventually(lambda: site.server.sessions, what="the connection")
        site.close()
        client.expect_close(1001)


def test_the_drain_timeout_bounds_the_whole(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    class Stuck(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message("started")
            gate.wait()

    caplog.set_level(logging.ERROR, "krait_ws.session")
    site = serve(Stuck, drain_timeout=0.5, stop_timeout=1000.0)
    with RawClient(site.port) as client:
        client.expect("started")
        (session,) = site.server.sessions
        eventually(lambda: "gate.wait()" in "".join(session.stacks()), what="it stands where it stays")
        began = time.monotonic()
        site.close()
        assert time.monotonic() - began < PATIENCE / 2, "less than the handler would stay, and the clients' patience"
    gate.open()
    reports = [record.getMessage() for record in caplog.records if "abandoned" in record.getMessage()]
    assert len(reports) == 1
    assert "Stuck" in reports[0]
    assert "gate.wait()" in reports[0]


def test_controllers_are_told(serve: Serve) -> None:
    told: list[str] = []

    class Told(HandlerEcho):
        def on_stop(self) -> None:
            told.append("stop")
            super().on_stop()

    site = serve(Told, close_timeout=0.2)
    clients = [RawClient(site.port) for _ in range(3)]
    eventually(lambda: len(site.server.sessions) == 3)
    site.close()
    assert told == ["stop"] * 3
    for client in clients:
        client.close()


def test_a_request_that_is_being_answered_gets_its_answer(serve_files: Serve) -> None:
    script = "import time, krait_ws\ndef http(request):\n    time.sleep(1)\n    return krait_ws.Response('answered')\n"
    site = serve_files({"slow.py": script})
    with RawClient(site.port, upgrade=False) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: site.server.answering, what="it is being answered")
        site.close()
        assert client.read_answer().body == b"answered"


def test_who_was_accepted_a_moment_before_is_answered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_GREETING", PATIENCE)
    site = serve(HandlerEcho)
    with RawClient(site.port, upgrade=False) as client:
        eventually(lambda: site.server.greeting, what="it is accepted")
        site.server.request_stop()
        eventually(lambda: site.server.is_stopping)
        client.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.read_answer().status == 404
        client.expect_end()
