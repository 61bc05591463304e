"""For the tests of your own site: a real server in the test process, a client, and controllers without any socket.

With pytest the fixture ``krait_site`` is there once krait-ws is installed::

    def test_echo(krait_site):
        site = krait_site("sites")
        with site.connect("/echo") as client:
            client.send("hello")
            client.expect("hello")

    def test_controller_alone():
        with drive(Echo()) as echo:
            echo.send("hello")
            echo.expect("hello")

Every wait has a deadline; what does not come in time is an ``AssertionError`` that says what was waited for.
"""

from __future__ import annotations

import contextvars
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import gevent
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from werkzeug.test import EnvironBuilder

from krait_ws import context
from krait_ws.config import Config
from krait_ws.context import WebsocketsRequest
from krait_ws.controller import WebsocketsCtrlBase
from krait_ws.http import Request
from krait_ws.mailbox import InMailbox
from krait_ws.network.server import Server
from krait_ws.protocol.frames import FIN, TEXT, Message, payload_of
from krait_ws.protocol.messages import Piece

DEFAULT_TIMEOUT = 20.0
"""Seconds that ``expect`` and its kin wait: a busy machine makes no test fail, a wrong one fails all the same."""

_MAX_CLIENT_MESSAGE = 64 << 20


class Refused(AssertionError):
    """The server answered an upgrade with something else than 101.

    Attributes:
        status: The HTTP status.
        body: The answer's body.
        headers: The answer's headers.
    """

    def __init__(self, status: int, body: bytes, headers: Any) -> None:
        super().__init__(f"the upgrade was refused with {status}: {body[:200]!r}")
        self.status = status
        self.body = body
        self.headers = headers


