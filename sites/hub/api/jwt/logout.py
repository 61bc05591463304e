"""Makes the token that this comes with worthless, and takes back the cookie."""

from krait_ws import Request, Response

from ..._access import COOKIE, answer, require_user, tokens


def http(request: Request) -> Response:
    """POST, with the token in the Authorization header or with the cookie."""
    require_user(request)
    if request.method != "POST":
        return answer("POST it.", status=400)
    tokens.forget(request.headers.get("Authorization", "").partition(" ")[2].strip())
    response = answer()
    response.delete_cookie(COOKIE)
    return response
