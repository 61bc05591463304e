"""Who may see the metrics and the dashboard.

With a token: who sends it, as ``Authorization: Bearer`` or in the cookie that the dashboard's login sets. It never
stands in a URL, because URLs are logged. Without a token: a program or a browser on this machine. That is told by the
peer's address, and the request must have come by nobody else's hand: not through a proxy (a request that a trusted
proxy or any header says was forwarded), and not from a page whose name its owner has pointed at this machine (DNS
rebinding: the Host header must name this machine).

Thread: any; nothing here waits.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from typing import Any

from krait_ws.errors import HandshakeError
from krait_ws.protocol.handshake import check_origin

COOKIE = "krait_dashboard"
COOKIE_SECONDS = 12 * 3600

_FORWARDED = re.compile(r"HTTP_(X_FORWARDED(_.*)?|FORWARDED|X_REAL_IP|VIA|(.*_)?CLIENT_IP|CF_CONNECTING_IP)")
_PROXY_FIX = "werkzeug.proxy_fix.orig"  # in the environ of a request that came from a trusted proxy
_ELSEWHERE = (
    "This is for this machine only. From elsewhere, or through a proxy, it needs a token: "
    "set KRAIT_DASHBOARD_TOKEN and send it as Authorization: Bearer."
)

Environ = dict[str, Any]


class Guard:
    """See the module.

    Args:
        token: ``""`` for none.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    def refusal(self, environ: Environ) -> str | None:
        """Why the sender of a request may not see it; ``None`` when it may."""
        if self.has_token:
            sent = self._bearer(environ) or self._is_valid(_cookie(environ))
            return None if sent else "The token is missing or wrong: send it as Authorization: Bearer."
        return None if is_local(environ) else _ELSEWHERE

    def knows(self, token: str) -> bool:
        """Whether this is the token."""
        return self.has_token and hmac.compare_digest(token.encode(), self._token)

    def new_cookie(self) -> str:
        """A cookie's value that stands for the token, in every worker, for ``COOKIE_SECONDS``; it does not give the
        token away."""
        return self._signed(str(int(time.time()) + COOKIE_SECONDS))

    def _bearer(self, environ: Environ) -> bool:
        kind, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        return kind.lower() == "bearer" and self.knows(token.strip())

    def _is_valid(self, cookie: str) -> bool:
        until = cookie.partition(".")[0]
        signed = hmac.compare_digest(cookie.encode(), self._signed(until).encode())
        return signed and until.isdecimal() and int(until) > time.time()

    def _signed(self, until: str) -> str:
        digest = hmac.new(self._token, f"krait-ws dashboard until {until}".encode(), hashlib.sha256)
        return f"{until}.{digest.hexdigest()}"


def is_own_page(environ: Environ) -> bool:
    """Whether a request comes from a page of this very server, or from no page at all. Unlike for a site, no other
    origin can be allowed: a page that may talk to the dashboard may close connections."""
    try:
        check_origin({"HTTP_HOST": "", **environ}, frozenset())
    except HandshakeError:
        return False
    return True


def is_local(environ: Environ) -> bool:
    """Whether a request comes from a program or a browser on this machine, meant for it."""
    if _PROXY_FIX in environ or any(_FORWARDED.fullmatch(name) for name in environ):
        return False
    return _is_loopback(environ.get("REMOTE_ADDR", "")) and _names_loopback(environ.get("HTTP_HOST", ""))


def _names_loopback(host: str) -> bool:
    found = re.fullmatch(r"(\[(?P<six>[^\]]*)\]|(?P<name>[^:]*))(:.*)?", host)
    name = (found["six"] or found["name"] or "") if found else ""
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _cookie(environ: Environ) -> str:
    for part in environ.get("HTTP_COOKIE", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return str(value)
    return ""
