"""The server: the front and gevent's WSGI handlers, the site in workers, the network loop behind.

Comes in: a site and a configuration. It owns the listening socket, the loop, the workers and the set of live sessions,
and ends them in that order.
"""

from __future__ import annotations

import contextvars
import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent import socket as gevent_socket
from gevent.event import AsyncResult, Event
from gevent.monkey import get_original
from gevent.pool import Group
from gevent.pywsgi import WSGIServer
from greenlet import getcurrent
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws import pages
from krait_ws.config import Config
from krait_ws.errors import ScriptTimeoutError
from krait_ws.http import Request
from krait_ws.network.admission import Admission, Place
from krait_ws.network.app import WsgiApp, load_app
from krait_ws.network.connection import Connection
from krait_ws.network.drain import drain
from krait_ws.network.front import Front
from krait_ws.network.handler import UpgradeHandler
from krait_ws.network.keepalive import Keepalive
from krait_ws.network.listening import new_listener, remove_path, url_of
from krait_ws.network.loop import Loop
from krait_ws.network.tls import TlsSocket, new_context
from krait_ws.network.upgrades import Begun, Upgrades, busy
from krait_ws.network.watchdog import Watchdog
from krait_ws.network.workers import Workers, value_of
from krait_ws.observe import metrics
from krait_ws.observe.observer import Observer, is_own
from krait_ws.patching import check_runs_on
from krait_ws.protocol.deflate import Deflate
from krait_ws.protocol.frames import GOING_AWAY, SERVICE_RESTART
from krait_ws.protocol.head import Head
from krait_ws.session import Session
from krait_ws.site import Site
from krait_ws.waiting import monotonic

logger = logging.getLogger("krait_ws.server")

_MAX_HTTP_CONNECTIONS = 10_000
_CHUNK_SIZE = 64 * 1024  # bytes of a streamed body that one hop to a worker brings
_WHOLE_BODY = 256 * 1024  # bytes of a body that comes with the answer
_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_AGAIN = 0.25  # seconds
_GREETING = 2.0  # seconds that an accepted connection has for its first request when the server stops
_LAST_SCRIPTS = 1.0  # seconds that route scripts have at the end
_NativeSocket: type[socket.socket] = get_original("socket", "socket")
_T = TypeVar("_T")


_proxy_fix: Any = ProxyFix(lambda environ, start_response: [], x_for=1, x_proto=1, x_host=1)


class _WsgiServer(WSGIServer):  # type: ignore[misc]
    """Knows the server it belongs to, for the handler's sake."""

    krait: Server
    _lacks: str | None = None  # what the system had not enough of when a connection was to be accepted

    def update_environ(self) -> None:
        # The base class looks the host's name up in DNS here.
        is_unix = isinstance(self.address, str)
        self.environ.setdefault("SERVER_NAME", "localhost" if is_unix else str(self.address[0]))
        super().update_environ()

    def full(self) -> bool:
        return self.krait.is_full

    def do_read(self) -> Any:
        """The next connection; ``None`` when there is none, or when the system lacks what one takes: then those that
        are there go on, and it is tried again after a moment."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno not in _LACKING:
                return None  # it went away before it was accepted
            self._pause(error)
            return None
        if self._lacks is not None:
            logger.warning("connections are accepted again")
            self._lacks = None
        sock = _NativeSocket(*self.krait.socket_kind, fileno=descriptor)
        sock.setblocking(False)
        return sock, address

    def do_handle(self, sock: Any, address: Any) -> None:
        self.krait.arrived(sock, address)

    def _pause(self, error: OSError) -> None:
        if self._lacks is None:
            self._lacks = str(error.strerror)
            logger.error("no connection is accepted for the time being: %s", self._lacks)
        self.stop_accepting()
        self._timer = self.loop.timer(_ACCEPT_AGAIN)
        self._timer.start(self._start_accepting_if_started)

    def serve(self, sock: Any, address: Any, begun: Begun) -> None:
        """Serves one HTTP connection, in a greenlet of its own: the TLS handshake keeps nobody else waiting."""
        try:
            encrypted = self._encrypted(sock)
            UpgradeHandler(encrypted, address, self, begun).handle()
        except OSError as error:
            logger.info("%s: no TLS connection (%s)", address, error)
        finally:
            sock.close()
            self.krait.left(getcurrent())

    def _encrypted(self, sock: Any) -> Any:
        """The socket with TLS around it, where there is a certificate.

        Raises:
            OSError: The handshake failed.
        """
        if self.krait.tls is None:
            return sock
        encrypted = TlsSocket(sock, self.krait.tls)
        with gevent.Timeout(self.krait.config.handshake_timeout, TimeoutError("not within handshake_timeout")):
            encrypted.do_handshake()
        return encrypted

    def accept_again(self) -> None:
        """There is a place again."""
        if self._timer is None:
            self._start_accepting_if_started()

    def accept_waiting(self) -> None:
        """Accepts those that wait in the system's queue."""
        while self.started and not self.full() and (accepted := self.do_read()) is not None:
            self.do_handle(*accepted)


