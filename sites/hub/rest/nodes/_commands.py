"""Commands to devices: `DON` switches on, with a level where the device dims, and `DOF` off."""

import re
from xml.sax.saxutils import escape

from krait_ws import Request, Response

from ..._access import require_user
from ..._devices import hub


def run(request: Request) -> Response:
    """Runs the command that the URL names, for somebody who may come in."""
    require_user(request)
    # A GET that changes something must not be set off by a link on a foreign page, which brings the cookie along.
    if request.method != "POST" and (request.method != "GET" or "Authorization" not in request.headers):
        return answer(405, "POST it, or GET it with an Authorization header.")
    device = hub.devices.get(request.params["address"])
    if device is None:
        return answer(404, "There is no such device.")
    level = request.params.get("level")
    if level is not None and not re.fullmatch("[0-9]{1,3}", level):
        return answer(400, "A level is 0 to 255.")
    try:
        hub.set_level(device, device.level(request.params["command"], None if level is None else int(level)))
    except ValueError as error:
        return answer(400, str(error))
    return answer(200, "done")


def answer(status: int, reason: str) -> Response:
    """The XML that clients expect."""
    succeeded = "true" if status == 200 else "false"
    content = f"<status>{status}</status><reason>{escape(reason)}</reason>"
    body = f'<?xml version="1.0"?><RestResponse succeeded="{succeeded}">{content}</RestResponse>'
    headers = {"Allow": "GET, POST"} if status == 405 else None
    return Response(body, status=status, mimetype="application/xml", headers=headers)
