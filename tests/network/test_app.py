"""What a WSGI application finds in ``wsgi.websocket``, without a server; and how an application is named."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from geventwebsocket.exceptions import WebSocketError
from werkzeug.test import EnvironBuilder

from krait_ws.errors import ConfigError
from krait_ws.network.app import AppSocket, load_app
from krait_ws.testing import Driver, drive
from tests.helpers import Task, own_thread


@contextmanager
def connected(protocol: str | None = None) -> Iterator[tuple[AppSocket, Driver]]:
    headers = {"Origin": "http://example.org", "Sec-WebSocket-Version": "13"}
    app_socket = AppSocket(EnvironBuilder("/some/path?q=1", headers=headers).get_environ(), protocol)
    with drive(app_socket.controller) as client:
        yield app_socket, client


@own_thread
def test_what_it_tells_of_the_request() -> None:
    with connected("chat") as (app_socket, _):
        assert app_socket.path == "/some/path"
        assert app_socket.origin == "http://example.org"
        assert app_socket.version == "13"
        assert app_socket.protocol == "chat"
        assert app_socket.environ["QUERY_STRING"] == "q=1"
        assert app_socket.closed is False
    assert app_socket.closed is True


@own_thread
def test_a_request_without_origin_and_protocol() -> None:
    app_socket = AppSocket(EnvironBuilder("/").get_environ(), None)
    assert app_socket.origin is None
    assert app_socket.protocol is None


@own_thread
def test_receive() -> None:
    with connected() as (app_socket, client):
        for message in ("text", b"bytes", "", b""):
            client.send(message)
            assert app_socket.receive() == message
        waiting = Task(app_socket.receive).until_blocked()
        client.send("later")
        assert waiting.result() == "later"


@own_thread
@pytest.mark.parametrize(
    ("message", "binary", "sent"),
    [
        ("text ä", None, "text ä"),
        (b"bytes", None, b"bytes"),
        (bytearray(b"array"), None, b"array"),
        (memoryview(b"view"), None, b"view"),
        ("text", True, b"text"),
        (b"\xc3\xa4", False, "ä"),
        ("ä", False, "ä"),
        (b"bytes", True, b"bytes"),
        ("", None, ""),
        (b"", None, b""),
    ],
)
def test_send(message: object, binary: bool | None, sent: str | bytes) -> None:
    with connected() as (app_socket, client):
        app_socket.send(message, binary)
        client.expect(sent)


@own_thread
def test_send_of_none_sends_nothing() -> None:
    with connected() as (app_socket, client):
        app_socket.send(None)
        app_socket.send(None, True)
        app_socket.send("next")
        client.expect("next")


@own_thread
def test_send_of_what_cannot_be_sent() -> None:
    with connected() as (app_socket, client):
        with pytest.raises(TypeError):
            app_socket.send(5)
        with pytest.raises(UnicodeDecodeError):
            app_socket.send(b"\xff", binary=False)
        app_socket.send("on")
        client.expect("on")


@own_thread
def test_a_receive_that_waits_gets_none_at_the_end() -> None:
    with connected() as (app_socket, client):
        waiting = Task(app_socket.receive).until_blocked()
        client.close()
        assert waiting.result() is None
        with pytest.raises(WebSocketError):
            app_socket.receive()


@own_thread
def test_what_had_arrived_can_be_received_after_the_end() -> None:
    with connected() as (app_socket, client):
        client.send("last")
        client.send("words")
        client.close()
        assert app_socket.closed
        assert app_socket.receive() == "last"
        assert app_socket.receive() == "words"


@own_thread
def test_send_after_the_end_raises() -> None:
    with connected() as (app_socket, client):
        client.close()
        with pytest.raises(WebSocketError):
            app_socket.send("late")
        app_socket.send(None)  # nothing is to be sent


@own_thread
@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ((), 1000, ""),
        ((4000,), 4000, ""),
        ((4000, "text ä"), 4000, "text ä"),
        ((4001, "bytes ä".encode()), 4001, "bytes ä"),
    ],
)
def test_close(arguments: tuple[object, ...], code: int, reason: str) -> None:
    with connected() as (app_socket, client):
        app_socket.close(*arguments)  # type: ignore[arg-type]
        assert app_socket.closed
        assert client.expect_close(code) == reason
        app_socket.close(1001, "the second does not count")
        assert app_socket.controller.close_code == code


# ---- load_app


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """``module("text")`` writes a module into the working folder and returns its name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(text: str) -> str:
        name = f"an_app_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("an_app_"):
            del sys.modules[name]


def test_load_app(module: Callable[[str], str]) -> None:
    name = module("def app(environ, start_response): return []\nclass Holder:\n    app = staticmethod(app)\n")
    app = load_app(f"{name}:app")
    assert app is sys.modules[name].app
    assert load_app(f"{name}:Holder.app") is app


def test_a_module_of_a_package() -> None:
    assert load_app("wsgiref.simple_server:demo_app").__name__ == "demo_app"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("module", "module:callable"),
        ("module:", "module:callable"),
        (":app", "module:callable"),
        (":", "module:callable"),
        (".relative:app", ".relative"),
        ("no_such_module_here:app", "no_such_module_here"),
        ("wsgiref.no_such_module:app", "no_such_module"),
        ("wsgiref.simple_server:no_such_name", "no_such_name"),
        ("wsgiref.simple_server:demo_app.no_such_name", "no_such_name"),
        ("wsgiref.simple_server:demo_app:more", "demo_app:more"),
        ("wsgiref.simple_server:__name__", "no callable"),
    ],
)
@pytest.mark.usefixtures("module")
def test_names_of_nothing(named: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_app(named)
    assert str(error.value).startswith("app: ")
    assert said in str(error.value)


def test_a_module_that_imports_what_is_not_there(module: Callable[[str], str]) -> None:
    name = module("import no_such_module_here\n")
    with pytest.raises(ConfigError, match="no_such_module_here"):
        load_app(f"{name}:app")
