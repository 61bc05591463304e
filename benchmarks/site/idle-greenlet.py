"""A waiting greenlet per connection."""

from _echo import GreenletIdle

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(GreenletIdle())
