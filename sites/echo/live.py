"""Function form: loaded once; `websocket` is called for each upgrade at /echo/live."""

from _demos.echo import Echo

from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse


def websocket(request: WebsocketsRequest) -> WebsocketsResponse:
    """Accepts everybody."""
    return WebsocketsResponse(Echo())
