"""From an accepted socket to a session: reads the HTTP request, lets the site decide, hands the socket over.

One instance and one greenlet serve one HTTP connection. After a 101 the socket goes to the network loop and the
greenlet ends; gevent-websocket's codec never carries a byte.
"""

from __future__ import annotations

import errno
import io
import logging
import socket as socket_module
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.monkey import get_original
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler
from greenlet import GreenletExit, getcurrent
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.errors import HandshakeError, RequestError
from krait_ws.logs import Answered, connection_fields, escaped, log_failure, redacted_target
from krait_ws.network.app import AppSocket
from krait_ws.network.tls import TlsSocket
from krait_ws.protocol import handshake
from krait_ws.protocol.deflate import Deflate, negotiate
from krait_ws.protocol.frames import ABNORMAL, INTERNAL_ERROR, NORMAL
from krait_ws.protocol.head import body_size, check_field_line, check_request_line
from krait_ws.session import Session

server_logger = logging.getLogger("krait_ws.server")

_PART = 64 * 1024  # bytes of an answer that a client has send_timeout for
_NativeSocket: type[socket_module.socket] = get_original("socket", "socket")


class _Head:
    """The field lines of a head, checked one by one, up to ``limit`` bytes together."""

    def __init__(self, rfile: Any, limit: int) -> None:
        self._rfile = rfile
        self._left = limit

    def readline(self, size: int) -> bytes:
        line: bytes = self._rfile.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException("the head of the request is too large")
        check_field_line(line)
        return line


class _ReadInput:
    """Stands where the base class keeps the request's body: it has been read, or will not be."""

    def _discard(self) -> None:
        """Called by: the base class, which would read the rest of a body for as long as the client sends it."""


