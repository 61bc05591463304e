"""Who it is: one line of a route script that lets in those who can prove it.

Comes in: a request, an upgrade or a plain one, and what to check it against. Goes out: who it is, or an exception that
the site answers with 401 and a challenge, before the upgrade::

    from krait_ws import auth

    def websocket(request):
        user = auth.require_bearer(request, TOKENS)
        return WebsocketsResponse(Chat(user))

Thread: any, but never the network loop: a check may block.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.exceptions import BadRequest as _BadRequest
from werkzeug.exceptions import Unauthorized as _Unauthorized
from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws import context
from krait_ws.context import WebsocketsRequest, WebsocketsResponse
from krait_ws.controller import WebsocketsCtrlBase
from krait_ws.http import Request, Response
from krait_ws.protocol.frames import encode_close

__all__ = [
    "ClosingResponse",
    "Unauthorized",
    "require_basic",
    "require_bearer",
    "require_signed_cookie",
    "set_signed_cookie",
]

AnyRequest: TypeAlias = Request | WebsocketsRequest | None
Secret: TypeAlias = str | bytes | Sequence[str | bytes]

CLOSE_CODE = 4401
"""Says to a browser's script what 401 says to other clients. 4000 to 4999 are the applications' own (RFC 6455 section
7.4.2)."""

_DAY = 24 * 60 * 60
_LEAST_SECRET = 16  # bytes
_REALM = re.compile(r"[ !#-\[\]-~]+")  # what needs no escape in a quoted string (RFC 9110 section 5.6.4)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Unauthorized(_Unauthorized):
    """The request does not prove who it comes from: 401, or for an upgrade close code 4401.

    Args:
        reason: What is missing. It is sent to the client, so it names no secret.
        challenge: The WWW-Authenticate header: how to prove it (RFC 9110 section 11.6.1).
        close: Whether an upgrade is accepted and then closed, so that a browser's script can see the reason.
    """

    def __init__(self, reason: str, challenge: str, *, close: bool = False) -> None:
        answer = Response(f"{reason}\n", status=401, headers={"WWW-Authenticate": challenge})
        super().__init__(reason, response=answer)
        self.reason = reason
        self.close = close


class _Closing(WebsocketsCtrlBase):
    """Closes as soon as the connection is there. It takes no thread."""

    runs_on = "loop"

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(use_in_message_queue=False)
        self._krait_close = code, reason

    def on_start(self) -> None:
        super().on_start()
        self.close(*self._krait_close)


class ClosingResponse(WebsocketsResponse):
    """Accepts an upgrade and closes it at once: the one way to tell a browser's script why it was refused.

    The first subprotocol that the client offers is chosen, because browsers take no acceptance without one.

    Args:
        code: The close code; 4000 to 4999 are the applications' own.
        reason: At most 123 bytes of UTF-8.

    Raises:
        ValueError: Code or reason cannot be sent.
    """

    __slots__ = ()

    def __init__(self, code: int, reason: str = "") -> None:
        encode_close(code, reason)
        upgrade = context.websockets_request.get()
        protocols = None if upgrade is None else upgrade.protocols
        super().__init__(_Closing(code, reason), protocols[0] if protocols else None)


def require_basic(
    request: AnyRequest,
    check: Mapping[str, str] | Callable[[str, str], Any],
    *,
    realm: str = "krait-ws",
    close: bool = False,
) -> Any:
    """Lets in who knows a user's password (RFC 7617). Only over TLS: the password goes over the wire.

    Args:
        request: ``websockets.request``, ``krait_ws.request`` or the argument of ``websocket`` and ``http``.
        check: ``{user: password}``, compared in constant time, or a function of user and password that returns
            something true for those who may come in. It may block.
        realm: What the password is for; a browser shows it. ASCII, without quotes and backslashes.
        close: See ``Unauthorized``.

    Returns:
        The user's name; what the function returned, if that was not ``True``.

    Raises:
        Unauthorized: No credentials, those of another scheme, or wrong ones.
        werkzeug.exceptions.BadRequest: The header cannot be read, or there are several.
    """
    challenge = f'Basic realm="{_checked_realm(realm)}", charset="UTF-8"'
    credentials = _credentials(request, "basic", _BASE64)
    if credentials is None:
        raise Unauthorized("Name and password are needed.", challenge, close=close)
    user, password = _name_and_password(credentials)
    if isinstance(check, Mapping):
        if colons := [name for name in check if ":" in name]:
            raise ValueError(f"the user's name {colons[0]!r} has a colon, which Basic cannot carry (RFC 7617)")
        pairs = {name: f"{name}:{secret}" for name, secret in _nonempty(check).items()}
        found: Any = _owner(pairs, f"{user}:{password}")
    else:
        found = check(user, password)
    if not found:
        raise Unauthorized("Name or password is wrong.", challenge, close=close)
    return user if found is True else found


def require_bearer(
    request: AnyRequest,
    check: Mapping[str, str] | Callable[[str], Any],
    *,
    realm: str = "krait-ws",
    close: bool = False,
) -> Any:
    """Lets in who has a token (RFC 6750), in the Authorization header.

    Args:
        request: As for ``require_basic``.
        check: ``{owner: token}``, compared in constant time, or a function of the token that returns something true,
            for example the user, when it is good. It may block.
        realm: What the token is for. ASCII, without quotes and backslashes.
        close: See ``Unauthorized``.

    Returns:
        The owner; what the function returned.

    Raises:
        Unauthorized: No token, or a wrong one.
        werkzeug.exceptions.BadRequest: The header cannot be read, or there are several.
    """
    challenge = f'Bearer realm="{_checked_realm(realm)}"'
    token = _credentials(request, "bearer", _TOKEN)
    if token is None:
        raise Unauthorized("A token is needed.", challenge, close=close)
    found: Any = _owner(_nonempty(check), token) if isinstance(check, Mapping) else check(token)
    if not found:
        raise Unauthorized("The token is not good.", f'{challenge}, error="invalid_token"', close=close)
    return found


def require_signed_cookie(
    request: AnyRequest, name: str, secret: Secret, *, max_age: int = _DAY, close: bool = False
) -> Any:
    """Lets in who has a cookie that ``set_signed_cookie`` made with the same name and secret.

    A cookie is sent along whatever page opens the WebSocket; the server's check of the Origin keeps foreign pages out.

    Args:
        request: As for ``require_basic``.
        name: The cookie's name.
        secret: At least 16 bytes; several to change it: all are good for reading.
        max_age: Seconds for which a cookie is good after it was made.
        close: See ``Unauthorized``.

    Returns:
        The value that was signed.

    Raises:
        Unauthorized: No such cookie, too old, or made by somebody else. Its challenge has the scheme ``Cookie``: there
            must be a challenge with every 401, and none is registered for cookies.
        ValueError: The secret is too short.
    """
    cookie = _present(request).cookies.get(name, "")
    try:
        return _signer(name, secret).loads(cookie, max_age=max_age)
    except BadData:  # its words may hold parts of the cookie
        pass
    raise Unauthorized("Sign in first.", 'Cookie realm="krait-ws"', close=close)


def set_signed_cookie(
    response: WerkzeugResponse, name: str, value: Any, secret: Secret, *, max_age: int = _DAY, secure: bool = True
) -> None:
    """Puts a cookie into ``response`` that ``require_signed_cookie`` accepts. Its value can be read by whoever has the
    cookie, but not changed. Scripts of pages cannot read it (HttpOnly), and forms of other sites do not send it
    (SameSite=Lax).

    Args:
        response: The answer to a plain request.
        name: The cookie's name; a cookie of one name is no good under another.
        value: What JSON can hold.
        secret: At least 16 bytes; of several the first signs.
        max_age: Seconds for which the browser keeps it.
        secure: ``False`` where the site is served without TLS at another address than localhost.

    Raises:
        ValueError: The secret is too short.
        TypeError: JSON cannot hold the value.
    """
    cookie = str(_signer(name, secret).dumps(value))
    response.set_cookie(name, cookie, max_age=max_age, secure=secure, httponly=True, samesite="Lax")


# ---- inside


def _present(request: AnyRequest) -> Request | WebsocketsRequest:
    if request is None:
        raise TypeError(
            "there is no request to check: websockets.request is None for a plain request, krait_ws.request never is"
        )
    return request


def _credentials(request: AnyRequest, scheme: str, form: re.Pattern[str]) -> str | None:
    """What the Authorization header holds for ``scheme``; ``None`` when there is none, or one of another scheme.

    Several headers reach a WSGI environ joined with a comma, which no header of these schemes has in it.

    Raises:
        BadRequest: It cannot be read, or there are several.
    """
    header = _present(request).headers.get("Authorization", "")
    if "," in header:
        raise _unreadable("there must be one Authorization header")
    given_scheme, _, credentials = header.strip().partition(" ")
    if given_scheme.lower() != scheme:
        return None
    credentials = credentials.strip(" ")
    if not form.fullmatch(credentials):
        raise _unreadable(f"the Authorization header has no {scheme.title()} credentials that can be read")
    return credentials


def _unreadable(reason: str) -> _BadRequest:
    return _BadRequest(reason, response=Response(f"{reason}\n", status=400))


def _name_and_password(credentials: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    user, colon, password = text.partition(":")
    if not colon or _CONTROL.search(text):
        raise _unreadable("the Authorization header must hold user:password, UTF-8 in base64")
    return user, password


def _owner(owners: Mapping[str, str], given: str) -> str | None:
    """Whose secret was given. All are looked at, and equal lengths are compared, so that time tells nothing."""
    given_digest = hashlib.sha256(given.encode()).digest()
    found = None
    for owner, secret in owners.items():
        if hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), given_digest):
            found = owner
    return found


def _nonempty(owners: Mapping[str, str]) -> Mapping[str, str]:
    for owner, secret in owners.items():
        if not owner or not secret:
            raise ValueError(f"{owner!r} has no name or no secret: whoever sends nothing would come in")
    return owners


def _checked_realm(realm: str) -> str:
    if not _REALM.fullmatch(realm):
        raise ValueError(f"realm must be ASCII without quotes and backslashes, not {realm!r}")
    return realm


def _signer(name: str, secret: Secret) -> URLSafeTimedSerializer:
    secrets = [secret] if isinstance(secret, str | bytes) else secret
    keys = [key.encode() if isinstance(key, str) else key for key in secrets]
    for key in keys:
        if len(key) < _LEAST_SECRET:
            raise ValueError(
                f"the secret of the cookie {name!r} has less than {_LEAST_SECRET} bytes: "
                f"make one with python -c 'import secrets; print(secrets.token_hex())'"
            )
    if not keys:
        raise ValueError(f"the cookie {name!r} has no secret")
    # The last key signs. The salt keeps a cookie of one name from being good under another.
    return URLSafeTimedSerializer(
        keys[::-1],
        salt=f"krait-ws cookie {name}",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
