"""What a client loads before it subscribes. This hub has devices, and nothing of the rest."""

from krait_ws import Request, Response, __version__

from .._access import answer, require_user
from .._devices import hub


def http(request: Request) -> Response:
    """Everybody may ask what this is; for the rest they have to say who they are."""
    table = request.params["table"]
    if table == "config":
        return answer({"uuid": "00:00:00:00:00:01", "version": f"6.0.0 krait-ws {__version__}"})
    require_user(request)
    if table == "nodes":
        return answer({"nodes": {"node": [node(address) for address in hub.devices], "group": [], "folder": []}})
    if table in ("programs", "triggers"):
        return answer([])
    return answer(f"There is no {table!r} here.", status=404)


def node(address: str) -> dict[str, object]:
    """A device with its state."""
    device = hub.devices[address]
    level = str(hub.levels()[address])
    state = {"id": "ST", "value": level, "formatted": level, "uom": "100", "prec": "0"}
    return {
        "address": address,
        "name": device.name,
        "nodeDefId": "DimmerLampSwitch" if device.dims else "RelayLampSwitch",
        "enabled": "true",
        "property": [state],
    }
