"""Echo in the event model, on the network loop."""

from _echo import LoopEcho

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(LoopEcho())
