"""The server: gevent's WSGI server in front, the site in a pool of threads, the network loop behind.

Comes in: a site and a configuration. It owns the listening socket, the loop, the pool and the set of live sessions, and
ends them in that order.
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
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer
from gevent.threadpool import ThreadPool
from greenlet import getcurrent
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws import context, pages
from krait_ws.config import Config
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.errors import ConfigError, ScriptTimeoutError, ThreadLimitError
from krait_ws.http import Request, Response
from krait_ws.network.admission import Admission, Place
from krait_ws.network.app import AppSocket, WsgiApp, load_app
from krait_ws.network.connection import Connection
from krait_ws.network.drain import drain
from krait_ws.network.handler import UpgradeHandler
from krait_ws.network.keepalive import Keepalive
from krait_ws.network.listening import new_listener, remove_path, url_of
from krait_ws.network.loop import Loop
from krait_ws.network.tls import TlsSocket, new_context
from krait_ws.network.watchdog import Watchdog
from krait_ws.observe import metrics
from krait_ws.observe.counters import reason_of
from krait_ws.observe.observer import Observer, is_own
from krait_ws.patching import check_runs_on, is_patched
from krait_ws.protocol.deflate import Deflate
from krait_ws.protocol.frames import ABNORMAL, GOING_AWAY, INTERNAL_ERROR, SERVICE_RESTART
from krait_ws.session import Session
from krait_ws.site import Site
from krait_ws.waiting import monotonic

logger = logging.getLogger("krait_ws.server")

_MAX_HTTP_CONNECTIONS = 10_000
_CHUNK_SIZE = 64 * 1024  # bytes of a streamed body that one hop to the pool brings
_WHOLE_BODY = 256 * 1024  # bytes of a body that comes with the answer
_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_AGAIN = 0.25  # seconds
_GREETING = 2.0  # seconds that an accepted connection has for its first request when the server stops
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

    def do_read(self) -> Any:
        """The next connection; ``None`` when there is none, or when the system lacks what one takes: then those that
        are there go on, and it is tried again after a moment."""
        try:
            accepted = super().do_read()
        except OSError as error:
            if error.errno not in _LACKING:
                return None  # it went away before it was accepted
            self._pause(error)
            return None
        if accepted is not None and self._lacks is not None:
            logger.warning("connections are accepted again")
            self._lacks = None
        return accepted

    def _pause(self, error: OSError) -> None:
        if self._lacks is None:
            self._lacks = str(error.strerror)
            logger.error("no connection is accepted for the time being: %s", self._lacks)
        self.stop_accepting()
        self._timer = self.loop.timer(_ACCEPT_AGAIN)
        self._timer.start(self._start_accepting_if_started)

    def handle(self, sock: Any, address: Any) -> None:
        """Serves one HTTP connection, in a greenlet of its own: the TLS handshake keeps nobody else waiting."""
        greeting, this = self.krait.greeting, getcurrent()
        greeting.add(this)
        try:
            super().handle(self._encrypted(sock), address)
        except OSError as error:
            logger.info("%s: no TLS connection (%s)", address, error)
        finally:
            greeting.discard(this)

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
        self.app: WsgiApp = load_app(config.app) if config.app else _no_app
        self.site = Site(root, config)
        self.origins = config.origins
        self._trusted_proxies = config.trusted_proxies
        self.sessions: set[Session] = set()  # owned by the loop
        self._stopping = False
        self._going_away = (GOING_AWAY, "the server is going away")  # how connections are closed at the end
        self._stopped = Event()
        self.greeting: set[Any] = set()  # greenlets of HTTP connections whose first request has not come whole
        self.answering: set[Any] = set()  # of those that answer a request or an upgrade
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
            self._url = url_of(listener, config)
            own = made.enter_context(closing(listener.dup()))
            self.loop = Loop(config.poller)
            made.callback(self.loop.close)
            self._observer = Observer(self, self.loop, config, workers)
            made.pop_all()
        self.counters = self._observer.counters
        self._watchdog = Watchdog(self.loop, config.slow_hook)
        self._keepalive = Keepalive(self.loop, config.ping_interval, config.ping_timeout)
        # Where the standard library is patched, its locks and queues do not work between threads: greenlets, then.
        self._pool: Any = (Pool if is_patched() else ThreadPool)(config.script_threads)
        self._http_connections = Pool(_MAX_HTTP_CONNECTIONS)
        self._wsgi = _WsgiServer(
            own,  # which it closes
            self._answer,
            handler_class=UpgradeHandler,
            spawn=self._http_connections,
            log=None,
            error_log=logger,
            environ={"wsgi.url_scheme": self._scheme, "wsgi.multiprocess": config.workers > 1},
        )
        self._wsgi.krait = self
        self.admission = Admission(config, self.counters.refused)

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
        self._http_connections.kill(block=True, timeout=1)
        self._observer.close()
        self._watchdog.close()
        self.loop.close()
        self._end_threads()
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

    def apply_proxy_headers(self, environ: dict[str, Any]) -> None:
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

    # ---- plain requests

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application. Runs in the greenlet of one HTTP connection; the site runs in the thread pool."""
        if is_own(environ["PATH_INFO"]):
            return self._observer.answer(environ)(environ, start_response)
        request = Request(environ, populate_request=False)
        own_context = contextvars.Context()
        try:
            page = self._off_loop(own_context.run, self._page, request)
        except ScriptTimeoutError:
            page = _busy()
        if page is None:
            return self.app(environ, start_response)
        body: Iterable[bytes] = page(environ, start_response)
        if page.is_sequence:
            return body
        # A file is read in large parts; what a route script's generator yields goes out as it comes.
        return self._streamed(own_context, body, _CHUNK_SIZE if page.direct_passthrough else 0)

    def _page(self, request: Request) -> WerkzeugResponse | None:
        """In a thread of the pool: the answer, with the body of a file that is not large; ``None`` is for the app."""
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
            while part := self._in_pool(own_context.run, _next_part, parts, least):
                yield part
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                self._in_pool(close)

    # ---- upgrades

    def decide_upgrade(self, environ: dict[str, Any]) -> Session | AppSocket | WerkzeugResponse:
        """The decision on an upgrade: a started session, a socket for the app, or the answer that refuses.

        Called by: the handler.
        """
        if self._stopping and self._going_away[0] == GOING_AWAY:  # else it is accepted, and told to come again by 1012
            self.counters.refused("draining")
            return Response(
                "The server is going away.\n", status=503, headers={"Connection": "close", "Retry-After": "1"}
            )
        if is_own(environ["PATH_INFO"]):
            return self._decide_own(environ)
        place = self.admission.enter(environ.get("REMOTE_ADDR", ""))
        if isinstance(place, Response):
            return place
        decision = None
        try:
            decision = self._decide_in(place, environ)
            return decision
        finally:
            if not isinstance(decision, Session | AppSocket):  # else its place is left when it is over
                place.leave()

    def _decide_in(self, place: Place, environ: dict[str, Any]) -> Session | AppSocket | WerkzeugResponse:
        request = Request(environ, populate_request=False)
        try:
            decision: Session | WerkzeugResponse | ThreadLimitError | None = self._off_loop(
                contextvars.Context().run, self._decide, request, place, late=self._end_late
            )
        except ScriptTimeoutError:
            self.counters.refused("timeout")
            return _busy()
        if isinstance(decision, ThreadLimitError):
            return self.admission.refuse("max_threads", str(decision))
        if decision is None:
            if self.app is not _no_app:
                return self._accept_for_app(environ, request, place)
            decision = pages.not_found()
        if isinstance(decision, Session):
            self._add(decision)
        else:
            self.counters.refused(reason_of(decision.status_code))
        return decision

    def _decide_own(self, environ: dict[str, Any]) -> Session | WerkzeugResponse:
        """An upgrade to the dashboard, which there is room for however full the server is."""
        decision = self._observer.decide_upgrade(environ)
        if isinstance(decision, WerkzeugResponse):
            self.counters.refused("dashboard")
            return decision
        upgrade = WebsocketsRequest(Request(environ, populate_request=False), route=environ["PATH_INFO"])
        upgrade.compact()
        session = decision._krait
        session.accept(self.loop, self.config, upgrade, None, partial(self._over, None))
        self._add(session)
        return session

    def _add(self, session: Session) -> None:
        self.sessions.add(session)
        if session.config.runs_on == "loop":
            self._watchdog.start()
        if self._stopping:
            session.end(*self._going_away)

    def _over(self, place: Place | None, session: Session) -> None:
        """On the loop: neither a connection nor a handler of a session is left."""
        if place is not None:
            place.leave()
        if session in self.sessions:  # else its upgrade failed
            self.sessions.discard(session)
            self.counters.ended(session)

    def _accept_for_app(self, environ: dict[str, Any], request: Request, place: Place) -> AppSocket:
        choose = getattr(self.app, "app_protocol", None)  # gevent-websocket's way for an app to choose
        upgrade = WebsocketsRequest(request, route="(app)")
        protocol = choose(environ["PATH_INFO"]) if choose is not None else None
        app_socket = AppSocket(environ, protocol if protocol in (upgrade.protocols or ()) else None)
        session = app_socket.controller._krait
        over = partial(self._over, place)
        session.accept(self.loop, self.config, upgrade, app_socket.protocol, over)
        self._add(session)
        return app_socket

    def adopt(self, sock: socket.socket, session: Session, received: bytes, deflate: Deflate | None) -> None:
        """The 101 is sent: the connection joins the loop. Called by: the handler."""
        self._keepalive.add(Connection(self.loop, sock, session, received, deflate))

    def _decide(self, request: Request, place: Place) -> Session | WerkzeugResponse | ThreadLimitError | None:
        """In a thread of the pool, in a context of its own; ``None`` is for the app."""
        answer = self.site.answer(request)
        if answer is None:
            return None
        if not isinstance(answer, WebsocketsResponse):
            answer.make_sequence()  # a route script's generator is run here, not by the greenlet that sends it
            return answer
        upgrade = context.websockets_request.get()
        assert upgrade is not None
        return self._accept(answer, upgrade, request, place)

    def _accept(
        self, answer: WebsocketsResponse, upgrade: WebsocketsRequest, request: Request, place: Place
    ) -> Session | WerkzeugResponse | ThreadLimitError:
        session = answer.controller._krait
        try:
            session.claim()
            if not place.reserve_threads(session.threads_needed(self.config)):
                return ThreadLimitError("max_threads is reached")
        except (RuntimeError, ConfigError) as error:
            return self.site.failed(error, request)
        # The handler runs in a copy of this context, for hours perhaps: it keeps what is needed of the request only.
        upgrade.compact()
        context.http_request.set(None)
        context.websockets_response.set(None)
        try:
            session.accept(self.loop, self.config, upgrade, answer.protocol, partial(self._over, place))
        except ThreadLimitError as error:
            self.loop.call(lambda: session.transport_gone(INTERNAL_ERROR))
            return error
        except Exception as error:  # of the user's on_start, or of the settings in the user's class
            self.loop.call(lambda: session.transport_gone(INTERNAL_ERROR))
            return self.site.failed(error, request)
        if not place.is_held:  # nobody waits for it: the pool had no thread in time, or the server is at its end
            session.end(ABNORMAL)
            self.loop.call(partial(session.transport_gone, ABNORMAL))
        return session

    def _end_late(self, decision: Any) -> None:
        """A decision that came after its time: nobody waits for it."""
        if isinstance(decision, Session):
            decision.transport_gone(ABNORMAL)

    # ---- the pool

    def _off_loop(
        self, function: Callable[..., _T], *arguments: Any, late: Callable[[Any], None] | None = None
    ) -> _T | None:
        """What ``function`` returns in a thread of the pool; ``None`` when it has not within ``script_timeout``.

        A thread cannot be ended: it goes on, and what it returns at last goes to ``late``.
        """
        timeout = gevent.Timeout(self.config.script_timeout)
        result = None
        try:
            with timeout:
                result = self._pool.spawn(_outcome, function, *arguments)
                value: _T | None = _value(result.get())
                return value
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            logger.error("a route script did not answer within %g s; its client got 503", self.config.script_timeout)
            if result is not None and late is not None:
                result.rawlink(lambda done: late(done.value[0]))
            raise ScriptTimeoutError("the route script did not answer in time") from None

    def _in_pool(self, function: Callable[..., _T], *arguments: Any) -> _T | None:
        """What ``function`` returns in a thread of the pool, however long it takes."""
        return _value(self._pool.apply(_outcome, (function, *arguments)))

    def _end_threads(self) -> None:
        """Ends the pool's threads; those that a route script still holds after a second go on alone."""
        with gevent.Timeout(1, False):
            self._pool.kill()


def _outcome(function: Callable[..., _T], *arguments: Any) -> tuple[_T | None, BaseException | None]:
    """What ``function`` returns, or raises. The pool itself would print what is raised, with all its secrets."""
    try:
        return function(*arguments), None
    except BaseException as error:  # it is raised again in the thread of the loop
        return None, error


def _value(outcome: tuple[_T | None, BaseException | None]) -> _T | None:
    value, error = outcome
    if error is not None:
        raise error
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


def _busy() -> Response:
    return Response("The server is busy.\n", status=503, headers={"Retry-After": "1"})
