"""GET /api/v1/items: what there is in the house."""

from krait_ws import Request, Response

from ..._data import json_answer
from ..._house import ITEMS
from ..._tokens import seconds_left


def http(request: Request) -> Response:
    seconds_left(request)
    return json_answer([{"id": number, "name": item.name, "typeName": item.kind} for number, item in ITEMS.items()])
