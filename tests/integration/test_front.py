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
from krait_ws.network import server as server_module
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
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
def test_what_is_sent_while_the_script_runs_is_a_message(serve: Serve, poller: str) -> None:
    gate = Gate()

    def late(request: Any) -> WebsocketsCtrlBase:
        gate.wait()
        return HandlerEcho()

    site = serve(late, poller=poller)
    with RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request())
        eventually(lambda: site.server.answering)
        client.send_frame(TEXT, "one")
        began = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - began < 0.15, "the loop does not look at the socket again and again"
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
    with RawClient(site.port, upgrade=False) as client:
        send(client, upgrade_request("/no"), piece)
        answer = client.read_answer()
        assert (answer.status, answer.body) == (403, b"not you")
        client.send(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().status == 404
        client.send(upgrade_request("/echo"))
        client.read_head()
        client.send_frame(TEXT, "on")
        client.expect("on")
    eventually(lambda: len(caplog.records) >= 3)
    lines = [record.getMessage() for record in caplog.records if record.name == "krait_ws.access"]
    times = [float(found[1]) for line in lines if (found := re.search(r"in (\d\.\d+) s", line))]
    assert times[0] >= 0.199
    assert all(seconds < 0.199 for seconds in times[1:])


@PIECES
def test_a_handshake_counts_once(serve: Serve, piece: int) -> None:
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
        eventually(lambda: made and made[0].wait_stopped(0))
        assert made[0].close_code == 1006
        eventually(lambda: not site.server.sessions and not site.server.admission.connections)
    with RawClient(site.port, "/echo") as client:
        client.send_frame(TEXT, "on")
        client.expect("on")


def test_silent_connections_get_408_all_of_them(serve: Serve) -> None:
    site = serve(HandlerEcho, handshake_timeout=0.3)
    clients = [RawClient(site.port, upgrade=False) for _ in range(20)]
    began = time.monotonic()
    for client in clients:
        assert client.read_answer().status == 408
        client.expect_end()
        client.close()
    assert 0.25 < time.monotonic() - began < 5
    eventually(lambda: not site.server.greeting)
    assert site.server._arrived == 0


def test_all_the_time_that_a_head_takes_counts(serve: Serve) -> None:
    """Whoever reads its pieces."""
    site = serve(HandlerEcho, handshake_timeout=0.4)
    with RawClient(site.port, upgrade=False) as client:
        began = time.monotonic()
        time.sleep(0.3)
        client.send(b"GET / HTTP/1.1\r\n")
        assert client.read_answer().status == 408
        assert time.monotonic() - began < 0.65


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
