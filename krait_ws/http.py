"""The HTTP request and the answers to it: werkzeug's classes, with the answers that route scripts need most.

Thread: any; an instance belongs to one request.
"""

from __future__ import annotations

import json
from typing import Any

from werkzeug.wrappers import Request as _Request
from werkzeug.wrappers import Response as _Response


class _Json:
    """The standard ``json``, for which text that is nested too deep is wrong like any other: ``ValueError``."""

    dumps = staticmethod(json.dumps)

    @staticmethod
    def loads(text: str | bytes, **options: Any) -> Any:
        try:
            return json.loads(text, **options)
        except RecursionError:
            raise ValueError("it is nested too deep") from None


class Request(_Request):
    """A plain request, or the request that asks for an upgrade. Its body has been read when a route script sees it.

    Attributes:
        params: What the ``[name]`` segments of the route matched.
    """

    params: dict[str, str] = {}  # noqa: RUF012  replaced per request, never changed
    json_module: Any = _Json


class Response(_Response):
    """``Response("no", status=403, headers={...})``; werkzeug's class, with text/plain unless told otherwise."""


class ResponseBadRequest(Response):
    """400."""

    def __init__(self, body: str = "Bad Request") -> None:
        super().__init__(body, status=400)


class ResponseNotFound(Response):
    """404."""

    def __init__(self, body: str = "Not Found") -> None:
        super().__init__(body, status=404)


class ResponseRedirect(Response):
    """Sends the client to ``url``, with 302 unless told otherwise."""

    def __init__(self, url: str, status: int = 302) -> None:
        super().__init__(f"See {url}", status=status, headers={"Location": url})