class Client:
    """One client of a site. Made by ``SiteServer.connect``; a context manager that closes it."""

    def __init__(self, manager: Any) -> None:
        self._exits = ExitStack()
        self._connection = self._exits.enter_context(manager)

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the server chose."""
        subprotocol: str | None = self._connection.subprotocol
        return subprotocol

    def send(self, message: str | bytes) -> None:
        """Sends text or binary."""
        self._connection.send(message)

    def receive(self, timeout: float = DEFAULT_TIMEOUT) -> Message:
        """The next message.

        Raises:
            AssertionError: None came in time, or the connection was closed.
        """
        try:
            message: Message = self._connection.recv(timeout)
        except TimeoutError:
            raise AssertionError(f"no message came within {timeout:g} s") from None
        except ConnectionClosed as closed:
            raise AssertionError(f"the connection was closed instead of a message: {closed}") from None
        return message

    def expect(self, message: Message, timeout: float = DEFAULT_TIMEOUT) -> None:
        """The next message must be this one."""
        received = self.receive(timeout)
        assert received == message, f"expected {message!r}, received {received!r}"

    def expect_close(self, code: int, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The server must close with this code; messages before that are skipped. Returns the reason.

        Code 1006 stands for an end without a close frame.
        """
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._connection.recv(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise AssertionError(f"the connection was not closed within {timeout:g} s") from None
        except ConnectionClosed as closed:
            got, reason = (1006, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)
        assert got == code, f"expected a close with {code}, got {got} {reason!r}"
        return reason

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes from the client's side and waits for the server's answer."""
        self._connection.close(code, reason)
        self._exits.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class SiteServer:
    """Serves a site from a thread of the test process, on a free port of the loopback interface.

    Args:
        site: The site's folder.
        options: Settings as in ``Config``, for example ``debug=True``.

    Raises:
        KraitError: As ``Server``.
    """

    def __init__(self, site: str | Path, **options: Any) -> None:
        self.server: Server
        self._config = Config(**{"port": 0, **options})
        self._site = Path(site)
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="krait-test-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        """Without a final slash, for example ``http://127.0.0.1:40123``."""
        return self.server.url

    def connect(
        self,
        path: str,
        *,
        protocols: Sequence[str] | None = None,
        headers: dict[str, str] | None = None,
        origin: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Client:
        """A client connected to ``path``.

        Raises:
            Refused: The server answered with something else than 101.
        """
        options: dict[str, Any] = {"subprotocols": protocols, "additional_headers": headers, "origin": origin}
        try:
            return Client(
                connect(
                    f"ws{self.url.removeprefix('http')}{path}",
                    open_timeout=timeout,
                    compression=None,
                    proxy=None,
                    max_size=_MAX_CLIENT_MESSAGE,
                    **options,
                )
            )
        except InvalidStatus as error:
            response = error.response
            raise Refused(response.status_code, bytes(response.body or b""), response.headers) from None

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """The answer to a plain request. ``path`` goes out as it is, so that attacks can be tried too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEFAULT_TIMEOUT)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def close(self) -> None:
        """Stops the server as a signal would, and waits for its end."""
        if self._thread.is_alive():
            self.server.request_stop()
            self._thread.join()

    def __enter__(self) -> SiteServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        hub = gevent.get_hub()
        try:
            self.server = Server(self._site, self._config)
            self.server.start()
        except BaseException as error:
            self._failure = error
            self._ready.set()
        else:
            self._ready.set()
            self.server.serve_forever()
        finally:
            hub.destroy(destroy_loop=True)


class Answer:
    """The answer to a plain request."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()


class Driver:
    """A controller without a socket. Made by ``drive``."""

    def __init__(self, controller: WebsocketsCtrlBase) -> None:
        self.controller = controller
        self._session = controller._krait
        self._pushed = InMailbox(Config())
        self._frames: list[bytes] = []  # of a message that is being pushed in parts
        self._lock = threading.Lock()
        self._session.outgoing.on_output = self._collect

    def send(self, message: Message) -> None:
        """What the client would send."""
        self._session.receive([message])

    def receive(self, timeout: float = DEFAULT_TIMEOUT) -> Message:
        """The next message that the controller pushed.

        Raises:
            AssertionError: None came in time.
        """
        message = self._pushed.pop(timeout)
        assert message is not None, f"the controller pushed nothing within {timeout:g} s"
        assert not isinstance(message, Piece)
        return message

    def expect(self, message: Message, timeout: float = DEFAULT_TIMEOUT) -> None:
        """The next message that the controller pushes must be this one."""
        pushed = self.receive(timeout)
        assert pushed == message, f"expected {message!r}, the controller pushed {pushed!r}"

    def expect_close(self, code: int, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The controller must end with this close code. Returns the reason."""
        assert self._session.ended.wait(timeout), f"the controller did not close within {timeout:g} s"
        got = self.controller.close_code
        assert got == code, f"expected a close with {code}, got {got} {self.controller.close_reason!r}"
        return self.controller.close_reason

    def close(self, code: int = 1000, reason: str = "") -> None:
        """The client closes."""
        self._session.end(code, reason)

    def _collect(self) -> None:
        with self._lock:
            while frames := self._session.outgoing.take(_MAX_CLIENT_MESSAGE):
                for frame in frames:
                    self._frames.append(frame)
                    if frame[0] >= FIN:
                        self._pushed.put([self._joined()])

    def _joined(self) -> Message:
        frames, self._frames = self._frames, []
        payload = b"".join(map(payload_of, frames))
        return payload.decode() if frames[0][0] & 0x0F == TEXT else payload


@contextmanager
def drive(
    controller: WebsocketsCtrlBase,
    url: str = "/",
    *,
    params: dict[str, str] | None = None,
    protocol: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Iterator[Driver]:
    """Starts a controller as if a client had connected to ``url``; at the end the client closes and the handler is
    joined.

    Args:
        controller: A new instance.
        url: Path and query of the request that the controller sees.
        params: What the ``[name]`` segments of its route would have matched.
        protocol: The chosen subprotocol.
        headers: Further headers of the request.
        timeout: Seconds that the handler has to end.

    Raises:
        AssertionError: The handler did not end.
    """
    all_headers: Any = {"Upgrade": "websocket", "Connection": "Upgrade", **(headers or {})}
    environ = EnvironBuilder(url, headers=all_headers).get_environ()
    session = controller._krait
    session.request = WebsocketsRequest(Request(environ, populate_request=False), params)
    session.protocol = protocol
    driver = Driver(controller)
    handler_context = contextvars.copy_context()
    handler_context.run(context.websockets_request.set, session.request)
    handler_context.run(controller.on_start)
    try:
        yield driver
    finally:
        driver.close()
        assert session.wait_over(timeout), f"the handler did not end within {timeout:g} s"


@pytest.fixture
def krait_site() -> Iterator[Callable[..., SiteServer]]:
    """``krait_site(folder, **options)`` serves a site; everything that it served is stopped when the test ends."""
    servers: list[SiteServer] = []

    def serve(site: str | Path, **options: Any) -> SiteServer:
        server = SiteServer(site, **options)
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.close()
