"""Upgrades whose head comes in one piece are answered on the loop; in every other respect they are like those whose
head does not."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import krait_ws
from krait_ws.network import admission
from krait_ws.network import server as server_module
from krait_ws.network.front import Arrival
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    PATIENCE,
    POLLERS,
    TEXT,
    EventEcho,
    Gate,
    HandlerEcho,
    RawClient,
    eventually,
    frame,
    no_leaks,
    raw_get,
    upgrade_request,
)

Serve = Callable[..., SiteServer]
PIECES = pytest.mark.parametrize("piece", [10_000, 40], ids=["whole", "in pieces"])


def send(client: RawClient, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        client.send(data[start : start + piece])
        if start + piece < len(data):
            time.sleep(0.01)  # else they come together


@PIECES
@pytest.mark.parametrize("poller", POLLERS)
def test_what_is_sent_right_behind_the_request_is_a_message(serve: Serve, poller: str, piece: int) -> None:
    site = serve(EventEcho, runs_on="loop", poller=poller)
    with RawClient(site.port, upgrade=False) as client:
        send(client, upgrade_request() + frame(TEXT, b"one") + frame(TEXT, b"two"), piece)
        client.read_head()
        client.expect("one")
        client.expect("two")


@pytest.mark.parametrize("poller", POLLERS)
def test_what_is_sent_while_the_script_runs_is_a_message(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, poller: str
) -> None:
    gate = Gate()
    looks: list[int] = []
    on_ready = Arrival.on_ready

    def note(arrival: Arrival, events: int) -> None:
        looks.append(events)
        on_ready(arrival, events)

    monkeypatch.setattr(Arrival, "on_ready", note)

    def late(request: Any) -> WebsocketsCtrlBase:
        gate.wait()
        return HandlerEcho()

    site = serve(late, poller=poller)
    with RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request())
        eventually(lambda: site.server.answering)
        client.send_frame(TEXT, "one")
        time.sleep(0.2)
        assert len(looks) <= 2, "the loop does not look at the socket again and again"
        client.send_frame(TEXT, "two")
        gate.open()
        client.read_head()
        client.expect("one")
        client.expect("two")


@PIECES
def test_a_refused_upgrade_keeps_its_http_connection(
    serve: Serve, caplog: pytest.LogCaptureFixture, piece: int
) -> None:
    def refuse(request: Any) -> krait_ws.Response:
        threading.Event().wait(0.2)
        return krait_ws.Response("not you", status=403)

    caplog.set_level(logging.INFO, "krait_ws.access")
    site = serve({"no": refuse, "echo": HandlerEcho})

    def told() -> list[float]:
        """The seconds that the log tells of each request."""
        lines = [record.getMessage() for record in caplog.records if record.name == "krait_ws.access"]
        return [float(found[1]) for line in lines if (found := re.search(r"in (\d+\.\d+) s", line))]

    most = []  # seconds that each request may have taken, by our clock: the machine may have been slow
    with RawClient(site.port, upgrade=False) as client:
        send(client, upgrade_request("/no"), piece)
        answer = client.read_answer()
        assert (answer.status, answer.body) == (403, b"not you")
        eventually(lambda: len(told()) == 1)
        began = time.monotonic()
        client.send(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().status == 404
        eventually(lambda: len(told()) == 2)
        most.append(time.monotonic() - began)
        began = time.monotonic()
        client.send(upgrade_request("/echo"))
        client.read_head()
        eventually(lambda: len(told()) == 3)
        most.append(time.monotonic() - began)
        client.send_frame(TEXT, "on")
        client.expect("on")
    first, *others = told()
    assert first >= 0.199
    for seconds, bound in zip(others, most, strict=True):
        assert seconds <= bound + 0.01, "what the first one took is not counted again"


@PIECES
def test_a_handshake_counts_once(serve: Serve, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(admission, "monotonic", lambda: 1000.0)  # else a slow machine earns a third one meanwhile
    site = serve(lambda request: krait_ws.Response("no", status=403), max_handshakes_per_address=2)
    statuses = []
    for _ in range(3):
        with RawClient(site.port, upgrade=False) as client:
            send(client, upgrade_request(), piece)
            statuses.append(client.read_answer().status)
    assert statuses == [403, 403, 429]


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_client_that_leaves_while_the_script_runs(serve: Serve, leave: str) -> None:
    gate = Gate()
    made: list[WebsocketsCtrlBase] = []

    def late(request: Any) -> WebsocketsCtrlBase:
        gate.wait()
        made.append(HandlerEcho())
        return made[-1]

    site = serve({"late": late, "echo": HandlerEcho})
    with no_leaks():
        with RawClient(site.port, upgrade=False) as client:
            client.send(upgrade_request("/late"))
            eventually(lambda: site.server.answering)
            getattr(client, leave)()
            time.sleep(0.05)
            gate.open()
        eventually(lambda: made)
        assert made[0].wait_stop(PATIENCE)  # not the handler's end: it may not even have been started yet
        assert made[0].close_code == 1006
        assert made[0].wait_stopped(PATIENCE)
        eventually(lambda: not site.server.sessions and not site.server.admission.connections)
    with RawClient(site.port, "/echo") as client:
        client.send_frame(TEXT, "on")
        client.expect("on")


def test_silent_connections_get_408_all_of_them(serve: Serve) -> None:
    site = serve(HandlerEcho, handshake_timeout=0.3)
    began = time.monotonic()
    clients = [RawClient(site.port, upgrade=False) for _ in range(60)]
    for client in clients:
        assert client.read_answer().status == 408
        client.expect_end()
        client.close()
    assert 0.25 < time.monotonic() - began < 15, "not one after the other, which takes 18 s"
    eventually(lambda: not site.server.greeting and site.server._arrived == 0)


def test_all_the_time_that_a_head_takes_counts(serve: Serve) -> None:
    """Whoever reads its pieces."""
    site = serve(HandlerEcho, handshake_timeout=0.4)

    def seconds() -> float:
        with RawClient(site.port, upgrade=False) as client:
            began = time.monotonic()
            time.sleep(0.3)
            client.send(b"GET / HTTP/1.1\r\n")
            assert client.read_answer().status == 408
            return time.monotonic() - began

    # A busy machine makes it longer now and then. If the time began anew with the piece, it would always be 0.7.
    eventually(lambda: seconds() < 0.65)


def test_places_of_connections_come_back_however_they_end(
    serve_files: Serve, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_HTTP_CONNECTIONS", 2)
    site = serve({"echo": HandlerEcho, "no": lambda request: None})
    for _ in range(5):
        with RawClient(site.port, "/echo") as client:
            client.send_frame(TEXT, "on")
            client.expect("on")
        with RawClient(site.port, upgrade=False) as client:
            client.send(upgrade_request("/no"))
            assert client.read_answer().status == 400
        with RawClient(site.port, upgrade=False):
            pass
        with RawClient(site.port, upgrade=False) as client:
            client.send(b"nonsense\r\n\r\n")
            assert client.read_answer().status == 400
        assert raw_get(site.port, b"/nothing").status == 404
    eventually(lambda: site.server._arrived == 0)


def test_the_end_of_the_server_while_a_script_decides(serve: Serve) -> None:
    gate = Gate()
    made: list[WebsocketsCtrlBase] = []

    def late(request: Any) -> WebsocketsCtrlBase:
        gate.wait()
        made.append(HandlerEcho())
        return made[-1]

    site = serve(late, drain_timeout=0.2)
    silent = RawClient(site.port, upgrade=False)
    with RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request())
        eventually(lambda: site.server.answering)
        site.close()
        client.expect_end()
        silent.expect_end()
    silent.close()
    assert not site.server.greeting
    assert not site.server.answering
    gate.open()
    eventually(lambda: made and made[0].should_stop())
    eventually(lambda: not site.server.workers.size, what="the worker ends")
