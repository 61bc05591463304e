"""What clients ask for to know what kinds of devices can do. Here none is described: commands are checked when used."""

import krait_ws

from .._access import require_user

require_user(krait_ws.request)
krait_ws.response = krait_ws.Response('{"timestamp": "", "families": []}', mimetype="application/json")