class Server:
    """Serves a site. To be made, started and stopped in one thread, whose gevent hub it uses.

    Args:
        root: The site's folder.
        config: What is in force.
        listener: The socket to listen on, which belongs to the caller; ``None`` makes one as ``config`` says.
        workers: The folder that the workers of one master share (``observe.shared.new_folder``), if there are several.

    Raises:
        SiteError: The site cannot be served.
        ConfigError: The address cannot be listened on, the certificate cannot be used, or something that a setting
            needs is not installed.
    """

    def __init__(
        self, root: Path, config: Config, *, listener: socket.socket | None = None, workers: Path | None = None
    ) -> None:
        check_runs_on(config.runs_on, "the server")
        self.config = config
        if config.metrics:
            metrics.check_installed()
        self.has_app = bool(config.app)
        self.app: WsgiApp = load_app(config.app) if config.app else _no_app
        self.site = Site(root, config)
        self.origins = config.origins
        self._trusted_proxies = config.trusted_proxies
        self.sessions: set[Session] = set()  # owned by the loop
        self._stopping = False
        self._going_away = (GOING_AWAY, "the server is going away")  # how connections are closed at the end
        self._stopped = Event()
        # HTTP connections, as the front's arrivals or as greenlets:
        self.greeting: set[Any] = set()  # those whose first request has not come whole
        self.answering: set[Any] = set()  # those that answer a request or an upgrade
        self._greeting_until = 0.0
        self.tls: ssl.SSLContext | None = None
        self._own_listener: socket.socket | None = None
        with ExitStack() as made:  # given back when something of it cannot be made, for example without descriptors
            made.callback(self.site.close)
            self.tls = new_context(config)
            if listener is None:
                listener = self._own_listener = new_listener(config)
                made.callback(self._close_own_listener)
            self.listener = listener
            self.socket_kind = listener.family, listener.type, listener.proto
            self._url = url_of(listener, config)
            own = made.enter_context(closing(listener.dup()))
            self.loop = Loop(config.poller, config.linger)
            made.callback(self.loop.close)
            self.observer = Observer(self, self.loop, config, workers)
            made.pop_all()
        self.counters = self.observer.counters
        self._watchdog = Watchdog(self.loop, config.slow_hook)
        self._keepalive = Keepalive(self.loop, config.ping_interval, config.ping_timeout)
        self.workers = Workers(self.loop, config.script_threads, config.script_timeout)
        self._http_connections = Group()
        self._arrived = 0  # these HTTP connections, and those kept for a further request
        self._wsgi = _WsgiServer(
            own,  # which it closes
            self._answer,
            spawn=None,
            log=None,
            error_log=logger,
            environ={"wsgi.url_scheme": self._scheme, "wsgi.multiprocess": config.workers > 1},
        )
        self._wsgi.krait = self
        self.admission = Admission(config, self.counters.refused)
        self.upgrades = Upgrades(self)
        self._front = Front(self, self._serve, self._leave)

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._wsgi.address[1])

    @property
    def url(self) -> str:
        """Where it is found; ``unix:`` and the path for a Unix socket."""
        return self._url

    @property
    def _scheme(self) -> str:
        return "https" if self.tls is not None else "http"

    # ---- life

    def start(self) -> None:
        """Begins to accept."""
        self.workers.start()
        self._wsgi.start()

    def serve_forever(self) -> None:
        """Returns when ``stop`` has ended."""
        self._stopped.wait()

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop`` has begun."""
        return self._stopping

    def request_stop(self, *, restarts: bool = False) -> None:
        """Begins ``stop``. Thread: any; never waits."""
        self.loop.call(lambda: gevent.spawn(self.stop, restarts=restarts) and None)

    def stop(self, *, restarts: bool = False) -> None:
        """Stops accepting, closes every connection, waits for handlers up to their ``stop_timeout``, all in all at most
        ``drain_timeout``.

        Args:
            restarts: Another one takes over: close with 1012 instead of 1001.
        """
        if self._stopping:
            self._stopped.wait()
            return
        self._stopping = True
        if restarts:
            self._going_away = (SERVICE_RESTART, "the server restarts")
        self._stop_accepting(restarts=restarts)
        drain(lambda: self.sessions, self._is_busy, *self._going_away, self.config.drain_timeout)
        gevent.sleep(0)  # a greenlet that is killed before its first step would not close its socket
        self._front.close()
        self._http_connections.kill(block=True, timeout=1)
        self.observer.close()
        self._watchdog.close()
        self.loop.close()
        self.workers.close(_LAST_SCRIPTS)
        self.site.close()
        self._stopped.set()

    def _stop_accepting(self, *, restarts: bool) -> None:
        self._close_own_listener()
        if not restarts:
            self._wsgi.accept_waiting()  # closing the last socket that listens would cut them off
        self._greeting_until = monotonic() + _GREETING
        self._wsgi.close()

    def _close_own_listener(self) -> None:
        if self._own_listener is not None:
            remove_path(self._own_listener)
            self._own_listener.close()

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` has ended."""
        return bool(self._stopped.is_set())

    def _is_busy(self) -> bool:
        return bool(self.answering) or (bool(self.greeting) and monotonic() < self._greeting_until)

    def _apply_proxy_headers(self, environ: dict[str, Any]) -> None:
        """Takes client address, scheme and host from X-Forwarded-* where the peer is a trusted proxy."""
        if "REMOTE_ADDR" not in environ:
            if self.config.trusts_unix:
                _proxy_fix(environ, None)
            return
        if not self._trusted_proxies:
            return
        try:
            peer = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
        except ValueError:
            return
        peers = (peer, getattr(peer, "ipv4_mapped", None) or peer)  # on an IPv6 socket IPv4 looks like ::ffff:10.0.0.1
        if any(address in network for network in self._trusted_proxies for address in peers):
            _proxy_fix(environ, None)

    # ---- HTTP connections

    @property
    def is_full(self) -> bool:
        """Whether no further connection is to be accepted."""
        return self._arrived >= _MAX_HTTP_CONNECTIONS

    def arrived(self, sock: socket.socket, address: Any) -> None:
        """A connection has been accepted."""
        self._arrived += 1
        if self.tls is None:
            self._front.take(sock, address)
        else:
            self._serve(sock, address, Begun(self.config.handshake_timeout))

    @property
    def serves_in_greenlets(self) -> bool:
        """Whether upgrades are for an application, which waits in a greenlet, or are refused."""
        return self.has_app or self._stopping

    def _serve(self, sock: socket.socket, address: Any, begun: Begun) -> None:
        """A greenlet serves the connection from now on."""
        cooperative = gevent_socket.socket(*self.socket_kind, fileno=sock.detach())
        serving = self._http_connections.spawn(self._wsgi.serve, cooperative, address, begun)
        self.greeting.add(serving)

    def left(self, serving: Any) -> None:
        """A greenlet is at its end."""
        self.greeting.discard(serving)
        self._leave()

    def _leave(self) -> None:
        was_full = self.is_full
        self._arrived -= 1
        if was_full:
            self._wsgi.accept_again()

    def new_environ(self, head: Head, address: Any) -> dict[str, Any]:
        """The WSGI environ of a request, with what a trusted proxy says of it; the body is not in it."""
        environ: dict[str, Any] = self._wsgi.get_environ()
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"] = str(address[0])
            environ["REMOTE_PORT"] = str(address[1])
        head.add_to(environ)
        self._apply_proxy_headers(environ)
        return environ

    # ---- plain requests

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application. Runs in the greenlet of one HTTP connection; the site runs in a worker."""
        if is_own(environ["PATH_INFO"]):
            return self.observer.answer(environ)(environ, start_response)
        request = Request(environ, populate_request=False)
        own_context = contextvars.Context()
        try:
            page = self._off_loop(own_context.run, self._page, request)
        except ScriptTimeoutError:
            page = busy()
        if page is None:
            return self.app(environ, start_response)
        body: Iterable[bytes] = page(environ, start_response)
        if page.is_sequence:
            return body
        # A file is read in large parts; what a route script's generator yields goes out as it comes.
        return self._streamed(own_context, body, _CHUNK_SIZE if page.direct_passthrough else 0)

    def _page(self, request: Request) -> WerkzeugResponse | None:
        """In a worker: the answer, with the body of a file that is not large; ``None`` is for the app."""
        response = self.site.answer(request)
        if response is None:
            return None
        assert isinstance(response, WerkzeugResponse)  # only an upgrade is answered otherwise
        if request.method == "HEAD":
            response.close()
            response.direct_passthrough = False
            response.response = response.response if response.is_sequence else iter(())
            return response
        size = response.content_length
        if not response.is_sequence and size is not None and size <= _WHOLE_BODY:
            body = b"".join(response.iter_encoded())
            response.close()
            response.direct_passthrough = False
            response.response = [body]
        return response

    def _streamed(self, own_context: contextvars.Context, body: Iterable[bytes], least: int) -> Iterator[bytes]:
        parts = iter(body)
        try:
            while part := self._off_loop(own_context.run, _next_part, parts, least, is_limited=False):
                yield part
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                self._off_loop(close, is_limited=False)

    # ---- upgrades

    @property
    def refuses_newcomers(self) -> bool:
        """Whether upgrades are refused because of the end. Where another server takes over they are accepted, and told
        to come again by 1012."""
        return self._stopping and self._going_away[0] == GOING_AWAY

    def add(self, session: Session) -> None:
        """A session has begun."""
        self.sessions.add(session)
        if session.config.runs_on == "loop":
            self._watchdog.start()
        if self._stopping:
            session.end(*self._going_away)

    def over(self, place: Place | None, session: Session) -> None:
        """On the loop: neither a connection nor a handler of a session is left."""
        if place is not None:
            place.leave()
        if session in self.sessions:  # else its upgrade failed
            self.sessions.discard(session)
            self.counters.ended(session)

    def adopt(self, sock: socket.socket, session: Session, received: bytes, deflate: Deflate | None) -> None:
        """The 101 is sent: the connection joins the loop."""
        self._keepalive.add(Connection(self.loop, sock, session, received, deflate))

    # ---- the workers

    def _off_loop(self, function: Callable[..., _T], *arguments: Any, is_limited: bool = True) -> _T:
        """What ``function`` returns in a worker. Waits, in a greenlet.

        Raises:
            ScriptTimeoutError: Its time is over.
        """
        result = AsyncResult()
        self.workers.submit(partial(function, *arguments), result.set, is_limited=is_limited)
        value: _T = value_of(result.get())
        return value


def _next_part(parts: Iterator[bytes], least: int) -> bytes:
    """The next parts of a body, together at least ``least`` bytes; empty at the end."""
    taken: list[bytes] = []
    size = 0
    for part in parts:
        taken.append(part)
        size += len(part)
        if size and size >= least:
            break
    return b"".join(taken)


def _no_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What stands behind a site where no application is mounted."""
    return pages.not_found()(environ, start_response)
