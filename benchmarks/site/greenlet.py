"""Echo on a greenlet per connection."""

from _echo import GreenletEcho

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(GreenletEcho())
