"""A WSGI application behind the site (``--app``): plain requests, ``wsgi.websocket``, and python-socketio's server."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from geventwebsocket.exceptions import WebSocketError

from krait_ws.errors import ConfigError
from krait_ws.testing import Refused, SiteServer
from tests.integration.support import (
    BINARY,
    CLOSE,
    PING,
    POLLERS,
    PONG,
    TEXT,
    HandlerEcho,
    RawClient,
    close_frame,
    eventually,
    frame,
    raw_get,
    route,
)

ServeApp = Callable[..., SiteServer]


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """What ``app="tests.integration.test_app:application"`` names; ``serve_app`` puts another in its place."""
    raise NotImplementedError


@pytest.fixture
def serve_app(serve_files: Callable[..., SiteServer], monkeypatch: pytest.MonkeyPatch) -> ServeApp:
    """``serve_app(app)`` serves a WSGI application behind a site of a page and a route script."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def serve_app(app: Any, **options: Any) -> SiteServer:
        monkeypatch.setattr(sys.modules[__name__], "application", app)
        files = {"page.html": "a page of the site", "echo.py": route(HandlerEcho)}
        return serve_files(files, app=f"{__name__}:application", **options)

    return serve_app


def telling(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Says what it was asked."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-App", "here")])
    said = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ['QUERY_STRING']} ".encode()
    return [said, body, b" upgrade" if "wsgi.websocket" in environ else b""]


# ---- plain requests


def test_the_app_gets_what_the_site_has_no_file_for(serve_app: ServeApp) -> None:
    site = serve_app(telling)
    assert site.get("/page").text == "a page of the site"
    answer = site.get("/no/such/file?q=1")
    assert (answer.status, answer.text) == (200, "GET /no/such/file q=1 ")
    assert answer.headers["X-App"] == "here"
    assert site.get("/").text.startswith("GET / ")
    assert site.get("/echo").status == 426, "the site's own"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_methods_and_bodies(serve_app: ServeApp, method: str) -> None:
    site = serve_app(telling)
    body = bytes(range(256)) * 100
    answer = site.get("/any", method=method, body=body)
    assert answer.body == f"{method} /any  ".encode() + body


def test_files_that_are_private_go_to_the_app_too(serve_app: ServeApp) -> None:
    """The site has no such file, as far as anybody can tell."""
    site = serve_app(telling)
    for path in ("/echo.py", "/_private", "/.hidden", "/../outside"):
        answer = raw_get(site.port, path.encode())
        assert b"class" not in answer.body
        assert b"made" not in answer.body


def test_head_of_the_app(serve_app: ServeApp) -> None:
    site = serve_app(telling)
    answer = site.get("/any", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_an_app_that_streams(serve_app: ServeApp) -> None:
    def streaming(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"%d " % number for number in range(1000))

    assert serve_app(streaming).get("/any").body == b"".join(b"%d " % number for number in range(1000))


def test_an_app_that_raises(serve_app: ServeApp, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("a secret of the app")
        return telling(environ, start_response)

    site = serve_app(failing)
    answer = site.get("/any")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert site.get("/any").status == 200


def test_an_app_that_is_not_there(serve_app: ServeApp, serve_files: Callable[..., SiteServer]) -> None:
    with pytest.raises(ConfigError, match="no_such_app"):
        serve_files({"page.html": "page"}, app=f"{__name__}:no_such_app")


# ---- wsgi.websocket


def echoing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    websocket = environ["wsgi.websocket"]
    while not websocket.closed:
        message = websocket.receive()
        if message is None:
            break
        websocket.send(message)
    return []


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compress"])
def test_an_echo(serve_app: ServeApp, poller: str, compress: bool) -> None:
    site = serve_app(echoing, poller=poller, compress=compress)
    with RawClient(site.port, "/any") as client:
        for opcode, message in ((TEXT, "text ä"), (BINARY, b"\x00\xff"), (TEXT, ""), (BINARY, bytes(1 << 20))):
            client.send_frame(opcode, message)
            client.expect(message)
        client.send(b"".join(frame(TEXT, str(number)) for number in range(2000)))
        for number in range(2000):
            client.expect(str(number))
        client.send_frame(PING, b"there?")
        assert client.receive_frame().opcode == PONG
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)
    eventually(lambda: not site.server.sessions)


def test_the_site_comes_first(serve_app: ServeApp) -> None:
    site = serve_app(echoing)
    with site.connect("/echo") as client:
        client.send("to the route script")
        client.expect("to the route script")
    with pytest.raises(Refused) as refused:
        site.connect("/page")
    assert refused.value.status == 400


def test_what_the_socket_tells(serve_app: ServeApp) -> None:
    def telling_socket(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        assert websocket.environ is environ
        for told in (websocket.path, websocket.origin, websocket.protocol, websocket.version, websocket.closed):
            websocket.send(repr(told))
        websocket.send(repr(environ["wsgi.websocket_version"]))
        return []

    site = serve_app(telling_socket)
    with RawClient(site.port, "/some/path?q=1", headers=("Origin: http://localhost",)) as client:
        for told in ("/some/path", "http://localhost", None, "13", False, "13"):
            client.expect(repr(told))
        client.expect_close(1000)
    with RawClient(site.port, headers=("Sec-WebSocket-Protocol: a, b",)) as client:
        assert "sec-websocket-protocol" not in client.head.lower(), "the app has chosen none"
        for told in ("/", None, None):
            client.expect(repr(told))


def test_app_protocol_chooses_the_subprotocol(serve_app: ServeApp) -> None:
    class App:
        def app_protocol(self, path: str) -> str:
            return {"/b": "b", "/none": ""}.get(path, "not offered")

        def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ["wsgi.websocket"].send(repr(environ["wsgi.websocket"].protocol))
            return []

    site = serve_app(App())
    for path, chosen in (("/b", "b"), ("/other", None), ("/none", None)):
        with site.connect(path, protocols=["a", "b"]) as client:
            assert client.protocol == chosen
            client.expect(repr(chosen))


@pytest.mark.parametrize(("arguments", "code", "reason"), [((), 1000, ""), ((4321, "enough ä"), 4321, "enough ä")])
def test_the_app_closes(serve_app: ServeApp, arguments: tuple[Any, ...], code: int, reason: str) -> None:
    seen: list[Any] = []

    def closing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        websocket.send("before")
        websocket.close(*arguments)
        seen.append(websocket.closed)
        try:
            websocket.send("late")
        except WebSocketError:
            seen.append("refused")
        return []

    with RawClient(serve_app(closing).port) as client:
        client.expect("before")
        assert client.expect_close(code) == reason
    assert seen == [True, "refused"]


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close, "close frame"])
def test_the_client_leaves_while_the_app_waits(serve_app: ServeApp, leave: Any) -> None:
    seen: list[Any] = []

    def waiting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        websocket = environ["wsgi.websocket"]
        websocket.send("waiting")
        seen.append(websocket.receive())
        seen.append(websocket.closed)
        websocket.receive()  # raises, and that is nobody's mistake
        seen.append("not reached")
        return []

    site = serve_app(waiting)
    with RawClient(site.port) as client:
        client.expect("waiting")
        if leave == "close frame":
            client.send(close_frame(1000))
            assert client.receive_frame().opcode == CLOSE
            client.close()
        else:
            leave(client)
        eventually(lambda: not site.server.sessions)
    eventually(lambda: len(seen) == 2)
    assert seen == [None, True]


