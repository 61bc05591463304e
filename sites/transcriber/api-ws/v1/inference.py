"""Function form: `websocket` is called for each upgrade at /api-ws/v1/inference."""

from krait_ws.websockets import WebsocketsRequest, WebsocketsResponse

from ..._access import require_user
from ..._tasks import Transcriber


def websocket(request: WebsocketsRequest) -> WebsocketsResponse:
    """Accepts those who may come in; the others get a 401, and a page close code 4401."""
    require_user(request)
    return WebsocketsResponse(Transcriber())
