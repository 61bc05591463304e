"""All states at once, as XML."""

from xml.sax.saxutils import quoteattr

from krait_ws import Request, Response

from .._access import require_user
from .._devices import hub


def http(request: Request) -> Response:
    """One `node` for each device."""
    require_user(request)
    nodes = [
        f'<node id={quoteattr(address)}><property id="ST" value="{level}" formatted="{level}" uom="100"/></node>'
        for address, level in hub.levels().items()
    ]
    return Response(f'<?xml version="1.0"?><nodes>{"".join(nodes)}</nodes>', mimetype="application/xml")
