"""/socket.io/: WebSocket from the start, no polling. The token comes in the header JWT, from a page in the query."""

from krait_ws import Request, Response
from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse

from .._client import Client
from .._data import json_answer
from .._tokens import seconds_left


def websocket(request: WebsocketsRequest) -> WebsocketsResponse | Response:
    """401 without a good token; 400 for another version of the protocol."""
    seconds = seconds_left(request.http)
    if (request.query.get("EIO"), request.query.get("transport")) != ("3", "websocket"):
        return json_answer({"code": 5, "message": "Unsupported protocol version"}, 400)
    return WebsocketsResponse(Client(seconds))


def http(request: Request) -> Response:
    """There is no polling here."""
    return json_answer({"code": 0, "message": "Transport unknown"}, 400)
