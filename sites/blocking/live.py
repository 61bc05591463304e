"""Function form: `websocket` is called for each upgrade at /blocking/live."""

from _demos.blocking import SlowWork

from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse


def websocket(request: WebsocketsRequest) -> WebsocketsResponse:
    """Accepts everybody."""
    return WebsocketsResponse(SlowWork())
