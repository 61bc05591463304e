"""Unix sockets, and what happens when the system lacks descriptors or places."""

from __future__ import annotations

import gc
import http.client
import logging
import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import unix_connect

from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.network import server as server_module
from krait_ws.network.server import Server
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import PATIENCE, TEXT, HandlerEcho, RawClient, eventually

Serve = Callable[..., SiteServer]


# ---- Unix sockets


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "krait.sock")


def test_a_unix_socket(serve: Serve, path: str) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> WebsocketsCtrlBase:
        seen.append((request.remote_addr, request.http.scheme, request.http.host))
        return HandlerEcho()

    site = serve(answer, unix=path)
    assert site.url == f"unix:{path}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.org"}
    with unix_connect(path, uri="ws://localhost/", additional_headers=forwarded) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"
    assert seen == [(None, "http", "localhost")]
    site.close()
    assert not os.path.exists(path)


def test_the_peer_of_a_unix_socket_is_a_proxy_when_it_is_named(serve: Serve, path: str) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> WebsocketsCtrlBase:
        seen.append((request.remote_addr, request.http.scheme, request.http.host))
        return HandlerEcho()

    serve(answer, unix=path, trusted_proxy="unix")
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.org"}
    origin: Any = "https://example.org"
    with unix_connect(path, uri="ws://localhost/", additional_headers=forwarded, origin=origin) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"
    assert seen == [("203.0.113.7", "https", "example.org")]


def test_plain_requests_over_a_unix_socket(serve_files: Serve, path: str) -> None:
    serve_files({"index.html": "home"}, unix=path)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    try:
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"home"
    finally:
        connection.close()


def test_the_socket_of_a_dead_server_is_replaced(serve: Serve, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    serve(HandlerEcho, unix=path)
    with unix_connect(path, uri="ws://localhost/") as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"


def test_paths_that_cannot_be_listened_on(tmp_path: Path, path: str) -> None:
    (tmp_path / "site").mkdir()

    def refusal(place: str) -> str:
        with pytest.raises(ConfigError) as caught:
            Server(tmp_path / "site", Config(unix=place))
        return str(caught.value)

    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        assert "another server" in refusal(path)
        assert os.path.exists(path)
    (tmp_path / "file").write_text("precious")
    assert "no socket" in refusal(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    assert "No such file" in refusal(str(tmp_path / "nowhere" / "krait.sock"))
    assert "too long" in refusal(str(tmp_path / ("x" * 200)))


# ---- addresses


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8", "::ffff:127.0.0.1"])
def test_a_proxy_with_an_ipv4_address_is_known_on_an_ipv6_socket(serve: Serve, trusted: str) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> WebsocketsCtrlBase:
        seen.append(request.remote_addr)
        return HandlerEcho()

    site = serve(answer, host="::", trusted_proxy=trusted)
    with RawClient(site.port, headers=("X-Forwarded-For: 203.0.113.7",)):
        assert seen == ["203.0.113.7"]


# ---- descriptors and places


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """``few_descriptors(n)``: the process may open ``n`` more than it has."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more: int) -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def test_without_descriptors_those_who_are_there_go_on(
    serve: Serve, few_descriptors: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # nothing that an earlier test has left may come free in the middle of this one
    site = serve(HandlerEcho)
    caplog.set_level(logging.WARNING, "krait_ws.server")

    def said(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    with ExitStack() as stack, RawClient(site.port) as client:
        # Made before there is a limit, connected when there is one: the client's side takes no new descriptor.
        socks = [stack.enter_context(socket.socket()) for _ in range(40)]
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        while stack.enter_context(socket.socket()).fileno() < highest:
            pass  # no hole is left for the server to use
        few_descriptors(10)
        for sock in socks:
            sock.connect(("127.0.0.1", site.port))
        eventually(lambda: said("no connection is accepted") == 1, what="the record of it")
        began = cpu_seconds()
        for number in range(100):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))
        time.sleep(0.7)  # some attempts to accept
        assert cpu_seconds() - began < 0.5, "it must not try again and again"
        assert said("no connection is accepted") == 1
        waiting = socks.pop()  # the last to come is not accepted yet
        # All of them between two attempts to accept: after a few it would lack descriptors once more.
        site.server.loop.call(lambda: [sock.close() for sock in socks])
        eventually(lambda: said("accepted again") == 1, what="the record of its end")
        waiting.settimeout(PATIENCE)
        waiting.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        assert waiting.recv(100).startswith(b"HTTP/1.1 ")
        assert said("no connection is accepted") == 1


def test_more_http_connections_than_places_wait_and_stall_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MAX_HTTP_CONNECTIONS", 3)
    site = serve(HandlerEcho)
    with RawClient(site.port) as client, ExitStack() as stack:
        idle = [stack.enter_context(RawClient(site.port, upgrade=False)) for _ in range(3)]
        eventually(lambda: len(site.server.greeting) == 3, what="the places are taken")
        late = stack.enter_context(RawClient(site.port, upgrade=False))
        late.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(20):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))
        late.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.sock.recv(1)
        late.sock.settimeout(PATIENCE)
        idle[0].close()
        assert late.read_answer().status == 404
