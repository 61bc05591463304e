"""Who may come in: by name and password, by a token that the login route gave, or by its cookie."""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from typing import Any

from krait_ws import Request, Response, auth
from krait_ws.websockets import WebsocketsRequest

USERS = {"demo": "demo"}  # it is a demo: the page shows the password
COOKIE = "hub"
SECRET = secrets.token_bytes(32)  # a restart ends every sign-in
TOKEN_SECONDS = 3600.0
REFRESH_SECONDS = 30 * 24 * 3600.0
MAX_TOKENS = 10_000


def require_user(request: Request | WebsocketsRequest | None) -> Any:
    """The user's name; refuses everybody else. A page cannot set headers of an upgrade, so it comes with a cookie."""
    assert request is not None
    scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
    if scheme == "bearer":
        return auth.require_bearer(request, tokens.user_of)
    from_page = "Origin" in request.headers or COOKIE in request.cookies
    if from_page and not scheme:
        return auth.require_signed_cookie(request, COOKIE, SECRET, close=isinstance(request, WebsocketsRequest))
    return auth.require_basic(request, USERS, realm="hub")


class Tokens:
    """Tokens that were given out, each with its owner and its end. Thread: any.

    They are good because they are known here, not because of what is in them; they have the form of a JWT, because
    clients look up in it when to come for a new one (``exp``, RFC 7519 section 4.1.4).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, tuple[str, str, float]] = {}  # token -> user, use, end; oldest first; guarded by _lock

    def new_pair(self, user: str) -> dict[str, str]:
        """A token, and one that ``renew`` takes."""
        return {
            "accessToken": self._new(user, "access", TOKEN_SECONDS),
            "refreshToken": self._new(user, "refresh", REFRESH_SECONDS),
        }

    def user_of(self, token: str, use: str = "access") -> str | None:
        """Whose token it is, if it is still good."""
        with self._lock:
            user, its_use, end = self._owners.get(token, ("", "", 0.0))
        return user if its_use == use and time.time() < end else None

    def renew(self, refresh_token: str) -> dict[str, str] | None:
        """A new pair for one that takes the place of the old: a refresh token is good once."""
        user = self.user_of(refresh_token, "refresh")
        return self.new_pair(user) if user and self.forget(refresh_token) else None

    def forget(self, token: str) -> bool:
        """Makes a token worthless; ``False`` when it was."""
        with self._lock:
            return self._owners.pop(token, None) is not None

    def _new(self, user: str, use: str, seconds: float) -> str:
        end = time.time() + seconds
        token = f"{_segment({'typ': 'JWT'})}.{_segment({'sub': user, 'exp': int(end)})}.{secrets.token_urlsafe(32)}"
        with self._lock:
            while len(self._owners) >= MAX_TOKENS:
                del self._owners[next(iter(self._owners))]
            self._owners[token] = (user, use, end)
        return token


def _segment(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def read_text(request: Request, *names: str) -> list[str] | None:
    """The members of the JSON object that was posted; ``None`` when it has not all of them, as text."""
    try:
        data = json.loads(request.get_data())
    except (ValueError, RecursionError):  # RecursionError: "[[[[..." nested too deep
        return None
    found = [data.get(name) for name in names] if isinstance(data, dict) else []
    texts = [text for text in found if isinstance(text, str) and text.isprintable()]
    return texts if len(texts) == len(names) else None


def answer(data: Any = None, status: int = 200) -> Response:
    """JSON in the envelope that clients expect."""
    body = json.dumps({"successful": status == 200, "data": data})
    return Response(body, status=status, mimetype="application/json", headers={"Cache-Control": "no-store"})


tokens = Tokens()
