"""Both at one URL: an upgrade joins the relay, a plain request gets the panel. A script needs no path this way."""

from pathlib import Path

from werkzeug.utils import send_file

from krait_ws import Request, Response, ResponseBadRequest
from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse

from ._relay import Peer

MAX_ROOM_NAME = 64


def websocket(request: WebsocketsRequest) -> WebsocketsResponse | Response:
    """Only peers of the same `?room=` hear each other."""
    room = request.query.get("room", "")
    if len(room) > MAX_ROOM_NAME:
        return ResponseBadRequest(f"A room has at most {MAX_ROOM_NAME} characters.\n")
    return WebsocketsResponse(Peer(room))


def http(request: Request) -> Response:
    """The panel's page."""
    return send_file(Path(__file__).with_name("_panel.html"), request.environ)
