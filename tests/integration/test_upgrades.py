"""What route scripts say to an upgrade, in both forms, and that no two upgrades ever see each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from krait_ws.testing import Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
from tests.integration.support import (
    PATIENCE,
    TEXT,
    HandlerEcho,
    RawAnswer,
    RawClient,
    raw_get,
    route,
    upgrade_request,
)

Serve = Callable[..., SiteServer]

SCRIPT_FORM = """
from tests.integration.support import HandlerEcho

from krait_ws import websockets

if websockets.request is not None:
    websockets.response = websockets.WebsocketsResponse(HandlerEcho())
"""

FUNCTION_FORM = """
import krait_ws
from krait_ws.websockets import WebsocketsResponse
from tests.integration.support import HandlerEcho

calls = 0

def websocket(request):
    return WebsocketsResponse(HandlerEcho())

def http(request):
    global calls
    calls += 1
    return krait_ws.Response(f"{request.method} {request.path} {calls}")
"""


@pytest.mark.parametrize("script", [SCRIPT_FORM, FUNCTION_FORM], ids=["script", "function"])
def test_both_forms_accept(serve_files: Serve, script: str) -> None:
    site = serve_files({"echo.py": script})
    for _ in range(2):
        with site.connect("/echo") as client:
            client.send("hello")
            client.expect("hello")


def test_script_form_runs_each_time_and_function_form_keeps_its_state(serve_files: Serve) -> None:
    site = serve_files(
        {
            "script.py": "import krait_ws\nx = globals().get('x', 0) + 1\n"
            "krait_ws.response = krait_ws.Response(str(x))\n",
            "function.py": FUNCTION_FORM,
        }
    )
    assert [site.get("/script").text for _ in range(3)] == ["1", "1", "1"]
    assert [site.get("/function").text for _ in range(3)] == [f"GET /function {n}" for n in (1, 2, 3)]


def test_what_a_script_and_its_handler_see_of_the_request(serve_files: Serve) -> None:
    site = serve_files(
        {
            "rooms/[room].py": """
from krait_ws import websockets
import krait_ws

class Tells(websockets.WebsocketsCtrlBase):
    def on_thread_start(self):
        for request in (self.request, websockets.request):
            self.push_out_message(repr((
                request.path, request.params, request.query.getlist("q"), request.headers["X-Mine"],
                request.cookies.get("c"), request.origin, request.remote_addr, request.protocols, request.http.method,
            )))
        self.push_out_message(repr((self.protocol, self.remote_addr, krait_ws.request.path)))

def websocket(request):
    assert request is websockets.request
    assert krait_ws.request.path == request.path
    return websockets.WebsocketsResponse(Tells(), request.protocols[-1])
