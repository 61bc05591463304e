"""The page, with a signed cookie that lets it in: whoever may see the page may use the transcriber."""

from pathlib import Path

from krait_ws import Request, Response, auth

from ._access import COOKIE, SECRET


def http(request: Request) -> Response:
    """The same page for everybody."""
    page = Path(__file__).with_name("_page.html").read_text(encoding="utf-8")
    response = Response(page, mimetype="text/html", headers={"Cache-Control": "no-store"})
    auth.set_signed_cookie(response, COOKIE, "visitor", SECRET, secure=request.is_secure)
    return response
