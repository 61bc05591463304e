"""A connection of the event model that says nothing."""

from _echo import LoopIdle

from krait_ws.websockets import WebsocketsResponse


def websocket(request):
    return WebsocketsResponse(LoopIdle())
