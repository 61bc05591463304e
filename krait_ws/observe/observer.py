"""Answers everything below ``/_krait/``: health, readiness, metrics, the dashboard and what feeds it.

Comes in: requests that the server passes on before any site sees them, on the network loop. Goes out: answers, and a
controller for the dashboard's WebSocket. Health and readiness are always there; the rest when it is switched on.

Owned by the loop. What reads files or runs a site's own collectors goes to a thread of its own, so that it also answers
while every script thread is stuck.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.threadpool import ThreadPool
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.config import Config
from krait_ws.http import Request, Response, ResponseNotFound, ResponseRedirect
from krait_ws.observe import metrics
from krait_ws.observe.counters import Counters
from krait_ws.observe.guard import COOKIE, COOKIE_SECONDS, Guard, is_own_page
from krait_ws.observe.live import Live
from krait_ws.observe.loop_delay import LoopDelay, Timers
from krait_ws.observe.numbers import Numbers, from_json
from krait_ws.observe.sample import Sample, Sampler, merged
from krait_ws.session import Session

if TYPE_CHECKING:
    from krait_ws.observe.shared import Shared

logger = logging.getLogger("krait_ws.observe")

PREFIX = "/_krait"
"""No site can have such a URL: names that start with ``_`` are private there."""

_PUBLISH_EVERY = 1.0  # seconds
_POLICY = 1008  # close code of connections that an operator closes
_LONGEST_LOGIN = 4096  # bytes of the form: reading a long one would hold up the network loop
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with none at all the login would come from the origin "null"
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
_Environ = dict[str, Any]
_T = TypeVar("_T")


class Observed(Protocol):
    """The server."""

    sessions: set[Session]

    @property
    def is_stopping(self) -> bool: ...


def is_own(path: str) -> bool:
    """Whether a path is the observer's."""
    return path == PREFIX or path.startswith(PREFIX + "/")


