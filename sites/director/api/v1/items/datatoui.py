"""GET /api/v1/items/datatoui?JWT=...&SubscriptionClient=...: lets a connection follow the items."""

from krait_ws import Request, Response

from ...._client import clients
from ...._data import json_answer
from ...._house import house
from ...._tokens import seconds_left


def http(request: Request) -> Response:
    """The connection is the one that was told this client id; it starts the subscription itself."""
    seconds_left(request)
    client = clients.find(request.args.get("SubscriptionClient", ""))
    if client is None:
        return json_answer({"error": "Not found", "details": "No such subscription client"}, 404)
    client.may_follow = True
    return json_answer({"subscriptionId": house.subscription})
