"""What is current: the request and the answer of this upgrade, or of this plain request.

Route scripts read and assign them as ``krait_ws.request``, ``krait_ws.response``, ``krait_ws.websockets.request`` and
``krait_ws.websockets.response``; behind these names are the context variables here, so that concurrent requests never
see each other's. A handler runs in a copy of its route script's context.
"""

from __future__ import annotations

import functools
import io
from contextvars import ContextVar
from typing import Any

from werkzeug.datastructures import Headers, MultiDict
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.controller import WebsocketsCtrlBase
from krait_ws.http import Request
from krait_ws.protocol.handshake import is_upgrade, parse_subprotocols

# What is kept of an upgrade request for the connection's life. A whole WSGI environ costs 7.8 KB a connection.
_KEPT = frozenset(
    {
        "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL",
        "REMOTE_ADDR", "REMOTE_PORT", "wsgi.url_scheme",
    }
)  # fmt: skip
_SECRET_OR_UNIQUE = frozenset(
    {"HTTP_SEC_WEBSOCKET_KEY", "HTTP_COOKIE", "HTTP_AUTHORIZATION", "QUERY_STRING", "REMOTE_PORT"}
)


@functools.lru_cache(maxsize=4096)
def _shared_short(text: str) -> str:
    return text


def _shared(text: str) -> str:
    """One string for many equal ones: clients of a kind send the same headers. Bounded, unlike interning, which keeps a
    string for ever on some versions of Python."""
    return _shared_short(text) if len(text) <= 256 else text


class WebsocketsRequest:
    """A request that asks for a WebSocket upgrade (RFC 6455 section 4.2.1).

    Args:
        http_request: The HTTP request.
        params: What the ``[name]`` segments of the route matched.
        route: The URL pattern of the route.

    Raises:
        HandshakeError: Its Sec-WebSocket-Protocol header cannot be read.

    Attributes:
        protocols: The offered subprotocols in the client's order; ``None`` when it offers none or asks for no upgrade.
        params: What the ``[name]`` segments of the route matched.
        route: The URL pattern that answers, for example ``/[room]``: a file of the site, not what a client asked for.
        remote_addr: The client's address.
    """

    __slots__ = ("_environ", "_http", "params", "protocols", "remote_addr", "route")

    def __init__(self, http_request: Request, params: dict[str, str] | None = None, route: str = "") -> None:
        self._http: Request | None = http_request
        self._environ: tuple[Any, ...] = ()
        self.protocols = self.extract_protocols(http_request)
        self.remote_addr: str | None = http_request.environ.get("REMOTE_ADDR")
        self.params: dict[str, str] = params or {}
        self.route = route

    @staticmethod
    def extract_protocols(http_request: Request) -> list[str] | None:
        """The subprotocols that an upgrade request offers, in the client's order; ``None`` when it offers none or is no
        upgrade.

        Raises:
            HandshakeError: The header cannot be read.
        """
        environ = http_request.environ
        if not is_upgrade(environ):
            return None
        return parse_subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))

    @property
    def http(self) -> Request:
        """The HTTP request. After the upgrade it is made anew at each call from what is kept: method, URL, headers."""
        if self._http is not None:
            return self._http
        environ = dict(zip(self._environ[::2], self._environ[1::2], strict=True))
        request = Request({**environ, "wsgi.input": io.BytesIO()}, populate_request=False)
        request.params = self.params
        return request

    @property
    def path(self) -> str:
        """The URL's path, decoded."""
        return self.http.path

    @property
    def query(self) -> MultiDict[str, str]:
        """The URL's query."""
        return self.http.args

    @property
    def headers(self) -> Headers:
        """The request's headers; names compare in any case."""
        return self.http.headers

    @property
    def cookies(self) -> MultiDict[str, str]:
        """The request's cookies."""
        return self.http.cookies

    @property
    def origin(self) -> str | None:
        """The Origin header: the page that a browser sent the request from (RFC 6455 section 10.2)."""
        return self.http.headers.get("Origin")

    def compact(self) -> None:
        """Keeps method, URL and headers and lets go of the rest. Called by: the server, after the upgrade."""
        if self._http is None:
            return
        kept: list[Any] = []
        for name, value in self._http.environ.items():
            if (name in _KEPT or name.startswith("HTTP_")) and isinstance(value, str):
                kept.append(name)  # which all requests share
                kept.append(value if name in _SECRET_OR_UNIQUE else _shared(value))
        self._environ = tuple(kept)
        self.remote_addr = self.remote_addr and _shared(self.remote_addr)
        self._http = None


class WebsocketsResponse:
    """Accepts an upgrade.

    Args:
        controller: An instance made for this connection.
        protocol: The chosen subprotocol, one of ``request.protocols``; ``None`` chooses none.

    Raises:
        TypeError: ``controller`` is no instance of ``WebsocketsCtrlBase``, or did not call ``super().__init__()``;
            or ``protocol`` is no ``str``.
    """

    __slots__ = ("controller", "protocol")

    def __init__(self, controller: WebsocketsCtrlBase, protocol: str | None = None) -> None:
        if not isinstance(controller, WebsocketsCtrlBase):
            hint = " (an instance is needed: call the class)" if isinstance(controller, type) else ""
            raise TypeError(f"controller must be a WebsocketsCtrlBase, not {controller!r}{hint}")
        if not hasattr(controller, "_krait"):
            raise TypeError(f"{type(controller).__qualname__}.__init__ must call super().__init__()")
        if protocol is not None and not isinstance(protocol, str):
            raise TypeError(f"protocol must be one of request.protocols or None, not {protocol!r}")
        self.controller = controller
        self.protocol = protocol


http_request: ContextVar[Request | None] = ContextVar("krait_ws.request", default=None)
http_response: ContextVar[WerkzeugResponse | None] = ContextVar("krait_ws.response", default=None)
websockets_request: ContextVar[WebsocketsRequest | None] = ContextVar("krait_ws.websockets.request", default=None)
websockets_response: ContextVar[WebsocketsResponse | None] = ContextVar("krait_ws.websockets.response", default=None)


def current_request() -> Request | None:
    """The HTTP request of this context; in a handler, that of its upgrade."""
    request = http_request.get()
    if request is None and (upgrade := websockets_request.get()) is not None:
        return upgrade.http
    return request
