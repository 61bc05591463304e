"""GET /api/v1/items/5/variables?varnames=LIGHT_LEVEL: what an item says of itself; without names everything."""

from krait_ws import Request, Response

from ....._data import json_answer
from ....._house import ITEMS, house
from ....._tokens import seconds_left


def http(request: Request) -> Response:
    seconds_left(request)
    if request.params["id"] not in map(str, ITEMS):
        return json_answer({"error": "Not found", "details": "No such item"}, 404)
    number = int(request.params["id"])
    state = house.state(number)
    names = request.args.get("varnames", ",".join(state)).split(",")
    return json_answer([{"id": number, "varName": name, "value": state[name]} for name in names if name in state])
