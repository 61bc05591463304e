"""The limits of requests and connections, who may connect, and whom a proxy may speak for."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest
from tests.integration.support import (
    PATIENCE,
    TEXT,
    HandlerEcho,
    RawClient,
    close_frame,
    eventually,
    upgrade_request,
)

Serve = Callable[..., SiteServer]
TELLING = """\
import json
import krait_ws

def http(request):
    told = [request.remote_addr, request.scheme, request.host, len(request.data)]
    return krait_ws.Response(json.dumps(told), mimetype="application/json")
"""


def refused(site: SiteServer, path: str = "/", **options: Any) -> Refused:
    with pytest.raises(Refused) as error:
        site.connect(path, **options)
    return error.value


# ---- connections


def test_too_many_connections_get_503(serve: Serve) -> None:
    site = serve(HandlerEcho, max_connections=3)
    clients = [RawClient(site.port) for _ in range(3)]
    try:
        error = refused(site)
        assert error.status == 503
        assert int(error.headers["Retry-After"]) >= 1
        for client in clients:
            client.send_frame(TEXT, "on")
            client.expect("on")
        clients[0].send(close_frame(1000))
        clients[0].expect_close(1000, answer=False)
        clients[0].close()
        eventually(lambda: len(site.server.sessions) == 2)
        clients[0] = RawClient(site.port)
        assert refused(site).status == 503
    finally:
        for client in clients:
            client.close()


def test_upgrades_at_the_same_moment_keep_to_the_limit(serve: Serve) -> None:
    """All are being decided before the first is accepted."""
    inside = threading.Semaphore(0)
    leave = threading.Event()

    def decide(request: WebsocketsRequest) -> WebsocketsCtrlBase:
        inside.release()
        assert leave.wait(PATIENCE)
        return HandlerEcho()

    site = serve(decide, max_connections=2)
    clients = [RawClient(site.port, upgrade=False) for _ in range(6)]
    try:
        for client in clients:
            client.send(upgrade_request())
        for _ in range(2):
            assert inside.acquire(timeout=PATIENCE)
        socks = [client.sock for client in clients]
        eventually(lambda: len(select.select(socks, [], [], 0)[0]) == 4, what="the others refused at once")
        leave.set()
        for client in clients:
            client.read_head()
        assert sorted(client.status for client in clients) == [101] * 2 + [503] * 4
    finally:
        leave.set()
        for client in clients:
            client.close()


def test_plain_requests_are_answered_beyond_the_limit(serve_files: Serve, serve: Serve) -> None:
    site = serve(HandlerEcho, max_connections=1)
    with RawClient(site.port):
        assert site.get("/").status == 426


# ---- requests


@pytest.mark.parametrize(
    ("size", "shape", "status"),
    [(3000, "one", 200), (5000, "one", 431), (5000, "many", 431), (100_000, "one", 431)],
)
def test_a_head_that_is_too_large_gets_431(serve_files: Serve, size: int, shape: str, status: int) -> None:
    site = serve_files({"index.html": "page"}, max_head_size=4096)
    if shape == "one":
        lines = [f"X-Large: {'x' * size}"]
    else:
        lines = [f"X-Large-{number}: {'x' * 50}" for number in range(size // 50)]
    with RawClient(site.port, upgrade=False) as client:
        try:
            client.send("\r\n".join(["GET / HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
        except OSError:
            assert status == 431  # it was answered before all was sent
        client.read_head()
        assert client.status == status


def test_an_upgrade_whose_head_is_too_large_gets_431(serve: Serve) -> None:
    site = serve(HandlerEcho, max_head_size=1024)
    assert refused(site, headers={"X-Large": "x" * 2000}).status == 431


@pytest.mark.parametrize(("size", "status"), [(0, 200), (1000, 200), (1001, 413), (10**12, 413)])
def test_a_body_that_is_too_large_gets_413(serve_files: Serve, size: int, status: int) -> None:
    site = serve_files({"index.py": TELLING}, max_body_size=1000)
    with RawClient(site.port, upgrade=False) as client:
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        client.send(head.encode() + (b"x" * size if status == 200 else b""))
        assert client.read_answer().status == status
        client.expect_end()


@pytest.mark.parametrize(
    "begun",
    [b"GET / HTTP/1.1\r\nHost: loc", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nsome"],
    ids=["head", "body"],
)
def test_a_request_that_does_not_come_whole_gets_408(serve_files: Serve, begun: bytes) -> None:
    site = serve_files({"index.py": TELLING}, handshake_timeout=0.3)
    started = time.monotonic()
    with RawClient(site.port, upgrade=False) as client:
        client.send(begun)
        client.read_head()
        assert client.status == 408
        assert time.monotonic() - started >= 0.28


@pytest.mark.parametrize("kind", ["file", "script", "stream"])
def test_a_client_that_does_not_take_its_answer_is_given_up(serve_files: Serve, kind: str) -> None:
    site = serve_files(
        {
            "file.bin": bytes(16 << 20),
            "script.py": "import krait_ws\n\ndef http(request):\n    return krait_ws.Response(bytes(16 << 20))\n",
            "stream.py": "import krait_ws\n\ndef http(request):\n"
            "    parts = int(request.args.get('parts', 256))\n"
            "    return krait_ws.Response((bytes(65536) for _ in range(parts)), mimetype='text/plain')\n",
        },
        send_timeout=0.3,
    )
    path = {"file": "/file.bin", "script": "/script", "stream": "/stream"}[kind]
    with RawClient(site.port, upgrade=False, receive_buffer=4096) as client:
        started = time.monotonic()
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        client.sock.recv(100)
        eventually(lambda: len(site.server._http_connections) == 0, what="the connection given up")
        assert time.monotonic() - started >= 0.28
    assert site.get("/stream?parts=1").status == 200  # a short one: we too may be too slow for a long one


def test_a_client_that_takes_its_answer_slowly_gets_it_whole(serve_files: Serve) -> None:
    size = 4 << 20
    site = serve_files({"file.bin": bytes(size)}, send_timeout=PATIENCE)
    with RawClient(site.port, upgrade=False, receive_buffer=64 * 1024) as client:
        client.send(b"GET /file.bin HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        client.read_head()
        received = len(client.buffered())
        while data := client.sock.recv(128 * 1024):
            received += len(data)
            threading.Event().wait(0.01)  # its slowness
    assert received == size


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_route_script_that_takes_too_long_gets_503(serve_files: Serve, kind: str) -> None:
    script = """\
