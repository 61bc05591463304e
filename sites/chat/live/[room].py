"""Function form: `websocket` is called for each upgrade at /chat/live/<room>?name=<name>."""

from _demos.chat import ChatMember, clean_name, clean_room

from krait_ws import Response, ResponseBadRequest
from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse


def websocket(request: WebsocketsRequest) -> WebsocketsResponse | Response:
    """Refuses a room or a name that is not valid; the room comes from the URL."""
    room = clean_room(request.params["room"])
    name = clean_name(request.query.get("name", ""))
    if room is None or name is None:
        return ResponseBadRequest()
    return WebsocketsResponse(ChatMember(room, name))
