"""Name and password for two tokens, and for a page a cookie."""

import hmac

from krait_ws import Request, Response, auth

from .._access import COOKIE, SECRET, USERS, answer, read_text, tokens


def http(request: Request) -> Response:
    """POST {"username": …, "password": …}."""
    posted = read_text(request, "username", "password") if request.method == "POST" else None
    if posted is None:
        return answer('POST {"username": "...", "password": "..."}', status=400)
    user, password = posted
    if not hmac.compare_digest(USERS.get(user, "").encode(), password.encode()) or user not in USERS:
        return answer("Name or password is wrong.", status=401)
    response = answer(tokens.new_pair(user))
    auth.set_signed_cookie(response, COOKIE, user, SECRET, secure=request.is_secure)
    return response
