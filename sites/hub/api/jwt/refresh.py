"""A refresh token for two new tokens."""

from krait_ws import Request, Response

from ..._access import answer, read_text, tokens


def http(request: Request) -> Response:
    """POST {"refreshToken": …}."""
    posted = read_text(request, "refreshToken") if request.method == "POST" else None
    if posted is None:
        return answer('POST {"refreshToken": "..."}', status=400)
    pair = tokens.renew(*posted)
    return answer(pair) if pair else answer("The token is not good: sign in again.", status=401)
