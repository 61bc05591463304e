"""Static files and the answers that no route script gives.

Comes in: a file of the site, or what went wrong. Goes out: a ``Response``. werkzeug does types, ETag, Last-Modified,
ranges and conditional requests.

Thread: any; it reads the disk, so not the network loop.
"""

from __future__ import annotations

import html
import traceback
from pathlib import Path
from urllib.parse import quote

from werkzeug.exceptions import HTTPException, RequestedRangeNotSatisfiable
from werkzeug.utils import send_file
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.http import Request, Response, ResponseNotFound, ResponseRedirect


def static_file(file: Path, request: Request) -> WerkzeugResponse:
    """A file of the site; 405 for another method than GET and HEAD, 404 when it cannot be read."""
    if request.method not in ("GET", "HEAD"):
        return Response("Method Not Allowed\n", status=405, headers={"Allow": "GET, HEAD"})
    try:
        response = send_file(file, request.environ, conditional=True)
    except RequestedRangeNotSatisfiable as error:
        return WerkzeugResponse.force_type(error.get_response(request.environ))
    except OSError:
        return not_found()
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def not_found() -> Response:
    return ResponseNotFound("Not Found\n")


def folder_redirect(request: Request, path: str) -> Response:
    """To the folder's own URL, so that the relative links of its page work."""
    query = request.query_string.decode("latin-1")
    return ResponseRedirect(quote(path) + "/" + (f"?{query}" if query else ""), status=308)


def http_exception(error: HTTPException, request: Request) -> WerkzeugResponse:
    """The answer that a route script asked for by raising one of werkzeug's HTTP exceptions."""
    return WerkzeugResponse.force_type(error.get_response(request.environ))


def script_error(error: BaseException, *, debug: bool) -> Response:
    """500; with ``debug`` the page shows the traceback, else nothing of it."""
    if not debug:
        return Response("Internal Server Error\n", status=500)
    text = "".join(traceback.format_exception(error))
    page = (
        "<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem}}pre{{overflow:auto;padding:1rem;"
        "background:#8882;border-radius:6px}}</style><h1>{title}</h1><pre>{text}</pre>"
    )
    title = html.escape(f"{type(error).__name__}: {error}")
    return Response(page.format(title=title, text=html.escape(text)), status=500, mimetype="text/html")
