"""A command with a level, such as /rest/nodes/10%20A1%2002%201/cmd/DON/128."""

from krait_ws import Request, Response

from ...._commands import run


def http(request: Request) -> Response:
    """Runs it."""
    return run(request)