"""
        }
    )
    with site.connect(
        "/rooms/caf%C3%A9?q=1&q=2",
        protocols=["a", "b"],
        headers={"X-Mine": "mine", "Cookie": "c=crumb"},
        origin=site.url,
    ) as client:
        expected = (
            "/rooms/café",
            {"room": "café"},
            ["1", "2"],
            "mine",
            "crumb",
            site.url,
            "127.0.0.1",
            ["a", "b"],
            "GET",
        )
        client.expect(repr(expected))
        client.expect(repr(expected))
        client.expect(repr(("b", "127.0.0.1", "/rooms/café")))
        client.expect_close(1000)


# ---- refusals

REFUSALS: dict[str, tuple[str, int, str | None]] = {
    "nothing assigned": ("x = 1\n", 400, None),
    "nothing returned": ("def websocket(request):\n    return None\n", 400, None),
    "http only": ("import krait_ws\ndef http(request):\n    return krait_ws.Response('page')\n", 400, None),
    "response of script": (
        "from krait_ws import Response\nimport krait_ws\n"
        "krait_ws.response = Response('no entry', status=403, headers={'X-Why': 'because'})\n",
        403,
        "no entry",
    ),
    "response of function": (
        "import krait_ws\ndef websocket(request):\n"
        "    return krait_ws.Response('no entry', status=403, headers={'X-Why': 'because'})\n",
        403,
        "no entry",
    ),
    "bad request": ("import krait_ws\nkrait_ws.response = krait_ws.ResponseBadRequest()\n", 400, None),
    "not found": (
        "import krait_ws\nkrait_ws.response = krait_ws.ResponseNotFound('nobody here')\n",
        404,
        "nobody here",
    ),
    "werkzeug abort": ("from werkzeug.exceptions import abort\nabort(418)\n", 418, None),
    "exception": ("raise ValueError('the secret')\n", 500, None),
    "exception in function": ("def websocket(request):\n    raise ValueError('the secret')\n", 500, None),
    "syntax error": ("def websocket(request:\n", 500, None),
    "exit": ("raise SystemExit(3)\n", 500, None),
    "wrong type": ("def websocket(request):\n    return 'the secret'\n", 500, None),
    "class instead of instance": (
        "from krait_ws.websockets import *\n"
        "def websocket(request):\n    return WebsocketsResponse(WebsocketsCtrlBase)\n",
        500,
        None,
    ),
    "constructor raises": (
        "from krait_ws.websockets import *\n"
        "class C(WebsocketsCtrlBase):\n    def __init__(self):\n        raise ValueError('the secret')\n"
        "def websocket(request):\n    return WebsocketsResponse(C())\n",
        500,
        None,
    ),
    "on_start raises": (
        "from krait_ws.websockets import *\n"
        "class C(WebsocketsCtrlBase):\n    def on_start(self):\n        raise ValueError('the secret')\n"
        "def websocket(request):\n    return WebsocketsResponse(C())\n",
        500,
        None,
    ),
    "on_start raises after the start": (
        "from krait_ws.websockets import *\n"
        "class C(WebsocketsCtrlBase):\n    def on_start(self):\n        super().on_start()\n"
        "        raise ValueError('the secret')\n"
        "    def on_thread_start(self):\n        self.wait_stop()\n"
        "def websocket(request):\n    return WebsocketsResponse(C())\n",
        500,
        None,
    ),
    "bad setting of the class": (
        "from krait_ws.websockets import *\n"
        "class C(WebsocketsCtrlBase):\n    max_in_messages = 0\n"
        "def websocket(request):\n    return WebsocketsResponse(C())\n",
        500,
        None,
    ),
    "handler on the loop": (
        "from krait_ws.websockets import *\n"
        "class C(WebsocketsCtrlBase):\n    runs_on = 'loop'\n    def on_thread_start(self):\n        pass\n"
        "def websocket(request):\n    return WebsocketsResponse(C())\n",
        500,
        None,
    ),
    "protocol that was not offered": (
        "from krait_ws.websockets import *\n"
        "def websocket(request):\n    return WebsocketsResponse(WebsocketsCtrlBase(), 'secret')\n",
        500,
        None,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_upgrades(serve_files: Serve, caplog: pytest.LogCaptureFixture, name: str) -> None:
    script, status, body = REFUSALS[name]
    site = serve_files({"index.py": script})
    for protocols in (None, ["a", "b"]):
        caplog.clear()
        with pytest.raises(Refused) as refused:
            site.connect("/", protocols=protocols)
        assert refused.value.status == status
        assert b"secret" not in refused.value.body
        if body is not None:
            assert refused.value.body.decode() == body
        if status == 403:
            assert refused.value.headers["X-Why"] == "because"
        errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == (1 if status == 500 else 0), caplog.text
        assert all(record.exc_info for record in errors)
    assert site.server.sessions == set()


def test_redirect_of_an_upgrade(serve_files: Serve) -> None:
    site = serve_files({"index.py": "import krait_ws\nkrait_ws.response = krait_ws.ResponseRedirect('/other')\n"})
    answer = raw_upgrade(site)
    assert answer.status == 302
    assert answer.headers["location"] == "/other"


def raw_upgrade(site: SiteServer, *headers: str, request: bytes = b"") -> RawAnswer:
    client = RawClient(site.port, upgrade=False)
    try:
        client.send(request or upgrade_request("/", headers))
        return client.read_answer()
    finally:
        client.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Sec-WebSocket-Version: 8",), 426),
        (("Sec-WebSocket-Version: -",), 426),
        (("Sec-WebSocket-Key: short",), 400),
        (("Sec-WebSocket-Key: -",), 400),
        (("Connection: close",), 400),
        (("Sec-WebSocket-Protocol: a b c",), 400),
    ],
)
def test_handshakes_that_are_wrong(serve: Serve, headers: tuple[str, ...], status: int) -> None:
    answer = raw_upgrade(serve(HandlerEcho), *headers)
    assert answer.status == status
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"


def test_handshake_with_another_method_or_version(serve: Serve) -> None:
    site = serve(HandlerEcho)
    request = upgrade_request()
    assert raw_upgrade(site, request=request.replace(b"GET", b"PUT", 1)).status == 405
    assert raw_upgrade(site, request=request.replace(b"HTTP/1.1", b"HTTP/1.0", 1)).status == 505


def test_header_names_and_tokens_compare_in_any_case(serve: Serve) -> None:
    site = serve(lambda request: WebsocketsResponse(HandlerEcho(), request.protocols[-1]))
    headers = (
        "Upgrade: -",
        "UPGRADE: h2c , WebSocket",
        "Connection: -",
        "connection: keep-alive",
        "CONNECTION:  ,  uPgRaDe ",
        "sec-websocket-protocol:  a ,b",
        "SEC-WEBSOCKET-PROTOCOL: c",
    )
    with RawClient(site.port, headers=headers) as client:
        assert "sec-websocket-protocol: c" in client.head.lower()
        client.send_frame(TEXT, "hello")
        client.expect("hello")


def test_accepted_upgrade_has_the_headers_of_the_rfc(serve: Serve) -> None:
    with RawClient(
        serve(HandlerEcho).port,
        headers=("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: a"),
    ) as client:
        lines = client.head.lower().split("\r\n")
        assert lines[0].startswith("http/1.1 101 ")
        assert "upgrade: websocket" in lines
        assert "connection: upgrade" in lines
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in lines
        for name in ("sec-websocket-protocol", "sec-websocket-extensions", "content-length", "transfer-encoding"):
            assert not any(line.startswith(name) for line in lines), name


def test_pages_of_other_sites_may_not_connect(serve: Serve) -> None:
    site = serve(HandlerEcho)
    for origin in (None, site.url):
        site.connect("/", origin=origin).close()
    for origin in (
        "http://evil.example",
        f"http://127.0.0.1:{site.port + 1}",
        f"https://127.0.0.1:{site.port}",
        "null",
    ):
        with pytest.raises(Refused) as refused:
            site.connect("/", origin=origin)
        assert refused.value.status == 403
    site = serve(HandlerEcho, origin="https://friend.example, https://other.example")
    site.connect("/", origin="https://friend.example").close()
    with pytest.raises(Refused):
        site.connect("/", origin="https://evil.example")


def test_plain_requests_to_a_websocket_route_get_426(serve_files: Serve) -> None:
    site = serve_files(
        {
            "function.py": route(HandlerEcho),
            "script.py": SCRIPT_FORM,
            "regardless.py": (
                "from krait_ws import websockets\n"
                "websockets.response = websockets.WebsocketsResponse(websockets.WebsocketsCtrlBase())\n"
            ),
        }
    )
    for path in ("/function", "/script", "/regardless"):
        answer = site.get(path)
        assert answer.status == 426, path
        assert answer.headers["Upgrade"] == "websocket"


def test_upgrade_of_what_is_no_script(serve_files: Serve) -> None:
    site = serve_files({"page.html": "page", "data.txt": "data"})
    for path, status in [("/page", 400), ("/data.txt", 400), ("/nothing", 404)]:
        with pytest.raises(Refused) as refused:
            site.connect(path)
        assert refused.value.status == status, path


def test_importing_the_names_does_not_accept(serve_files: Serve) -> None:
    """``from krait_ws.websockets import response`` copies ``None``: the assignment stays in the script."""
    site = serve_files(
        {
            "index.py": "from krait_ws.websockets import response, WebsocketsCtrlBase, WebsocketsResponse\n"
            "response = WebsocketsResponse(WebsocketsCtrlBase())\n"
        }
    )
    with pytest.raises(Refused) as refused:
        site.connect("/")
    assert refused.value.status in (400, 500)


# ---- hundreds at once

CROSSING = """
import time