class UpgradeHandler(WebSocketHandler):  # type: ignore[misc]
    """gevent's handler with the upgrade of krait-ws in gevent-websocket's place."""

    environ: Any
    websocket: Session
    socket: Any
    path: Any
    rfile: Any
    _timeout: Any = None
    _requests = 0
    _deflate: Deflate | None = None
    _opened: Session | None = None
    _unread = ""  # why the request could not be read

    def handle(self) -> None:
        rfile = self.rfile
        try:
            with suppress(OSError):  # the client is gone
                super().handle()
        finally:
            rfile.close()  # not when the traceback of a cut request is collected at last, in whatever thread

    # ---- the request's head, in limited time

    def handle_one_request(self) -> Any:
        config = self.server.krait.config
        self.environ = None  # not that of the request before
        self._limit_time(config.keep_alive_timeout if self._requests else config.handshake_timeout)
        try:
            result = super().handle_one_request()
        except gevent.Timeout as timeout:
            if timeout is not self._timeout:
                raise
            # A kept connection that said nothing is simply over; a request that does not come whole is told.
            result = _answer("408 Request Timeout") if self.requestline or not self._requests else None
        finally:
            self._timeout.close()
            self.server.krait.answering.discard(getcurrent())
        if isinstance(result, tuple):  # the base class sends it, to a client that may take nothing
            self.socket.settimeout(config.send_timeout)
        return result

    def read_requestline(self) -> str:
        self.requestline = ""
        line: str = super().read_requestline()
        if self._requests:
            self._limit_time(self.server.krait.config.handshake_timeout)
        return line

    def read_request(self, raw_requestline: str) -> bool:
        check_request_line(raw_requestline)
        read: bool = super().read_request(raw_requestline)
        # The base class knows "close" only as the whole header (RFC 9112 section 9.6).
        options = ",".join(self.headers.get_all("Connection", ())).lower().split(",")
        if "close" in (option.strip() for option in options):
            self.close_connection = True
        hosts = self.headers.get_all("Host", ())
        if len(hosts) > 1 or (not hosts and self.request_version == "HTTP/1.1"):
            raise RequestError("400 Bad Request", "there must be one Host header")
        if self.path.lower().startswith(("http://", "https://")):
            # A server takes the absolute form too (RFC 9112 section 3.2.2).
            url = urlsplit(self.path)
            self.path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self.content_length = body_size(
            self.headers.get_all("Content-Length", ()), self.headers.get_all("Transfer-Encoding", ())
        )
        if self.content_length > self.server.krait.config.max_body_size:
            raise RequestError("413 Content Too Large", "the body is too large")
        return read

    def MessageClass(self, rfile: Any, *_: Any) -> Any:  # noqa: N802  the base class's name
        return super().MessageClass(_Head(rfile, self.server.krait.config.max_head_size))

    def get_environ(self) -> dict[str, Any]:
        """The head is here; now the body, because a route script runs in another thread and the socket belongs to this
        one."""
        environ: dict[str, Any] = super().get_environ()
        self._requests += 1
        krait = self.server.krait
        krait.greeting.discard(getcurrent())
        krait.answering.add(getcurrent())
        if krait.is_stopping:
            self.close_connection = True
        environ["wsgi.input"] = io.BytesIO(self._read_body())
        environ["wsgi.input_terminated"] = True
        self.wsgi_input = _ReadInput()
        self._timeout.close()
        return environ

    def _read_body(self) -> bytes:
        if not self.content_length:
            return b""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body: bytes = self.rfile.read(self.content_length)
        if len(body) < self.content_length:
            raise ConnectionResetError("the client went away inside its request")
        return body

    def _sendall(self, data: bytes | bytearray) -> None:
        """A client that does not take its answer is given up, else it would hold its place for ever."""
        self.socket.settimeout(self.server.krait.config.send_timeout)
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PART):
                super()._sendall(view[start : start + _PART])
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the client does not take its answer") from None
        finally:
            self.socket.settimeout(None)

    @property
    def _client(self) -> str:
        """The other end of the socket, which may be a proxy."""
        address = self.client_address
        return str(address[0]) if isinstance(address, tuple) else str(address or "")

    def _limit_time(self, seconds: float) -> None:
        if self._timeout is not None:
            self._timeout.close()
        self._timeout = gevent.Timeout.start_new(seconds)

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes] | None:
        """The answer to a request that could not be read; ``None`` when there is nobody to answer."""
        if isinstance(error, OSError):
            return None
        if isinstance(error, RequestError):
            status = error.status
        elif isinstance(error, HTTPException):  # too large, or more fields than http.client takes
            status = "431 Request Header Fields Too Large"
        else:
            status = "400 Bad Request"
        # What gevent's parser and the standard library say may hold the request's own words.
        self._unread = error.reason if isinstance(error, RequestError) else "the request cannot be read"
        return _answer(status)

    # ---- the upgrade; run_application of the base class calls the next two in this order

    def upgrade_websocket(self) -> Iterable[bytes] | None:
        """Sets ``self.websocket`` and starts a 101, or starts a refusal and returns its body, or does nothing for a
        plain request."""
        krait = self.server.krait
        krait.apply_proxy_headers(self.environ)
        if not handshake.tries_upgrade(self.environ):
            return None
        refusal = krait.admission.check_handshake(self.environ.get("REMOTE_ADDR", ""))
        if refusal is not None:
            return self._refuse(refusal)
        try:
            handshake.check_upgrade(self.environ)
            handshake.check_origin(self.environ, krait.origins)
        except HandshakeError as error:
            krait.counters.refused("origin" if error.status.startswith("403") else "malformed")
            self.close_connection = True
            body = error.reason.encode() + b"\n"
            self.start_response(error.status, [("Content-Type", "text/plain; charset=utf-8"), *error.headers])
            return [body]
        decision = krait.decide_upgrade(self.environ)
        if isinstance(decision, AppSocket):
            self.environ["wsgi.websocket"] = decision
            self.environ["wsgi.websocket_version"] = decision.version
            session = decision.controller._krait
        elif isinstance(decision, Session):
            session = decision
        else:
            return self._refuse(decision)
        self.websocket = session
        negotiated = negotiate(self.environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""), session.config)
        self._deflate, extensions = negotiated or (None, None)
        headers = handshake.accept_headers(self.environ, session.protocol, extensions)
        self.start_response("101 Switching Protocols", headers)
        return None

    def _refuse(self, answer: WerkzeugResponse) -> Iterable[bytes]:
        """Starts an answer that is no 101 and returns its body. One that is to come again later gives up its HTTP
        connection, for others to come in meanwhile."""
        if answer.status_code in (429, 503):
            self.close_connection = True
        return list(answer(self.environ, self.start_response))

    def run_websocket(self) -> None:
        """The 101 is sent: the socket moves to the network loop."""
        session = self.websocket
        self.close_connection = True
        self.socket.setblocking(False)
        received = self._buffered_bytes()
        sock = self.socket
        if isinstance(sock, TlsSocket):
            received += sock.leave_greenlet(_native)
        else:
            sock = _native(sock)
        self.rfile.close()
        self.socket = None  # else the base class would read from it before it closes it
        self.server.krait.adopt(sock, session, received, self._deflate)
        self._opened = session
        del self.websocket
        if "wsgi.websocket" in self.environ:
            self._run_app(session)

    def run_application(self) -> None:
        try:
            super().run_application()
        finally:
            session = self.__dict__.pop("websocket", None)
            if session is not None:  # the 101 could not be sent, or the connection could not be made
                session.transport_gone(ABNORMAL)

    def process_result(self) -> None:
        if self.command == "HEAD":  # the base class would end a body that was never begun
            self.write(b"")
        else:
            super().process_result()

    def _run_app(self, session: Session) -> None:
        """The application talks in this greenlet; what it returns as the answer's body is nobody's."""
        try:
            list(self.server.krait.app(self.environ, lambda *_: lambda _data: None))
        except WebSocketError:
            session.end(NORMAL)  # it wrote to a connection that had ended
        except Exception as error:
            message = "connection %s: the application raised"
            log_failure(server_logger, error, self.environ, message, session.id, **connection_fields(session))
            session.end(INTERNAL_ERROR)
        else:
            session.end(NORMAL)

    def _buffered_bytes(self) -> bytes:
        """What the client sent right behind its request and is in the reader's buffer already."""
        try:
            return bytes(self.rfile.peek())
        except OSError:
            return b""

    def _connection_upgrade_requested(self) -> bool:
        """The base class asks whether the application reads the socket itself; here none ever does."""
        return False

    # ---- logs

    def log_request(self) -> None:
        if self.environ is None:
            Answered(
                self._client, "-", "-", int(str(self.status)[:3]), error=self._unread or str(self.status)[4:]
            ).log()
            return
        opened, self._opened = self._opened, None
        Answered(
            self.environ.get("REMOTE_ADDR", ""),
            self.command,
            self.path,
            abs(self.code) if self.status else 0,  # negative when the client did not take the answer
            bytes_out=self.response_length or 0,
            seconds=self.time_finish - self.time_start,
            session=opened,
        ).log()

    def _log_error(self, kind: Any, error: Any, trace: Any) -> None:
        """Called by: the base class, for what the application or krait-ws itself raised."""
        if issubclass(kind, SystemExit | KeyboardInterrupt):
            super()._log_error(kind, error, trace)
        elif not issubclass(kind, GreenletExit):
            target = redacted_target(self.path)
            log_failure(server_logger, error, self.environ, "%s %s: the request failed", self.command, target)

    def log_error(self, msg: str, *args: Any) -> None:
        server_logger.warning("%s", escaped(msg % args if args else msg))

    @property
    def logger(self) -> logging.Logger:
        return server_logger


def _native(sock: Any) -> socket_module.socket:
    """The system's socket under gevent's, which is of no use afterwards."""
    return _NativeSocket(sock.family, sock.type, sock.proto, sock.detach())


def _answer(status: str) -> tuple[str, bytes]:
    """Status and bytes of an answer without a body, after which the connection closes."""
    return status, f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
