"""Each limit attacked by clients: what they get, who else suffers, and that nothing of it is left over."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from krait_ws import Response, handlers
from krait_ws.network.server import Server
from krait_ws.testing import Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    PATIENCE,
    TEXT,
    EventEcho,
    HandlerEcho,
    RawAnswer,
    RawClient,
    close_frame,
    eventually,
    upgrade_request,
)

Serve = Callable[..., SiteServer]


def refused(site: SiteServer, path: str = "/", **options: Any) -> Refused:
    with pytest.raises(Refused) as error:
        site.connect(path, **options)
    return error.value


def ask(site: SiteServer, *headers: str, path: str = "/") -> RawAnswer:
    """The answer to an upgrade, which must be no 101."""
    with RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request(path, headers))
        answer = client.read_answer()
        assert answer.status != 101
        if answer.status in (429, 503):
            assert int(answer.headers["retry-after"]) >= 1
            client.expect_end()
        return answer


def is_empty(server: Server) -> bool:
    admission = server.admission
    return (admission.connections, admission.threads, admission._connections_of, len(server.sessions)) == (0, 0, {}, 0)


@contextmanager
def leaves_no_place(site: SiteServer) -> Iterator[None]:
    yield
    eventually(lambda: is_empty(site.server), what="every place given back")


# ---- connections of one address


def test_the_11th_connection_of_an_address_limited_to_10(serve: Serve) -> None:
    ran = []

    def decide(request: Any) -> HandlerEcho:
        ran.append(request.path)
        return HandlerEcho()

    site = serve(decide, max_connections_per_address=10)
    with leaves_no_place(site), ExitStack() as exits:
        clients = [exits.enter_context(RawClient(site.port)) for _ in range(10)]
        answer = ask(site)
        assert (answer.status, answer.body) == (429, b"Too many connections from your address.\n")
        assert len(ran) == 10, "no script ran for it"
        assert refused(site).status == 429
        for client in clients:
            client.send_frame(TEXT, "on")
            client.expect("on")
        clients[3].reset()
        eventually(lambda: len(site.server.sessions) == 9)
        with RawClient(site.port):
            assert ask(site).status == 429


def test_addresses_behind_a_trusted_proxy_are_counted_apart(serve: Serve) -> None:
    site = serve(HandlerEcho, max_connections_per_address=2, trusted_proxy="127.0.0.1")
    with leaves_no_place(site), ExitStack() as exits:
        for address in ("203.0.113.1", "203.0.113.1", "2001:db8::1", "2001:db8::ffff:2", "198.51.100.7, 203.0.113.2"):
            exits.enter_context(RawClient(site.port, headers=(f"X-Forwarded-For: {address}",)))
        assert ask(site, "X-Forwarded-For: 203.0.113.1").status == 429
        assert ask(site, "X-Forwarded-For: 2001:db8::3").status == 429, "the same /64"
        with RawClient(site.port, headers=("X-Forwarded-For: 203.0.113.1, 203.0.113.2",)):
            assert ask(site, "X-Forwarded-For: 203.0.113.2").status == 429
        with RawClient(site.port, headers=("X-Forwarded-For: 2001:db8:0:1::3",)):
            pass


def test_a_forged_header_gets_round_nothing(serve: Serve) -> None:
    site = serve(HandlerEcho, max_connections_per_address=1, max_handshakes_per_address=1000)
    with RawClient(site.port):
        for number in range(20):
            assert ask(site, f"X-Forwarded-For: 203.0.113.{number}").status == 429


# ---- handshakes


def test_a_flood_of_handshakes_of_one_address(serve: Serve) -> None:
    ran = []

    def decide(request: Any) -> Response:
        ran.append(request)
        return Response("no", status=403)

    site = serve(decide, max_handshakes_per_address=20, trusted_proxy="127.0.0.1")
    with leaves_no_place(site):
        started = time.monotonic()
        statuses = [ask(site, "X-Forwarded-For: 203.0.113.1").status for _ in range(300)]
        seconds = time.monotonic() - started
        assert set(statuses) <= {403, 429}
        assert statuses[:20] == [403] * 20
        # So most were refused, unless the machine is so busy that it took a quarter of a minute for all of them.
        assert 20 <= statuses.count(403) <= 20 + 20 * seconds + 1
        assert len(ran) == statuses.count(403)
        assert ask(site, "X-Forwarded-For: 203.0.113.2").status == 403, "others do not suffer"
        eventually(lambda: ask(site, "X-Forwarded-For: 203.0.113.1").status == 403, what="it may come again")


def test_malformed_handshakes_count_too_and_plain_requests_do_not(serve: Serve) -> None:
    # One, and the next one 20 s later: however slowly these come, they come too fast.
    site = serve(HandlerEcho, max_handshakes_per_address=0.05, trusted_proxy="127.0.0.1")
    lines = ("X-Forwarded-For: 203.0.113.1", "Sec-WebSocket-Version: 12", "Connection: close")
    assert [ask(site, *lines).status for _ in range(4)] == [400, 429, 429, 429]
    for _ in range(20):
        assert site.get("/", headers={"X-Forwarded-For": "203.0.113.1"}).status == 426


def test_retry_after_is_the_time_that_it_takes(serve: Serve) -> None:
    site = serve(HandlerEcho, max_handshakes_per_address=0.05)
    started = time.monotonic()
    with RawClient(site.port):
        told = int(ask(site).headers["retry-after"])
        assert 20 - (time.monotonic() - started) <= told <= 20


# ---- threads


class Both(WebsocketsCtrlBase):
    """Two handlers and an on_stop: three threads."""

    def on_thread_start(self) -> None:
        for message in self.messages():
            self.push_out_message(message)

    def on_in_message(self, message: Any) -> None:
        super().on_in_message(message)

    def on_stop(self) -> None:
        super().on_stop()


class Loop(EventEcho):
    runs_on = "loop"


class Greenlet(HandlerEcho):
    runs_on = "greenlet"


def test_threads_run_out_and_everything_else_goes_on(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    site = serve({"one": HandlerEcho, "both": Both, "loop": Loop, "greenlet": Greenlet}, max_threads=4)
    with leaves_no_place(site), ExitStack() as exits:
        clients = [exits.enter_context(RawClient(site.port, path)) for path in ("/one", "/both")]
        assert site.server.admission.threads == 4
        for path in ("/one", "/both"):
            answer = ask(site, path=path)
            assert (answer.status, answer.body) == (503, b"The server is busy.\n")
        clients += [exits.enter_context(RawClient(site.port, path)) for path in ("/loop", "/greenlet", "/loop")]
        for client in clients:
            client.send_frame(TEXT, "on")
            client.expect("on")
        clients[1].send(close_frame(1000))
        clients[1].expect_close(1000, answer=False)
        clients[1].close()
        eventually(lambda: site.server.admission.threads == 1)
        clients += [exits.enter_context(RawClient(site.port, "/one")) for _ in range(3)]
        assert ask(site, path="/one").status == 503
    assert not [record for record in caplog.records if record.exc_info]
    told = [record.getMessage() for record in caplog.records if record.name == "krait_ws.admission"]
    assert told == ["upgrades are refused: max_threads is reached"]


def test_the_system_gives_no_thread(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = serve({"one": HandlerEcho, "both": Both, "loop": Loop})
    real = handlers._start_new_thread
    left = 0

    def start(run: Callable[[], None], arguments: tuple[()]) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        real(run, arguments)

    with leaves_no_place(site):
        monkeypatch.setattr(handlers, "_start_new_thread", start)
        assert ask(site, path="/one").status == 503
        left = 1  # for the first of two handlers
        assert ask(site, path="/both").status == 503
        with RawClient(site.port, "/loop") as client:
            client.send_frame(TEXT, "on")
            client.expect("on")
        monkeypatch.undo()
        with RawClient(site.port, "/both") as client:
            client.send_frame(TEXT, "on")
            client.expect("on")
    told = [record.getMessage() for record in caplog.records if record.name == "krait_ws.admission"]
    assert told == ["upgrades are refused: the system gives no thread for a handler: can't start new thread"]
    assert not [record for record in caplog.records if record.name == "krait_ws.site"], "no failure of a script"


# ---- nothing is left over

MANY = int(os.environ.get("TEST_UPGRADES", "800"))
"""Upgrades of each kind; 10,000 of each take some three minutes."""


def flood(workers: int, each: int, attack: Callable[[], None]) -> None:
    """``attack`` again and again in several threads."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(each):
                attack()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def lost_upgrade(port: int) -> None:
    """Asks for an upgrade and is gone before the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(upgrade_request())


@pytest.mark.parametrize("kind", ["refused", "raised", "lost", "raced", "ended"])
def test_nothing_leaks_over_many_upgrades(serve: Serve, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")

    def decide(request: Any) -> Any:
        if kind == "refused":
            return Response("no", status=403)
        if kind == "raised":
            raise RuntimeError("a script that fails")
        return Greenlet() if kind == "ended" else Loop()

    limit = 2 if kind == "raced" else 1000
    site = serve(decide, max_connections_per_address=limit, max_connections=1000, max_threads=1000)

    def attack() -> None:
        if kind == "lost":
            lost_upgrade(site.port)
            return
        with RawClient(site.port, upgrade=False) as client:
            client.send(upgrade_request())
            client.read_head()
            expected = {"refused": (403,), "raised": (500,), "raced": (101, 429), "ended": (101,)}[kind]
            assert client.status in expected
            if client.status == 101:
                client.reset()

    with leaves_no_place(site):
        flood(8, MANY // 8, attack)
