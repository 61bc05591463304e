"""Who may use the transcriber: programs with a key, and the page with the cookie that it came with."""

import secrets
from typing import Any

from krait_ws import auth
from krait_ws.websockets import WebsocketsRequest

KEYS = {"demo": "demo-key"}  # it is a demo: the page shows the key
COOKIE = "transcriber"
SECRET = secrets.token_bytes(32)  # after a restart the page has to be loaded again


def require_user(request: WebsocketsRequest) -> Any:
    """Refuses everybody else. A page cannot set headers of an upgrade."""
    if request.origin is not None and "Authorization" not in request.headers:
        return auth.require_signed_cookie(request, COOKIE, SECRET, close=True)
    return auth.require_bearer(request, KEYS)
