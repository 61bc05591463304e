"""Function form: `websocket` is called for each upgrade at /clock/live."""

from _demos.clock import Clock

from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse


def websocket(request: WebsocketsRequest) -> WebsocketsResponse:
    """Gives each connection a clock of its own."""
    return WebsocketsResponse(Clock())
