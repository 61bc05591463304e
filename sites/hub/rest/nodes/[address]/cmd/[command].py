"""A command without a level, such as /rest/nodes/10%20A1%2001%201/cmd/DON."""

from krait_ws import Request, Response

from ..._commands import run


def http(request: Request) -> Response:
    """Runs it."""
    return run(request)
