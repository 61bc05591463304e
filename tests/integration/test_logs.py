"""Everything that a run logs, with secrets in every place where a client can put one."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from krait_ws import log_output
from krait_ws.config import Config
from krait_ws.log_output import configure
from krait_ws.testing import SiteServer
from tests.integration.support import (
    PATIENCE,
    TEXT,
    RawClient,
    close_frame,
    eventually,
    http_exchange,
    raw_get,
    upgrade_request,
)

Serve = Callable[..., SiteServer]


class Log:
    """What goes to stderr."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.flush: Callable[[], None] = lambda: None

    @property
    def text(self) -> str:
        self.flush()
        return self.stream.getvalue()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("event") == name]


@pytest.fixture(params=["json", "text"])
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(log_format: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """The log as ``krait-ws serve`` makes it, from DEBUG on."""
    monkeypatch.setattr(log_output, "_FLUSH_TIMEOUT", PATIENCE)  # its thread may be in the middle of a line
    root = logging.getLogger()
    access = logging.getLogger("krait_ws.access")
    before = root.handlers[:], root.level, access.level
    log = Log()
    writer = configure(Config(log_format=log_format, log_level="debug"), log.stream)
    log.flush = writer.flush
    yield log
    writer.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    access.setLevel(before[2])


SCRIPT = """\
import krait_ws
from krait_ws import auth, websockets
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse


def everything(request):
    args = request.query if hasattr(request, "query") else request.args
    return [*request.headers.values(), *request.cookies.values(), *args.values()]


class Failing(WebsocketsCtrlBase):
    def on_thread_start(self):
        self.log.info("begins")
        message = self.pop_in_message(None)
        if message == "log":
            try:
                raise RuntimeError(f"logged: {everything(self.request)!r}")
            except RuntimeError:
                self.log.exception("caught")
        if message == "raise":
            raise RuntimeError(f"handler: {everything(self.request)!r}")
        self.push_out_message("fine")

    def on_stop(self):
        super().on_stop()
        if self.close_code == 1001 or self.request.query.get("stop"):
            raise LookupError(*everything(self.request))


def websocket(request):
    if request.query.get("at") == "script":
        int(request.query["token"])
    if request.query.get("at") == "protocol":
        return WebsocketsResponse(Failing(), "never offered")
    if request.query.get("at") == "answer":
        return everything(request)
    if request.query.get("at") == "auth":
        auth.require_basic(request, {"ada": "another password"})
    return WebsocketsResponse(Failing(), (request.protocols or [None])[0])


def parts(request):
    yield "first"
    raise KeyError("in a part: " + request.args["token"])


def http(request):
    if "stream" in request.args:
        return krait_ws.Response(parts(request))
    if "token" in request.args:
        raise KeyError(request.args["token"], *everything(request))
    return krait_ws.Response("fine")
"""

PASSWORD = "s3cret-password"
SECRETS = {
    "query": "s3cret-query",
    "cookie": "s3cret-cookie",
    "password": PASSWORD,
    "basic": base64.b64encode(f"ada:{PASSWORD}".encode()).decode(),
    "bearer": "s3cret-bearer",
    "protocol": "s3cret-protocol",
    "api-key": "s3cret-api-key",
    "userinfo": "s3cret-userinfo",
}
HEADERS = (
    f"Cookie: session={SECRETS['cookie']}; other=1",
    f"Authorization: Basic {SECRETS['basic']}",
    f"X-Auth-Token: {SECRETS['bearer']}",
    f"X-Api-Key: {SECRETS['api-key']}",
    f"Sec-WebSocket-Protocol: {SECRETS['protocol']}",
)


def attempt(site: SiteServer, at: str, *more: str) -> None:
    """An upgrade that is refused."""
    with RawClient(site.port, upgrade=False) as client:
        client.send(upgrade_request(f"/?at={at}&token={SECRETS['query']}", (*HEADERS, *more)))
        client.read_answer()
        assert client.status >= 400


def broken_application(environ: dict[str, Any], start_response: Any) -> Any:
    raise RuntimeError({name: str(value) for name, value in environ.items()})


@pytest.mark.parametrize("log_format", ["json", "text"], indirect=True)
def test_nothing_that_is_logged_has_a_secret_in_it(
    serve_files: Serve, log: Log, log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    site = serve_files(
        {"index.py": SCRIPT}, app=f"{__name__}:broken_application", max_head_size=4096, close_timeout=0.5
    )
    for at in ("script", "protocol", "answer", "auth", "x"):
        attempt(site, at, *(("Origin: http://ada:s3cret-userinfo@evil.example",) if at == "x" else ()))
    for lines in (("Sec-WebSocket-Version: 12",), ("Sec-WebSocket-Key: s3cret-query",), ("Upgrade: s3cret-query",)):
        attempt(site, "x", *lines)
    headers = [line.encode() for line in HEADERS]
    query = b"?token=s3cret-query&s3cret-query"
    assert raw_get(site.port, b"/" + query, *headers).status == 500
    assert raw_get(site.port, b"/" + query + b"&stream=1", *headers).body.startswith(b"5\r\nfirst")
    assert raw_get(site.port, b"/nowhere" + query, *headers).status == 500, "the application"
    assert raw_get(site.port, b"http://ada:s3cret-userinfo@localhost/x.html" + query, *headers).status == 500
    for broken in (
        b"GET /?token=s3cret-query HTTP/9.9\r\n\r\n",
        b"GET /?token=s3cret-query\r\n\r\n",
        b"s3cret-query\r\n\r\n",
        b"POST /?token=s3cret-query HTTP/1.1\r\nHost: x\r\nContent-Length: s3cret-query\r\n\r\n",
        b"GET /?token=s3cret-query HTTP/1.1\r\nHost: x\r\nCookie s3cret-cookie\r\n\r\n",
        b"GET /?token=s3cret-query HTTP/1.1\r\nHost: x\r\nCookie: " + b"s3cret-cookie" * 500 + b"\r\n\r\n",
        b"CONNECT ada:s3cret-userinfo@host:443 HTTP/1.1\r\nHost: host:443\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as sock:
            sock.sendall(broken)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    for message, query in (("raise", ""), ("log", ""), ("leave", "&stop=1")):
        with RawClient(site.port, f"/?token=s3cret-query{query}", headers=HEADERS) as client:
            client.send_frame(TEXT, message)
            client.skip_to_close()
    with RawClient(site.port, "/nowhere" + "?token=s3cret-query", headers=HEADERS) as client:
        client.skip_to_close()
    with RawClient(site.port, "/?token=s3cret-query", headers=HEADERS):
        eventually(lambda: log.text.count("begins") == 4)
        site.close()

    text = log.text + "".join(capfd.readouterr())
    found = {name: secret for name, secret in SECRETS.items() if secret in text}
    assert not found, [line for line in text.splitlines() if any(secret in line for secret in found.values())][:5]
    # It said what happened all the same.
    for said in (
        "/?at=*&token=*",
        "ValueError: invalid literal for int() with base 10: '[redacted]'",
        "RouteScriptError",
        "raise RuntimeError(f",
        "handler: [",
        "logged: [",
        "LookupError: ",
        "KeyError: ",
        "in a part: [redacted]",
        "the application raised",
        "the request failed",
        "*@host:443",
    ):
        assert said in text.replace('\\"', '"'), said
    if log_format == "json":
        assert all({"time", "level", "logger", "message"} <= set(record) for record in log.records)


@pytest.mark.parametrize("log_format", ["json"], indirect=True)
def test_a_line_for_each_request_and_each_connection(serve_files: Serve, log: Log) -> None:
    site = serve_files(
        {
            "room/[name].py": "from krait_ws.websockets import *\n"
            "class Echo(WebsocketsCtrlBase):\n"
            "    def on_thread_start(self):\n"
            "        self.log.warning('hello', extra={'mood': 'fine'})\n"
            "        for message in self.messages():\n"
            "            self.push_out_message(message)\n"
            "def websocket(request):\n"
            "    return WebsocketsResponse(Echo())\n",
            "page.txt": "0123456789",
        },
        trusted_proxy="127.0.0.1",
    )
    raw_get(site.port, b"/page.txt?a=1", b"X-Forwarded-For: 203.0.113.9")
    raw_get(site.port, b"/none")
    raw_get(site.port, b"/room/1", method=b"GET")
    with RawClient(site.port, "/room/lobby?name=Ada", headers=("X-Forwarded-For: 203.0.113.9",)) as client:
        for _ in range(3):
            client.send_frame(TEXT, "x" * 100)
            client.expect("x" * 100)
        client.send(close_frame(4000))
        client.expect_close(4000, answer=False)
    with RawClient(site.port, "/room/lobby") as client:
        client.reset()
    closed = eventually(lambda: len(log.events("closed")) == 2 and log.events("closed"))

    def said() -> list[dict[str, Any]]:
        return [record for record in log.records if record["logger"] == "krait_ws.controller"]

    own = eventually(lambda: len(said()) == 2 and said())  # a handler may begin when its client has gone already
    requests = [(one["client"], one["method"], one["target"], one["status"]) for one in log.events("request")]
    assert requests == [
        ("203.0.113.9", "GET", "/page.txt?a=*", 200),
        ("127.0.0.1", "GET", "/none", 404),
        ("127.0.0.1", "GET", "/room/1", 426),
    ]
    assert log.events("request")[0]["bytes_out"] >= 10
    opened = log.events("opened")
    assert "bytes_out" not in opened[0]
    assert [(one["client"], one["target"], one["status"]) for one in opened] == [
        ("203.0.113.9", "/room/lobby?name=*", 101),
        ("127.0.0.1", "/room/lobby", 101),
    ]
    assert [one["connection"] for one in opened] == [one["connection"] for one in closed]
    first, second = closed
    assert {name: first[name] for name in ("client", "route", "controller", "code", "messages_in", "messages_out")} == {
        "client": "203.0.113.9", "route": "/room/[name]", "controller": "Echo", "code": 4000,
        "messages_in": 3, "messages_out": 3,
    }  # fmt: skip
    assert first["bytes_in"] >= 3 * 106
    assert first["bytes_out"] >= 3 * 102
    assert first["seconds"] >= 0
    assert second["code"] == 1006
    assert [(one["connection"], one["route"], one["controller"], one["mood"], one["level"]) for one in own] == [
        (one["connection"], "/room/[name]", "Echo", "fine", "warning") for one in opened
    ]


@pytest.mark.parametrize("log_format", ["json"], indirect=True)
def test_a_request_that_cannot_be_read_is_not_taken_for_the_one_before(serve_files: Serve, log: Log) -> None:
    site = serve_files({"page.txt": "text"})
    answers = http_exchange(
        site.port, b"GET /page.txt HTTP/1.1\r\nHost: x\r\n\r\nGET /page.txt HTTP/1.1\r\nno field\r\n\r\n"
    )
    assert [answer.status for answer in answers] == [200, 400]
    first, second = eventually(lambda: len(log.events("request")) == 2 and log.events("request"))
    assert (first["target"], first["status"]) == ("/page.txt", 200)
    assert (second["method"], second["target"], second["status"]) == ("-", "-", 400)
    assert second["error"] == "a header field cannot be read"


@pytest.mark.parametrize("log_format", ["text"], indirect=True)
def test_the_lines_in_text(serve_files: Serve, log: Log) -> None:
    site = serve_files({"index.py": SCRIPT})
    raw_get(site.port, b"/x\x1b[2J")
    with RawClient(site.port) as client:
        client.send_frame(TEXT, "fine")
        client.skip_to_close()
    eventually(lambda: "closed connection" in log.text)
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    patterns = [
        rf"{time} INFO krait_ws\.access: 127\.0\.0\.1 - - 400 the request line cannot be read",
        rf"{time} INFO krait_ws\.access: 127\.0\.0\.1 GET / 101 in \d+\.\d{{3}} s, opened connection \w{{8}} / Failing",
        rf"{time} INFO krait_ws\.controller: connection \w{{8}}: begins",
        rf"{time} INFO krait_ws\.access: 127\.0\.0\.1 closed connection \w{{8}} / Failing with 1000 after "
        r"\d+\.\d{3} s; in 1 messages, \d+ bytes; out 1 messages, \d+ bytes",
    ]
    lines = log.text.splitlines()
    for pattern in patterns:
        assert [line for line in lines if re.fullmatch(pattern, line)], (pattern, lines)
