"""How a WebSocket connection to a server is opened: the only place where one is.

A ``Transport`` says where to and how; ``open()`` gives a ``Link``, one open connection. Here and in ``link.py`` the
exceptions of the ``websockets`` package become those of ``errors.py``; nothing else knows it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from ssl import SSLContext
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidProxy, InvalidURI
from websockets.http11 import Response
from websockets.sync.client import connect
from websockets.uri import parse_uri

from krait_ws.client.errors import AuthError, ClientError, ConnectionUnavailableError, printable
from krait_ws.client.link import Link, Refusal, WebSocket


class Auth(Protocol):
    """What proves who we are. Called in a thread of the transport; both methods may block."""

    def headers(self) -> Mapping[str, str]:
        """Headers of one upgrade request."""

    def refresh(self) -> bool:
        """The server answered 401: gets new credentials. Returns ``False`` when there are no others."""


@dataclass(frozen=True)
class Transport:
    """Where to connect and how. Holds no connection; one may serve any number of them. Thread: any.

    A redirect is not followed, for it could lead the credentials to anybody; the error says where it points.

    Args:
        url: ``ws://…`` or ``wss://…``.
        headers: Further headers of the upgrade request.
        auth: Credentials. On 401 they are refreshed once and the request is repeated once.
        subprotocols: Offered to the server, the dearest first.
        ssl: How certificates are checked; the system's way by default. Only for ``wss://``.
        proxy: ``True`` takes the proxy of the environment, as ``HTTPS_PROXY`` and ``NO_PROXY`` say it; ``None`` takes
            none; a URL names one.
        compression: Offers permessage-deflate (RFC 7692).
        max_message_size: Bytes; a longer message ends the connection with 1009.
        open_timeout: Seconds for everything until the connection is open: names, TCP, TLS, credentials, upgrade.
        ping_interval: Seconds between pings; ``None`` sends none.
        ping_timeout: Seconds in which a ping must be answered, else the connection is over; ``None`` does not care.
        send_timeout: Seconds in which a message must be handed to the system, else the connection is over.
        close_timeout: Seconds that the server has to answer our close.

    Raises:
        ValueError: The URL, a header or a number of seconds cannot be used.
    """

    url: str
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Auth | None = field(default=None, repr=False)
    subprotocols: Sequence[str] = ()
    ssl: SSLContext | None = None
    proxy: str | bool | None = True
    compression: bool = True
    max_message_size: int = 1 << 20
    open_timeout: float = 10.0
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    send_timeout: float = 30.0
    close_timeout: float = 5.0

    def __post_init__(self) -> None:
        try:
            secure = parse_uri(self.url).secure
        except InvalidURI as error:
            raise ValueError(f"{self.place!r} is no WebSocket URL ({error.msg}): write ws://host/path") from None
        if self.ssl is not None and not secure:
            raise ValueError(f"ssl is given, but {self.place} is not encrypted: write wss://")
        for name in ("max_message_size", "open_timeout", "send_timeout", "close_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")
        for name in ("ping_interval", "ping_timeout"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise ValueError(f"{name} must be more than 0 or None, not {getattr(self, name)!r}")
        _check_headers(self.headers)

    def __repr__(self) -> str:
        return f"Transport({self.place!r})"

    @property
    def place(self) -> str:
        """The URL without user, password and query: what may be logged."""
        return _place(self.url)

    def open(self) -> Link:
        """Opens a connection and waits for it, at most ``open_timeout`` seconds.

        Raises:
            AuthError: 401 after the refresh, or 403.
            ConnectionUnavailableError: Everything else that can go wrong.
        """
        return self.dial().wait()

    def dial(self) -> Dial:
        """Starts to open a connection. For who wants to be able to give up while it goes on."""
        return Dial(self)


class Dial:
    """One connection being opened, in a thread of its own: looking up a name knows no deadline and cannot be stopped.

    Thread: any. ``wait`` takes the connection, so it is called once.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._deadline = time.monotonic() + transport.open_timeout
        self._lock = threading.Lock()
        self._over = threading.Event()  # opened, failed or given up
        self._result: Link | Exception | None = None  # guarded by _lock
        self._given_up = False  # guarded by _lock
        self._current: WebSocket | None = None  # whose upgrade is under way; guarded by _lock
        threading.Thread(target=self._run, name="krait-client-dial", daemon=True).start()

    def wait(self) -> Link:
        """The open connection.

        Raises:
            AuthError: 401 after the refresh, or 403.
            ConnectionUnavailableError: It was not opened, not in time, or ``give_up`` was called.
        """
        try:
            in_time = self._over.wait(max(0.0, self._deadline - time.monotonic()))
            with self._lock:
                result, self._result = self._result, None
        finally:
            self.give_up()  # nothing to do unless the time is up, or Ctrl-C came
        if isinstance(result, Link):
            return result
        if result is not None:
            raise result
        place, seconds = self._transport.place, self._transport.open_timeout
        raise ConnectionUnavailableError(
            f"{place}: given up while it was being opened" if in_time else f"{place}: not open after {seconds:g} s"
        )

    def give_up(self) -> None:
        """Wakes who waits. A connection that is opened all the same is cut at once."""
        with self._lock:
            self._given_up = True
            result, self._result = self._result, None
            current, self._current = self._current, None
        if isinstance(result, Link):
            result.abort()
        elif current is not None:
            current.cut()
        self._over.set()

    def _run(self) -> None:
        try:
            result: Link | Exception = self._open()
        except ClientError as error:
            result = error
        except Exception as error:  # whatever a resolver, a proxy or a TLS context comes up with
            result = _unavailable(self._transport, error)
        with self._lock:
            self._current = None
            given_up = self._given_up
            if not given_up:
                self._result = result
        if given_up and isinstance(result, Link):
            result.abort()
        self._over.set()

    def _open(self) -> Link:
        auth = self._transport.auth
        try:
            return self._upgrade()
        except AuthError as error:
            if auth is None or error.status != 401 or not _asked(self._transport, auth.refresh):
                raise
            return self._upgrade()

    def _upgrade(self) -> Link:
        transport = self._transport
        headers = dict(transport.headers)
        if transport.auth is not None:
            headers.update(_asked(transport, transport.auth.headers))
            _check_headers(headers)
        options: dict[str, Any] = {
            "ssl": transport.ssl,
            "proxy": transport.proxy or None,
            "compression": "deflate" if transport.compression else None,
            "additional_headers": headers,
            "subprotocols": transport.subprotocols or None,
            "open_timeout": self._left(),
            "ping_interval": transport.ping_interval,
            "ping_timeout": transport.ping_timeout,
            "close_timeout": transport.close_timeout,
            "max_size": transport.max_message_size,
            "create_connection": self._create,
        }
        try:
            websocket = connect(transport.url, **options).__enter__()
        except Refusal as error:
            raise _refused(transport, error.response) from error
        assert isinstance(websocket, WebSocket)
        with suppress(OSError):  # the server closed at once and the socket is gone: recv says how
            websocket.socket.settimeout(transport.send_timeout)
        return Link(websocket)

    def _left(self) -> float:
        """Seconds until the deadline; the credentials may have taken them all."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._given_up:
            raise TimeoutError
        return left

    def _create(self, *arguments: Any, **options: Any) -> WebSocket:
        websocket = WebSocket(*arguments, **options)
        with self._lock:
            self._current = websocket
            given_up = self._given_up
        if given_up:
            websocket.cut()
        return websocket


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if any(character in name + value for character in "\r\n\0"):
            raise ValueError(f"the header {name!r} has a line break or a NUL in it")


def _asked(transport: Transport, method: Any) -> Any:
    """What the credentials answer. They are the user's code: whatever it raises leaves us without a connection."""
    try:
        return method()
    except ClientError:
        raise
    except Exception as error:
        raise ConnectionUnavailableError(f"{transport.place}: no credentials: {error!r}") from error


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _refused(transport: Transport, response: Response) -> ClientError:
    """The answer was not 101."""
    status, headers = response.status_code, response.headers
    body = printable(bytes(response.body or b"")[:200].decode("utf-8", "replace"))
    reason = f"{transport.place} answered {status}" + (f": {body}" if body else "")
    if status in (401, 403):
        return AuthError(reason, status=status)
    if 300 <= status < 400 and (location := headers.get_all("Location")):
        with suppress(ValueError):  # no URL
            there = printable(_place(urljoin(transport.url, location[0])))
            reason = f"{transport.place} answered {status} and points to {there}: use that URL if you trust it"
    after = next(iter(headers.get_all("Retry-After")), "")
    return ConnectionUnavailableError(reason, status=status, retry_after=float(after) if after.isdecimal() else None)


def _unavailable(transport: Transport, error: Exception) -> ConnectionUnavailableError:
    """There was no answer, or none that can be used."""
    if isinstance(error, TimeoutError):
        what = f"not open after {transport.open_timeout:g} s"
    elif isinstance(error, InvalidMessage):
        what = f"no HTTP answer came ({error.__cause__ or error})"
    elif isinstance(error, InvalidProxy):
        what = f"the proxy cannot be used: {error.msg}"  # its URL may have a password in it
    elif isinstance(error, InvalidHandshake):
        what = f"the upgrade failed: {error}"
    else:
        what = str(error) or repr(error)
    unavailable = ConnectionUnavailableError(f"{transport.place}: {what}")
    unavailable.__cause__ = error
    return unavailable