def test_an_app_that_raises_closes_with_1011(serve_app: ServeApp, caplog: pytest.LogCaptureFixture) -> None:
    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.websocket"].send("before")
        raise LookupError("a secret of the app")

    with RawClient(serve_app(failing).port) as client:
        client.expect("before")
        assert client.expect_close(1011) == ""
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR


def test_an_app_that_ignores_the_socket(serve_app: ServeApp) -> None:
    with RawClient(serve_app(telling).port) as client:
        client.expect_close(1000)


def test_a_client_that_does_not_read_holds_up_no_other(serve_app: ServeApp) -> None:
    def pushing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/push":
            while True:
                environ["wsgi.websocket"].send(bytes(64 * 1024))
        return echoing(environ, start_response)

    site = serve_app(pushing)
    with RawClient(site.port, "/push", receive_buffer=4096), RawClient(site.port, "/echo-app") as client:
        for number in range(200):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))
    eventually(lambda: not site.server.sessions)


def test_protocol_faults_are_ours_to_find(serve_app: ServeApp) -> None:
    site = serve_app(echoing)
    with RawClient(site.port) as client:
        client.send(frame(TEXT, "x", masked=False))
        client.expect_close(1002)
    with RawClient(site.port) as client:
        client.send(frame(TEXT, b"\xff"))
        client.expect_close(1007)


def test_the_servers_end_closes_the_apps_connections(serve_app: ServeApp) -> None:
    site = serve_app(echoing)
    with RawClient(site.port) as client:
        stopping = threading.Thread(target=site.close)
        stopping.start()
        client.expect_close(1001)
        client.close()
        stopping.join(20)
        assert not stopping.is_alive()


# ---- python-socketio


@pytest.mark.parametrize(
    "transports", [["websocket"], ["polling"], ["polling", "websocket"]], ids=["websocket", "polling", "upgrade"]
)
def test_socketio(serve_app: ServeApp, transports: list[str]) -> None:
    socketio = pytest.importorskip("socketio")
    pytest.importorskip("requests")
    server = socketio.Server(async_mode="gevent", monitor_clients=False)
    gone: list[str] = []

    @server.event
    def connect(sid: str, environ: dict[str, Any]) -> None: ...

    @server.event
    def disconnect(sid: str, reason: str) -> None:
        gone.append(sid)

    @server.event
    def echo(sid: str, data: Any) -> str:
        server.emit("back", data, to=sid)
        return "taken"

    site = serve_app(socketio.WSGIApp(server))
    client = socketio.Client(reconnection=False)
    received: list[Any] = []
    client.on("back", received.append)
    client.connect(site.url, transports=transports, wait_timeout=20)
    try:
        eventually(lambda: client.transport() == transports[-1])
        sent: list[Any] = [{"a": 1}, "text ä", b"\x00\xff" * 1000, [1, "two", None], "x" * 200_000]
        for number, data in enumerate(sent):
            assert client.call("echo", data, timeout=20) == "taken"
            eventually(lambda number=number: len(received) > number)
        assert received == sent
        assert site.get("/page").text == "a page of the site"
    finally:
        client.disconnect()
        client.wait()
    eventually(lambda: gone)
    eventually(lambda: not site.server.sessions)