class Observer:
    """See the module.

    Args:
        server: What is observed.
        loop: The network loop.
        config: ``metrics``, ``dashboard`` and ``dashboard_token``.
        folder: What the workers of one master share (``shared.new_folder``); ``None`` where this is the only one.

    Attributes:
        counters: What the server counts as connections come and go.
        watched: The connections that viewers of the dashboard look at.
    """

    def __init__(self, server: Observed, loop: Timers, config: Config, folder: Path | None) -> None:
        self.counters = Counters()
        self.watched: dict[object, str] = {}
        self._server = server
        self._config = config
        self._guard = Guard(config.dashboard_token)
        self._is_on = config.metrics or config.dashboard
        self._files = _page_files() if config.dashboard else {}
        self._wished: set[str] = set()  # connections that viewers in other workers look at
        self._shared: Shared | None = None
        self._publisher: Any = None
        if self._is_on:
            self._delay = LoopDelay(loop)
            self._sampler = Sampler(server, self.counters, self._delay)
            self._thread = ThreadPool(1)
            if folder is not None:
                from krait_ws.observe.shared import Shared  # there is none on Windows, and no workers either

                self._shared = Shared(folder)
                self._publisher = gevent.spawn(self._publish_forever, self._shared)

    def close(self) -> None:
        """The server has ended; every session is over. What this worker counted is left for the others."""
        if not self._is_on:
            return
        if self._publisher is not None:
            self._publisher.kill()
        if self._shared is not None:
            self._publish_last(self._shared)
        self._delay.close()
        with gevent.Timeout(1, False):
            self._thread.kill()

    # ---- requests

    def answer(self, environ: _Environ) -> WerkzeugResponse:
        """The answer to a plain request, or the refusal of an upgrade."""
        request = Request(environ, populate_request=False)
        page = request.path.removeprefix(PREFIX)
        if page == "/login" and self._config.dashboard:
            response = self._login(request)
        elif request.method not in ("GET", "HEAD"):
            response = Response("Method Not Allowed\n", status=405, headers={"Allow": "GET, HEAD"})
        else:
            response = self._page(page, request)
        response.headers.extend(_HEADERS)
        return response

    def decide_upgrade(self, environ: _Environ) -> Live | WerkzeugResponse:
        """The dashboard's controller, or the answer that refuses."""
        if environ["PATH_INFO"] != f"{PREFIX}/live" or not self._config.dashboard:
            return ResponseNotFound("Not Found\n")
        refusal = self._guard.refusal(environ)
        if refusal is None and not is_own_page(environ):
            refusal = "The dashboard talks to its own page only."
        if refusal is not None:
            return Response(refusal + "\n", status=401 if self._guard.has_token else 403)
        return Live(self)

    def _page(self, page: str, request: Request) -> WerkzeugResponse:
        if page == "":
            return ResponseRedirect("_krait/", status=308)
        if page == "/health":
            return Response("ok\n")
        if page == "/ready":
            if self._server.is_stopping:
                return Response("draining\n", status=503)
            return Response("ready\n")
        if page == "/metrics" and self._config.metrics:
            return self._refused(request) or self._metrics(request)
        if page in ("/dashboard.css", "/dashboard.js") and page in self._files:
            return self._file(page)  # they say nothing, and the login needs them
        if page == "/" and self._files:
            return self._dashboard(request)
        return ResponseNotFound("Not Found\n")

    def _refused(self, request: Request) -> WerkzeugResponse | None:
        refusal = self._guard.refusal(request.environ)
        if refusal is None:
            return None
        if not self._guard.has_token:
            return Response(refusal + "\n", status=403)
        return Response(refusal + "\n", status=401, headers={"WWW-Authenticate": 'Bearer realm="krait-ws"'})

    # ---- metrics

    def _metrics(self, request: Request) -> WerkzeugResponse:
        try:
            samples, dead = self._samples()
        except TimeoutError as error:
            return Response(f"{error}\n", status=503)
        numbers = from_json(merged(samples, dead)["numbers"])
        accept = request.headers.get("Accept", "")
        body, kind = self._in_thread(metrics.exposition, numbers, accept, shared=self._shared is not None)
        return Response(body, content_type=kind)

    # ---- dashboard

    def view(self) -> dict[str, Any]:
        """What there is to see, as JSON. Waits, in a greenlet.

        Raises:
            TimeoutError: The numbers of the other workers could not be read.
        """
        view = merged(*self._samples())
        view["numbers"].pop("krait_handler_seconds", None)  # many numbers that nobody looks at here
        return view

    def close_connection(self, connection: str, by: str) -> None:
        """Closes a connection, of whichever worker, with 1008."""
        logger.warning("connection %s: to be closed, says the dashboard (%s)", connection, by)
        if not self._close_own(connection) and self._shared is not None:
            self._in_thread(self._shared.wish, "close", connection)

    def _close_own(self, connection: str) -> bool:
        for session in self._server.sessions:
            if session.id == connection:
                session.end(_POLICY, "closed by the operator")
                return True
        return False

    def _dashboard(self, request: Request) -> WerkzeugResponse:
        if self._guard.refusal(request.environ) is None:
            return self._file("/dashboard.html")
        refused = self._refused(request)
        assert refused is not None
        if self._guard.has_token:
            refused.data = self._files["/login.html"]
            refused.content_type = _TYPES[".html"]
        return refused

    def _login(self, request: Request) -> WerkzeugResponse:
        """Takes the token from the form and gives the cookie that stands for it."""
        if request.method != "POST":
            return Response("Method Not Allowed\n", status=405, headers={"Allow": "POST"})
        if not is_own_page(request.environ):
            return Response("The login is for its own page only.\n", status=403)
        if (request.content_length or 0) > _LONGEST_LOGIN:
            return Response("The form is too long.\n", status=413)
        if not self._guard.knows(request.form.get("token", "")):
            return Response(self._files["/login.html"], status=401, content_type=_TYPES[".html"])
        response = ResponseRedirect("./", status=303)
        response.set_cookie(
            COOKIE,
            self._guard.new_cookie(),
            max_age=COOKIE_SECONDS,
            path=f"{request.root_path}{PREFIX}/",
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )
        return response

    def _file(self, name: str) -> Response:
        return Response(self._files[name], content_type=_TYPES[Path(name).suffix])

    # ---- samples

    def _samples(self) -> tuple[list[dict[str, Any]], Numbers]:
        """A sample of each worker, and the counters of those that are dead."""
        sample = self._take()
        if self._shared is None:
            return [sample.to_json()], {}
        # Its own goes through the folder too: whoever answers the next scrape must not know less than this one told.
        return self._in_thread(_exchange, self._shared, sample.to_json())

    def _take(self) -> Sample:
        return self._sampler.take({*self.watched.values(), *self._wished})

    def _in_thread(self, function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        result: _T = self._thread.apply(function, arguments, options)
        return result

    def _publish_forever(self, shared: Shared) -> None:
        while True:
            try:
                wishes = self._in_thread(_publish, shared, self._take().to_json(), set(self.watched.values()))
                self._wished = {connection for what, connection in wishes if what == "show"}
                for what, connection in wishes:
                    if what == "close" and self._close_own(connection):
                        self._in_thread(shared.fulfilled, what, connection)
            except OSError as error:
                logger.error("the other workers cannot be told what this one counts: %s", error)
            gevent.sleep(max(_PUBLISH_EVERY, self._sampler.rest))

    def _publish_last(self, shared: Shared) -> None:
        try:
            with gevent.Timeout(1, False):
                self._in_thread(_publish, shared, self._sampler.take_last().to_json(), set())
        except OSError as error:
            logger.error("the other workers cannot be told what this one counted: %s", error)
        shared.close()


def _exchange(shared: Shared, sample: dict[str, Any]) -> tuple[list[dict[str, Any]], Numbers]:
    shared.publish(sample)
    return shared.read()


def _publish(shared: Shared, sample: dict[str, Any], watched: Iterable[str]) -> list[tuple[str, str]]:
    """Tells what this worker has, asks for what it wants, and returns what the others ask for."""
    shared.publish(sample)
    for connection in watched:
        shared.wish("show", connection)
    return list(shared.wishes())


def _page_files() -> dict[str, bytes]:
    folder = resources.files("krait_ws.observe") / "page"
    return {f"/{file.name}": file.read_bytes() for file in folder.iterdir() if Path(file.name).suffix in _TYPES}