import krait_ws
from krait_ws import websockets
from tests.integration.test_upgrades import Identity

mine = krait_ws.request.args["n"]
time.sleep(0.02)
if websockets.request is None:
    krait_ws.response = krait_ws.Response(mine)
    time.sleep(0.02)
    assert krait_ws.response.get_data(as_text=True) == mine
elif int(mine) % 3 == 0:
    krait_ws.response = krait_ws.Response("refused " + mine, status=403)
    time.sleep(0.02)
    assert websockets.response is None
else:
    assert websockets.request.protocols == ["never", "p" + mine], websockets.request.protocols
    websockets.response = websockets.WebsocketsResponse(Identity(mine), "p" + mine)
    time.sleep(0.02)
    assert websockets.response.protocol == "p" + mine
    assert krait_ws.response is None
assert krait_ws.request.args["n"] == mine
"""


class Identity(WebsocketsCtrlBase):
    """Says whose it is, by every way to know it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_thread_start(self) -> None:
        from krait_ws import websockets

        seen = websockets.request
        assert seen is not None
        assert seen is self.request
        self.push_out_message(f"{self.name} {self.protocol} {seen.query['n']} {seen.protocols}")
        self.pop_in_message(None)


@pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
def test_hundreds_of_parallel_upgrades_do_not_see_each_other(serve_files: Serve, runs_on: str) -> None:
    site = serve_files({"index.py": CROSSING}, runs_on=runs_on)
    url = site.url.replace("http", "ws", 1)

    async def upgrade(number: int) -> None:
        protocols: Any = ["never", f"p{number}"]
        if number % 3 == 0:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{url}/?n={number}", proxy=None, subprotocols=protocols, open_timeout=PATIENCE)
            assert refused.value.response.status_code == 403
            assert refused.value.response.body == f"refused {number}".encode()
            return
        async with connect(f"{url}/?n={number}", proxy=None, subprotocols=protocols, open_timeout=PATIENCE) as client:
            assert client.subprotocol == f"p{number}"
            assert await client.recv() == f"{number} p{number} {number} {['never', f'p{number}']}"

    async def request(number: int) -> None:
        answer = await asyncio.to_thread(raw_get, site.port, f"/?n={number}".encode())
        assert (answer.status, answer.body) == (200, str(number).encode())

    async def everybody() -> None:
        await asyncio.gather(*(upgrade(n) for n in range(300)), *(request(n) for n in range(1000, 1060)))

    asyncio.run(asyncio.wait_for(everybody(), 60))