import threading
import krait_ws
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

leave = threading.Event()
made = []

class Late(WebsocketsCtrlBase):
    def __init__(self):
        super().__init__()
        made.append(self)

def http(request):
    if "open" in request.args:
        leave.set()
        return krait_ws.Response("open")
    if "stopped" in request.args:
        return krait_ws.Response(str([ctrl.should_stop() for ctrl in made]))
    leave.wait(20)
    return krait_ws.Response("late")

def websocket(request):
    leave.wait(20)
    return WebsocketsResponse(Late())
"""
    site = serve_files({"index.py": script, "page.html": "page"}, script_timeout=0.3)
    try:
        started = time.monotonic()
        if kind == "http":
            answer = site.get("/")
            assert answer.status == 503
            headers = answer.headers
        else:
            error = refused(site)
            assert error.status == 503
            headers = dict(error.headers)
        assert time.monotonic() - started >= 0.28
        assert "retry-after" in {name.lower() for name in headers}
        # Tried again, here and below, where the machine is so slow that this one took too long as well.
        eventually(lambda: site.get("/page").text == "page")
    finally:
        eventually(lambda: site.get("/?open=1").text == "open")
        workers = site.server.workers  # what still runs when the server ends is left to itself
        eventually(lambda: not workers.is_busy)
    if kind == "websocket":  # its controller comes too late, and is ended
        eventually(lambda: site.get("/?stopped=1").text == "[True]")
        eventually(lambda: not site.server.sessions)


# ---- origins


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ("", None, True),
        ("", "http://evil.example", False),
        ("", "null", False),
        ("https://friend.example", "https://friend.example", True),
        ("https://friend.example", "http://friend.example", False),
        ("https://friend.example", "https://friend.example:8443", False),
        ("https://friend.example", "https://friend.example.evil.example", False),
        ("https://friend.example", "https://evil.example", False),
        ("https://friend.example", None, True),
        ("https://a.example , https://b.example:8443", "https://b.example:8443", True),
        ("https://a.example,https://b.example:8443", "https://a.example", True),
        ("null", "null", True),
        ("*", "https://evil.example", True),
        ("*", "null", True),
        ("https://friend.example, *", "https://evil.example", True),
    ],
)
def test_origins(serve: Serve, allowed: str, origin: str | None, passes: bool) -> None:
    site = serve(HandlerEcho, origin=allowed)
    if passes:
        with site.connect("/", origin=origin) as client:
            client.send("in")
            client.expect("in")
    else:
        error = refused(site, origin=origin)
        assert error.status == 403
        assert b"--origin" in error.body
    with site.connect("/", origin=site.url):  # the site's own passes in any case
        pass


# ---- proxies

FORWARDED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "public.example",
}


def telling_controller(request: WebsocketsRequest) -> WebsocketsCtrlBase:
    class Telling(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message(str(self.remote_addr))

    return Telling()


@pytest.mark.parametrize("trusted", ["127.0.0.1", "127.0.0.0/8", "10.0.0.0/8, 127.0.0.1", "127.0.0.1/32,::1"])
def test_a_trusted_proxy_speaks_for_its_clients(serve: Serve, trusted: str) -> None:
    site = serve(telling_controller, trusted_proxy=trusted)
    with site.connect("/", origin="https://public.example", headers=FORWARDED) as client:
        client.expect("203.0.113.9")
        client.expect_close(1000)
    assert refused(site, origin="https://evil.example", headers=FORWARDED).status == 403
    assert refused(site, origin="http://public.example", headers=FORWARDED).status == 403, "the wrong scheme"
    assert refused(site, origin=site.url, headers=FORWARDED).status == 403, "the proxy's inner address"


@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8", "127.0.0.2", "::1"])
def test_anybody_else_is_not_believed(serve: Serve, trusted: str) -> None:
    site = serve(telling_controller, trusted_proxy=trusted)
    assert refused(site, origin="https://public.example", headers=FORWARDED).status == 403
    with site.connect("/", origin=site.url, headers=FORWARDED) as client:
        client.expect("127.0.0.1")
        client.expect_close(1000)


def test_only_the_last_address_of_a_chain_counts(serve: Serve) -> None:
    """What stands before it was said by the client, who can say anything."""
    site = serve(telling_controller, trusted_proxy="127.0.0.1")
    with site.connect("/", headers={"X-Forwarded-For": "192.0.2.1, 198.51.100.2, 203.0.113.9"}) as client:
        client.expect("203.0.113.9")


@pytest.mark.parametrize(("trusted", "believed"), [("127.0.0.1", True), ("", False)])
def test_plain_requests_behind_a_proxy(serve_files: Serve, trusted: str, believed: bool) -> None:
    site = serve_files({"index.py": TELLING}, trusted_proxy=trusted)
    told = site.get("/", headers=FORWARDED).text
    expected = '["203.0.113.9", "https", "public.example", 0]'
    assert (told == expected) == believed, told
    if not believed:
        assert told == f'["127.0.0.1", "http", "127.0.0.1:{site.port}", 0]'
