"""What a route script and a controller need of WebSocket::

    from krait_ws import websockets

    if websockets.request is not None and "chat" in (websockets.request.protocols or ()):
        websockets.response = websockets.WebsocketsResponse(Chat(), "chat")

``request`` is the current ``WebsocketsRequest``, ``None`` where the request asks for no upgrade. ``response`` is
``None`` until the script assigns a ``WebsocketsResponse``; still ``None`` when the script ends means refused. Both are
per request, whatever runs at the same moment, so they must be read and assigned on the module:
``from krait_ws.websockets import response`` copies what they are at import, which is ``None``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from krait_ws import context
from krait_ws.broadcast import broadcast
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.controller import WebsocketsCtrlBase

__all__ = ["WebsocketsCtrlBase", "WebsocketsRequest", "WebsocketsResponse", "broadcast"]

if TYPE_CHECKING:
    request: WebsocketsRequest | None
    response: WebsocketsResponse | None


class _Websockets(ModuleType):
    """A module whose ``request`` and ``response`` are those of the current context."""

    @property
    def request(self) -> WebsocketsRequest | None:
        return context.websockets_request.get()

    @request.setter
    def request(self, request: WebsocketsRequest | None) -> None:
        if request is not None and not isinstance(request, WebsocketsRequest):
            raise TypeError(f"websockets.request must be a WebsocketsRequest or None, not {request!r}")
        context.websockets_request.set(request)

    @property
    def response(self) -> WebsocketsResponse | None:
        return context.websockets_response.get()

    @response.setter
    def response(self, response: WebsocketsResponse | None) -> None:
        if response is not None and not isinstance(response, WebsocketsResponse):
            raise TypeError(f"websockets.response must be a WebsocketsResponse or None, not {response!r}")
        context.websockets_response.set(response)


sys.modules[__name__].__class__ = _Websockets
