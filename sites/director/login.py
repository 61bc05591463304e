"""POST /login with {"user": ..., "password": ...} gives a token."""

from krait_ws import Request, Response, ResponseBadRequest

from ._data import json_answer, read_json
from ._tokens import LIFETIME, new_token


def http(request: Request) -> Response:
    """401 for a wrong password."""
    if request.method != "POST":
        return Response("Method Not Allowed\n", status=405, headers={"Allow": "POST"})
    data = read_json(request.get_data())
    user, password = (data.get("user"), data.get("password")) if isinstance(data, dict) else (None, None)
    if not isinstance(user, str) or not isinstance(password, str):
        return ResponseBadRequest('Expected {"user": "...", "password": "..."}.\n')
    token = new_token(user, password)
    if token is None:
        return json_answer({"error": "Unauthorized", "details": "Permission denied Bad credentials"}, 401)
    return json_answer({"token": token, "seconds": LIFETIME})
