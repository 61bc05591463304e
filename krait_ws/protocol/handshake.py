"""The opening handshake (RFC 6455 section 4.2), without I/O.

Comes in: a request as a WSGI environ, plain data. Goes out: the headers of the 101, or a ``HandshakeError`` that
carries the HTTP answer. Repeated headers reach a WSGI environ joined with commas, which is how RFC 9110 section 5.3
says to read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from websockets.exceptions import InvalidHeaderFormat
from websockets.headers import parse_connection, parse_extension, parse_subprotocol, parse_upgrade
from websockets.utils import accept_key

from krait_ws.errors import HandshakeError

Environ: TypeAlias = Mapping[str, Any]
Headers: TypeAlias = list[tuple[str, str]]

VERSION = "13"
_BAD_REQUEST = "400 Bad Request"
_MAX_LIST = 1024
"""Bytes of a header that is a list. Reading one costs 1 µs a byte on the network loop."""
_LISTS = ("HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_EXTENSIONS")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~-]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>{_HOST.pattern})")


def is_upgrade(environ: Environ) -> bool:
    """Whether the request asks for WebSocket: its Upgrade header names ``websocket``, in any case."""
    upgrade = environ.get("HTTP_UPGRADE", "")
    return len(upgrade) <= _MAX_LIST and _names_websocket(upgrade)


def tries_upgrade(environ: Environ) -> bool:
    """Whether the request means to be an upgrade, rightly or wrongly made."""
    return is_upgrade(environ) or "HTTP_SEC_WEBSOCKET_KEY" in environ


def parse_subprotocols(header: str) -> list[str] | None:
    """The subprotocols in a Sec-WebSocket-Protocol header, in the client's order; ``None`` when there are none.

    Raises:
        HandshakeError: The header cannot be read.
    """
    if not header.strip():
        return None
    try:
        return [str(name) for name in parse_subprotocol(header.strip())]
    except InvalidHeaderFormat as error:
        raise HandshakeError(_BAD_REQUEST, f"Sec-WebSocket-Protocol cannot be read: {error}") from None


def check_upgrade(environ: Environ) -> None:
    """Checks what section 4.2.1 asks of an upgrade request.

    Headers that must not be repeated (sections 4.1 and 11.3) are wrong with a comma in them.

    Raises:
        HandshakeError: 405 for another method than GET, 505 for HTTP/1.0, 426 for another version than 13, 400 for the
            rest.
    """
    if environ["REQUEST_METHOD"] != "GET":
        raise HandshakeError("405 Method Not Allowed", "a WebSocket upgrade is a GET request", (("Allow", "GET"),))
    if environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        raise HandshakeError("505 HTTP Version Not Supported", "a WebSocket upgrade needs HTTP/1.1")
    if not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
        raise HandshakeError(_BAD_REQUEST, "there must be one Host header, a host and perhaps a port")
    for name in _LISTS:
        if len(environ.get(name, "")) > _MAX_LIST:
            raise HandshakeError(_BAD_REQUEST, f"a header of the handshake is longer than {_MAX_LIST} bytes")
    if environ.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in environ:
        raise HandshakeError(_BAD_REQUEST, "a WebSocket upgrade has no body")
    if not is_upgrade(environ):
        raise HandshakeError(_BAD_REQUEST, "the Upgrade header must name websocket (does a proxy remove it?)")
    if not _names_upgrade(environ.get("HTTP_CONNECTION", "")):
        raise HandshakeError(_BAD_REQUEST, "the Connection header must contain Upgrade")
    version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
    if "," in version:
        raise HandshakeError(_BAD_REQUEST, "there must be one Sec-WebSocket-Version header")
    if version != VERSION:
        raise HandshakeError(
            "426 Upgrade Required",
            f"Sec-WebSocket-Version must be {VERSION}",
            (("Sec-WebSocket-Version", VERSION), ("Upgrade", "websocket"), ("Connection", "Upgrade")),
        )
    _check_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", ""))
    parse_subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
    _check_extensions(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""))


def check_origin(environ: Environ, allowed: frozenset[str]) -> None:
    """Refuses the page of another site (section 10.2). A request without Origin comes from no browser and passes.

    Args:
        environ: The request.
        allowed: Origins that may connect besides the request's own; ``*`` stands for all.

    Raises:
        HandshakeError: 403.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None or "*" in allowed or origin in allowed:
        return
    own = f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}"
    parts = _origin_parts(origin)
    if parts is None or parts != _origin_parts(own):
        raise HandshakeError(
            "403 Forbidden",
            f"a page of {origin[:200]} may not connect to {own[:200]}: allow its origin with --origin, "
            "or, when a proxy stands before this server, name it with --trusted-proxy",
        )


def accept_headers(environ: Environ, protocol: str | None, extensions: str | None) -> Headers:
    """The headers of the 101 (section 4.2.2) for a request that ``check_upgrade`` let pass."""
    headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])),
    ]
    if protocol is not None:
        headers.append(("Sec-WebSocket-Protocol", protocol))
    if extensions is not None:
        headers.append(("Sec-WebSocket-Extensions", extensions))
    return headers


def _origin_parts(origin: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of an origin (RFC 6454 section 4), comparable; ``None`` when it is none, like "null"."""
    found = _ORIGIN.fullmatch(origin)
    if not found:
        return None
    scheme = found["scheme"].lower()
    try:
        parts = urlsplit(origin)
        return scheme, (parts.hostname or ""), parts.port or {"http": 80, "https": 443}.get(scheme)
    except ValueError:  # a port above 65535, an address in brackets that is none
        return None


# Nearly all clients send one of few values.
@lru_cache(maxsize=64)
def _names_websocket(header: str) -> bool:
    if "websocket" not in header.lower():
        return False
    try:
        return any(token.lower() == "websocket" for token in parse_upgrade(header.strip()))
    except InvalidHeaderFormat:
        return False


@lru_cache(maxsize=64)
def _names_upgrade(header: str) -> bool:
    try:
        return any(token.lower() == "upgrade" for token in parse_connection(header))
    except InvalidHeaderFormat:
        return False


def _check_extensions(header: str) -> None:
    try:
        if header:
            parse_extension(header)
    except InvalidHeaderFormat as error:
        raise HandshakeError(_BAD_REQUEST, f"Sec-WebSocket-Extensions cannot be read: {error}") from None


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise HandshakeError(_BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")
