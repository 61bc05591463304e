"""POST /api/v1/items/5/commands with {"command": "SET_LEVEL", "tParams": {"LEVEL": 50}}: does something."""

from krait_ws import Request, Response, ResponseBadRequest

from ....._data import json_answer, read_json
from ....._house import ITEMS, house
from ....._tokens import seconds_left


def http(request: Request) -> Response:
    """400 for a command that this item does not know."""
    seconds_left(request)
    if request.method != "POST":
        return Response("Method Not Allowed\n", status=405, headers={"Allow": "POST"})
    if request.params["id"] not in map(str, ITEMS):
        return json_answer({"error": "Not found", "details": "No such item"}, 404)
    data = read_json(request.get_data())
    if not isinstance(data, dict) or not isinstance(data.get("command"), str):
        return ResponseBadRequest('Expected {"command": "...", "tParams": {...}}.\n')
    parameters = data.get("tParams")
    level = parameters.get("LEVEL") if isinstance(parameters, dict) else None
    if not house.command(int(request.params["id"]), data["command"], level):
        return json_answer({"error": "Invalid command", "details": data["command"]}, 400)
    return json_answer({"done": True})
