"""A waiting OS thread per connection."""

from _echo import ThreadIdle

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(ThreadIdle())
