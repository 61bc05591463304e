"""Echo on an OS thread per connection."""

from _echo import ThreadEcho

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(ThreadEcho())
