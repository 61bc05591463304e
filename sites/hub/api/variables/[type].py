"""Variables, of which this hub has none."""

import krait_ws

from ..._access import answer, require_user

require_user(krait_ws.request)
krait_ws.response = answer([])
