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
from typing import Any

import gevent
from gevent.monkey import get_original
from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import WebSocketHandler
from greenlet import GreenletExit, getcurrent
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.errors import RequestError
from krait_ws.logs import Answered, connection_fields, escaped, log_failure, redacted_target
from krait_ws.network.app import AppSocket
from krait_ws.network.tls import TlsSocket
from krait_ws.network.upgrades import Begun, Malformed, switching
from krait_ws.protocol import handshake
from krait_ws.protocol.deflate import Deflate
from krait_ws.protocol.frames import ABNORMAL, INTERNAL_ERROR, NORMAL
from krait_ws.protocol.head import Head, check_field_line, check_request_line, parse_head
from krait_ws.session import Session

server_logger = logging.getLogger("krait_ws.server")

_PART = 64 * 1024  # bytes of an answer that a client has send_timeout for
_NativeSocket: type[socket_module.socket] = get_original("socket", "socket")


class _Received(io.RawIOBase):
    """What has been read of a connection, then the rest of it.

    Args:
        received: The former.
        rest: Where the latter is read from; closed with this.
    """

    def __init__(self, received: bytes, rest: Any) -> None:
        self._received = received
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._received:
            size: int | None = self._rest.readinto(buffer)
            return size
        part = self._received[: len(buffer)]
        buffer[: len(part)] = part
        self._received = self._received[len(part) :]
        return len(part)

    def close(self) -> None:
        super().close()
        self._rest.close()


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
    _head: Head
    _deflate: Deflate | None = None
    _opened: Session | None = None
    _spent = 0.0  # seconds before time_start
    _unread = ""  # why the request could not be read

    def __init__(self, sock: Any, address: Any, server: Any, begun: Begun) -> None:
        """
        Args:
            sock: A socket of gevent, or a ``TlsSocket``.
            address: Of the client.
            server: gevent's, with a ``krait`` of ours.
            begun: What has been done about the first request.
        """
        rfile = None
        if begun.received:
            # Larger than what is there already, so that it is in the buffer and not behind it (``_buffered_bytes``).
            size = max(io.DEFAULT_BUFFER_SIZE, len(begun.received))
            rfile = io.BufferedReader(_Received(begun.received, sock.makefile("rb", 0)), size)
        super().__init__(sock, address, server, rfile)
        self._begun = begun

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
        self._limit_time(config.keep_alive_timeout if self._requests else self._begun.seconds)
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
        self.requestline = raw_requestline.rstrip()
        check_request_line(raw_requestline)
        head = self._head = parse_head(raw_requestline.encode("latin-1") + self._read_fields())
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.close_connection = head.closes
        self.content_length = head.body_size
        if head.body_size > self.server.krait.config.max_body_size:
            raise RequestError("413 Content Too Large", "the body is too large")
        return True

    def _read_fields(self) -> bytes:
        """The rest of the head. Each line is checked as it comes: what is wrong is not waited for."""
        left = self.server.krait.config.max_head_size
        lines: list[bytes] = []
        while not lines or lines[-1] not in (b"\r\n", b"\n"):
            lines.append(self.rfile.readline(left + 1))
            left -= len(lines[-1])
            if left < 0:
                raise RequestError("431 Request Header Fields Too Large", "the head of the request is too large")
            check_field_line(lines[-1])
        return b"".join(lines)

    def get_environ(self) -> dict[str, Any]:
        """The head is here; now the body, because a route script runs in another thread and the socket belongs to this
        one."""
        environ: dict[str, Any] = self.server.krait.new_environ(self._head, self.client_address)
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
        if "100-continue" in (value.lower() for value in self._head.values("expect")):
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
            self._unread = error.reason
            return _answer(error.status)
        raise error

    # ---- the upgrade; run_application of the base class calls the next two in this order

    def upgrade_websocket(self) -> Iterable[bytes] | None:
        """Sets ``self.websocket`` and sends a 101, or starts a refusal and returns its body, or does nothing for a
        plain request."""
        krait = self.server.krait
        begun, self._begun = self._begun, Begun(0.0)  # it is about the first request only
        self._spent = begun.spent
        if not handshake.tries_upgrade(self.environ):
            return None
        decision = begun.refusal or krait.upgrades.check(self.environ) or krait.upgrades.decide(self.environ)
        if isinstance(decision, AppSocket):
            self.environ["wsgi.websocket"] = decision
            self.environ["wsgi.websocket_version"] = decision.version
            session = decision.controller._krait
        elif isinstance(decision, Session):
            session = decision
        else:
            return self._refuse(decision)
        self.websocket = session
        head, self._deflate = switching(self.environ, session)
        self.status, self.code, self.headers_sent = b"101 Switching Protocols", 101, True
        self._sendall(head)
        return None

    def _refuse(self, answer: WerkzeugResponse) -> Iterable[bytes]:
        """Starts an answer that is no 101 and returns its body. One that is to come again later gives up its HTTP
        connection, for others to come in meanwhile; so does one that is made wrongly."""
        if answer.status_code in (429, 503) or isinstance(answer, Malformed):
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
            seconds=self.time_finish - self.time_start + self._spent,
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
