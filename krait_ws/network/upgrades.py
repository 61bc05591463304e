"""Decides on upgrades: who may come in, what the site says, and the session that comes of it.

Comes in: an upgrade request as a WSGI environ. Goes out: a started session and the head of its 101, or the answer that
refuses. The site is asked in a worker; the rest is done on the loop, or in the greenlet of an HTTP connection.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gevent.event import AsyncResult
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws import context, pages
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.errors import ConfigError, HandshakeError, ScriptTimeoutError, ThreadLimitError
from krait_ws.http import Request, Response
from krait_ws.logs import log_failure, redacted_target
from krait_ws.network.admission import Place
from krait_ws.network.app import AppSocket
from krait_ws.network.workers import Outcome, value_of
from krait_ws.observe.counters import reason_of
from krait_ws.observe.observer import is_own
from krait_ws.protocol import handshake
from krait_ws.protocol.deflate import Deflate, negotiate
from krait_ws.protocol.frames import ABNORMAL, INTERNAL_ERROR
from krait_ws.session import Session

if TYPE_CHECKING:
    from krait_ws.network.server import Server

logger = logging.getLogger("krait_ws.server")

Decision: TypeAlias = Session | WerkzeugResponse | None
"""A started session, the answer that refuses, or ``None``: the site has no file for it."""


class Begun(NamedTuple):
    """What has been done about the first request of a connection, for whoever goes on with it.

    Attributes:
        seconds: Time that it still has to come whole.
        received: What has been read.
        refusal: The answer, where it is an upgrade that has been decided on.
        spent: Seconds that deciding took.
    """

    seconds: float
    received: bytes = b""
    refusal: WerkzeugResponse | None = None
    spent: float = 0.0


class Malformed(Response):
    """The answer to an upgrade that is made wrongly. Its HTTP connection ends with it."""


def busy() -> Response:
    return Response("The server is busy.\n", status=503, headers={"Retry-After": "1"})


def switching(environ: dict[str, Any], session: Session) -> tuple[bytes, Deflate | None]:
    """The 101 for a session, and the codec when permessage-deflate was negotiated."""
    negotiated = negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""), session.config)
    deflate, extensions = negotiated or (None, None)
    headers = handshake.accept_headers(environ, session.protocol, extensions)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode("latin-1"), deflate


class Upgrades:
    """See the module. Thread: the loop's."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._counters = server.counters

    def check(self, environ: dict[str, Any]) -> WerkzeugResponse | None:
        """The answer to an upgrade that comes too soon, is made wrongly or comes from a page of another site."""
        server = self._server
        refusal = server.admission.check_handshake(environ.get("REMOTE_ADDR", ""))
        if refusal is not None:
            return refusal
        try:
            handshake.check_upgrade(environ)
            handshake.check_origin(environ, server.origins)
        except HandshakeError as error:
            self._counters.refused("origin" if error.status.startswith("403") else "malformed")
            return Malformed(f"{error.reason}\n", status=error.status, headers=list(error.headers))
        return None

    def ask(self, environ: dict[str, Any], place: Place, done: Callable[[Decision], None]) -> None:
        """Asks the site. ``done`` gets the decision, on the loop; if that is no session, the place is to be left."""
        self._server.workers.submit(
            partial(contextvars.Context().run, self._decide, environ, place),
            lambda outcome: done(self._decided(outcome, environ)),
            late=self._end_late,
        )

    def decide(self, environ: dict[str, Any]) -> Session | AppSocket | WerkzeugResponse:
        """The decision on an upgrade that ``check`` let pass. Waits, in the greenlet of an HTTP connection."""
        server = self._server
        if server.refuses_newcomers:
            self._counters.refused("draining")
            return Response(
                "The server is going away.\n", status=503, headers={"Connection": "close", "Retry-After": "1"}
            )
        if is_own(environ["PATH_INFO"]):
            return self._decide_own(environ)
        place = server.admission.enter(environ.get("REMOTE_ADDR", ""))
        if isinstance(place, Response):
            return place
        decision: Session | AppSocket | WerkzeugResponse | None = None
        try:
            result = AsyncResult()
            self.ask(environ, place, result.set)
            decision = result.get() or self._accept_for_app(environ, place)
            return decision
        finally:
            if not isinstance(decision, Session | AppSocket):  # else its place is left when it is over
                place.leave()

    def _decided(self, outcome: Outcome, environ: dict[str, Any]) -> Decision:
        decision: Session | WerkzeugResponse | ThreadLimitError | None
        try:
            decision = value_of(outcome)
        except ScriptTimeoutError:
            self._counters.refused("timeout")
            return busy()
        except BaseException as error:  # not the script's, whose errors are answered; somebody waits for this
            log_failure(logger, error, environ, "%s: the upgrade failed", redacted_target(environ["PATH_INFO"]))
            decision = pages.script_error(error, debug=False)
        if isinstance(decision, ThreadLimitError):
            return self._server.admission.refuse("max_threads", str(decision))
        if isinstance(decision, Session):
            self._server.add(decision)
            return decision
        if decision is None and not self._server.has_app:
            decision = pages.not_found()
        if decision is not None:
            self._counters.refused(reason_of(decision.status_code))
        return decision

    def _decide_own(self, environ: dict[str, Any]) -> Session | WerkzeugResponse:
        """An upgrade to the dashboard, which there is room for however full the server is."""
        server = self._server
        decision = server.observer.decide_upgrade(environ)
        if isinstance(decision, WerkzeugResponse):
            self._counters.refused("dashboard")
            return decision
        upgrade = WebsocketsRequest(Request(environ, populate_request=False), route=environ["PATH_INFO"])
        upgrade.compact()
        session = decision._krait
        session.accept(server.loop, server.config, upgrade, None, partial(server.over, None))
        server.add(session)
        return session

    def _accept_for_app(self, environ: dict[str, Any], place: Place) -> AppSocket:
        server = self._server
        choose = getattr(server.app, "app_protocol", None)  # gevent-websocket's way for an app to choose
        upgrade = WebsocketsRequest(Request(environ, populate_request=False), route="(app)")
        protocol = choose(environ["PATH_INFO"]) if choose is not None else None
        app_socket = AppSocket(environ, protocol if protocol in (upgrade.protocols or ()) else None)
        session = app_socket.controller._krait
        session.accept(server.loop, server.config, upgrade, app_socket.protocol, partial(server.over, place))
        server.add(session)
        return app_socket

    # ---- in a worker

    def _decide(self, environ: dict[str, Any], place: Place) -> Session | WerkzeugResponse | ThreadLimitError | None:
        """In a context of its own; ``None``: the site has no file for it."""
        request = Request(environ, populate_request=False)
        answer = self._server.site.answer(request)
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
        server = self._server
        session = answer.controller._krait
        try:
            session.claim()
            if not place.reserve_threads(session.threads_needed(server.config)):
                return ThreadLimitError("max_threads is reached")
        except (RuntimeError, ConfigError) as error:
            return server.site.failed(error, request)
        # The handler runs in a copy of this context, for hours perhaps: it keeps what is needed of the request only.
        upgrade.compact()
        context.http_request.set(None)
        context.websockets_response.set(None)
        try:
            session.accept(server.loop, server.config, upgrade, answer.protocol, partial(server.over, place))
        except ThreadLimitError as error:
            server.loop.call(lambda: session.transport_gone(INTERNAL_ERROR))
            return error
        except Exception as error:  # of the user's on_start, or of the settings in the user's class
            server.loop.call(lambda: session.transport_gone(INTERNAL_ERROR))
            return server.site.failed(error, request)
        if not place.is_held:  # nobody waits for it: it came too late, or the server is at its end
            session.end(ABNORMAL)
            server.loop.call(partial(session.transport_gone, ABNORMAL))
        return session

    def _end_late(self, outcome: Outcome) -> None:
        """A decision that came after its time: nobody waits for it."""
        if isinstance(outcome[0], Session):
            outcome[0].transport_gone(ABNORMAL)
