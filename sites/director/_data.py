"""JSON of clients, and for them."""

from __future__ import annotations

import json
from typing import Any

from krait_ws import Response


def read_json(text: str | bytes) -> Any:
    """Returns what was sent, or None if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: "[[[[..." nested too deep
        return None


def json_answer(data: object, status: int = 200) -> Response:
    return Response(json.dumps(data), status=status, mimetype="application/json")
