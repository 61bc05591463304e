"""Who may do something: a login gives a signed token, and every request brings it along."""

from __future__ import annotations

import hmac
import os
import secrets
from datetime import datetime, timezone

from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.exceptions import Unauthorized

from krait_ws import Request

from ._data import json_answer

LIFETIME = 86_400  # seconds
USERS = {"ann": "a garden of stones"}  # for the demo; a real site asks its database

# Tokens outlive a restart, and are good in every worker process, where the environment says what they are signed with.
_serializer = URLSafeTimedSerializer(os.environ.get("DIRECTOR_SECRET") or secrets.token_hex(32), salt="director")


def new_token(user: str, password: str) -> str | None:
    """Returns a token, or None if the password is wrong. Nobody needs to look into it, so it is no JWT."""
    expected = USERS.get(user, "")
    # JSON can hold halves of characters, which UTF-8 cannot.
    good = hmac.compare_digest(expected.encode(), password.encode("utf-8", "surrogatepass"))
    return _serializer.dumps(user) if good and expected else None


def seconds_left(request: Request) -> float:
    """For how long the token of a request is good: in the header JWT, as a Bearer, or in the query.

    Raises:
        Unauthorized: There is none, it was not made here, or it is too old. The answer is as the clients know it.
    """
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    token = request.headers.get("JWT") or (bearer if scheme == "Bearer" else request.args.get("JWT", ""))
    try:
        _user, made_at = _serializer.loads(token, max_age=LIFETIME, return_timestamp=True)
    except BadData:
        details = {"error": "Unauthorized", "details": "Expired or invalid token"}
        raise Unauthorized(response=json_answer(details, 401)) from None
    age = datetime.now(timezone.utc) - made_at
    return LIFETIME - age.total_seconds()
