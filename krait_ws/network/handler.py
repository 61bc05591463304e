"""From an accepted socket to a session: reads the HTTP head, lets the site decide, hands the socket over.

One instance and one greenlet serve one HTTP connection. After a 101 the socket goes to the network loop and the
greenlet ends; gevent-websocket's codec never carries a byte.
"""

from __future__ import annotations

import io
import logging
import os
import socket as socket_module
from collections.abc import Iterable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import gevent
from gevent.monkey import get_original
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler

from krait_ws.errors import HandshakeError
from krait_ws.network.app import AppSocket
from krait_ws.protocol import handshake
from krait_ws.protocol.deflate import Deflate, negotiate
from krait_ws.protocol.frames import ABNORMAL, INTERNAL_ERROR, NORMAL
from krait_ws.session import Session

if TYPE_CHECKING:
    pass

access_logger = logging.getLogger("krait_ws.access")
server_logger = logging.getLogger("krait_ws.server")

_NativeSocket: type[socket_module.socket] = get_original("socket", "socket")
_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _LimitedHead:
    """Reads header lines up to ``limit`` bytes together."""

    def __init__(self, rfile: Any, limit: int) -> None:
        self._rfile = rfile
        self._left = limit

    def readline(self, size: int) -> bytes:
        line: bytes = self._rfile.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException("the head of the request is too large")
        return line


class UpgradeHandler(WebSocketHandler):  # type: ignore[misc]
    """gevent's handler with the upgrade of krait-ws in gevent-websocket's place."""

    websocket: Session
    socket: Any
    _head_timeout: Any = None
    _requests = 0
    _deflate: Deflate | None = None

    # ---- the request's head, in limited time

    def handle_one_request(self) -> Any:
        config = self.server.krait.config
        seconds = config.keep_alive_timeout if self._requests else config.handshake_timeout
        self._head_timeout = gevent.Timeout.start_new(seconds)
        try:
            return super().handle_one_request()
        except gevent.Timeout as timeout:
            if timeout is not self._head_timeout:
                raise
            # A kept connection that said nothing is simply over; a request that does not come whole is told.
            return ("408", _TIMED_OUT) if self.requestline or not self._requests else None
        finally:
            self._head_timeout.close()

    def read_requestline(self) -> str:
        self.requestline = ""
        line: str = super().read_requestline()
        if self._requests:
            self._head_timeout.close()
            self._head_timeout = gevent.Timeout.start_new(self.server.krait.config.handshake_timeout)
        return line

    def get_environ(self) -> dict[str, Any]:
        """The head is here."""
        self._head_timeout.close()
        self._requests += 1
        environ: dict[str, Any] = super().get_environ()
        return environ

    def MessageClass(self, rfile: Any, *_: Any) -> Any:  # noqa: N802  the base class's name
        return super().MessageClass(_LimitedHead(rfile, self.server.krait.config.max_head_size))

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes]:
        if isinstance(error, HTTPException):  # too large, or more fields than http.client takes
            return "431", _HEAD_TOO_LARGE
        answer: tuple[str, bytes] = super()._handle_client_error(error)
        return answer

    # ---- the upgrade; run_application of the base class calls these two in this order

    def upgrade_websocket(self) -> Iterable[bytes] | None:
        """Sets ``self.websocket`` and starts a 101, or starts a refusal and returns its body, or does nothing for a
        plain request."""
        self.server.krait.apply_proxy_headers(self.environ)
        if not handshake.tries_upgrade(self.environ):
            return None
        try:
            handshake.check_upgrade(self.environ)
            handshake.check_origin(self.environ, self.server.krait.origins)
        except HandshakeError as error:
            self.close_connection = True
            body = error.reason.encode() + b"\n"
            self.start_response(error.status, [("Content-Type", "text/plain; charset=utf-8"), *error.headers])
            return [body]
        decision = self.server.krait.decide_upgrade(self.environ)
        if isinstance(decision, AppSocket):
            self.environ["wsgi.websocket"] = decision
            self.environ["wsgi.websocket_version"] = decision.version
            session = decision.controller._krait
        elif isinstance(decision, Session):
            session = decision
        else:
            return list(decision(self.environ, self.start_response))
        self.websocket = session
        negotiated = negotiate(self.environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""), session.config)
        self._deflate, extensions = negotiated or (None, None)
        headers = handshake.accept_headers(self.environ, session.protocol, extensions)
        self.start_response("101 Switching Protocols", headers)
        return None

    def run_websocket(self) -> None:
        """The 101 is sent: the socket moves to the network loop."""
        session = self.websocket
        self.close_connection = True
        self.socket.setblocking(False)
        received = self._buffered_bytes()
        # A duplicate, because gevent closes the handler's own socket when this greenlet ends.
        sock = _NativeSocket(self.socket.family, self.socket.type, self.socket.proto, os.dup(self.socket.fileno()))
        self.rfile.close()
        self.socket.close()
        self.socket = None  # else the base class would read from it before it closes it
        self.server.krait.adopt(sock, session, received, self._deflate)
        del self.websocket
        if "wsgi.websocket" in self.environ:
            self._run_app(session)

    def _run_app(self, session: Session) -> None:
        """The application talks in this greenlet; what it returns as the answer's body is nobody's."""
        try:
            list(self.server.krait.app(self.environ, lambda *_: lambda _data: None))
        except WebSocketError:
            session.end(NORMAL)  # it wrote to a connection that had ended
        except Exception:
            server_logger.exception("connection %s: the application raised", session.id)
            session.end(INTERNAL_ERROR)
        else:
            session.end(NORMAL)

    def run_application(self) -> None:
        try:
            super().run_application()
        finally:
            session = self.__dict__.pop("websocket", None)
            if session is not None:  # the 101 could not be sent, or no descriptor was left for the connection
                session.transport_gone(ABNORMAL)

    def _buffered_bytes(self) -> bytes:
        """What the client sent right behind its request and is in the reader's buffer already."""
        try:
            return bytes(self.rfile.peek())
        except OSError:
            return b""

    # ---- logs

    def log_request(self) -> None:
        access_logger.info("%s", self.format_request())

    def log_error(self, msg: str, *args: Any) -> None:
        server_logger.warning(msg, *args)

    @property
    def logger(self) -> logging.Logger:
        return server_logger


def read_body(environ: dict[str, Any], limit: int, seconds: float) -> None:
    """Replaces ``wsgi.input`` by the request's body in memory, because a route script runs in another thread and the
    socket belongs to this one.

    Raises:
        HandshakeError: 413 for a body above ``limit`` bytes, 408 for one that takes longer than ``seconds``.
    """
    length = environ.get("CONTENT_LENGTH") or "0"
    if length.isdigit() and int(length) > limit:
        raise HandshakeError("413 Content Too Large", f"the body must not exceed {limit} bytes")
    body = b""
    if length != "0" or environ.get("HTTP_TRANSFER_ENCODING"):
        timeout = gevent.Timeout(seconds)
        try:
            with timeout:
                body = environ["wsgi.input"].read(limit + 1)
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            raise HandshakeError("408 Request Timeout", "the body did not come in time") from None
    if len(body) > limit:
        raise HandshakeError("413 Content Too Large", f"the body must not exceed {limit} bytes")
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
