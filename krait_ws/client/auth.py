"""What proves to a server who we are: ``Basic``, ``Bearer`` and ``Headers``.

Each of them is an ``Auth`` of ``transport.py``: it gives the headers of an upgrade request, and gets new credentials
when the server answered 401. The transport does that once and repeats the request once; what is refused then is an
``AuthError``, and no part tries again.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from krait_ws.client.errors import AuthError, ConnectionUnavailableError

T = TypeVar("T")

REFRESH_TIMEOUT = 60.0
"""Seconds to wait for credentials that another thread is getting."""


class Basic:
    """A user's name and password (RFC 7617). There is nothing to refresh: the first 401 ends it.

    Raises:
        ValueError: The name has a colon in it.
    """

    def __init__(self, user: str, password: str) -> None:
        if ":" in user:
            raise ValueError(f"a user's name must have no colon (RFC 7617), not {user!r}")
        self._header = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def headers(self) -> Mapping[str, str]:
        """For one upgrade request. Thread: any."""
        return {"Authorization": self._header}

    def refresh(self) -> bool:
        """There are no others."""
        return False


class _Source(Generic[T]):
    """A value, or a function that gets one: called when one is needed first, and for each refresh.

    The function is the user's and may block. No lock is held meanwhile; who comes in that time waits for its result, so
    that several connections whose token ran out log in once.
    """

    def __init__(self, given: T | Callable[[], T]) -> None:
        self._get: Callable[[], T] | None = given if callable(given) else None
        self._value: T | None = None if callable(given) else given
        self._changed = threading.Condition()
        self._getting = False  # guarded by _changed

    @property
    def is_fixed(self) -> bool:
        return self._get is None

    def value(self) -> T:
        with self._changed:
            if self._value is not None:
                return self._value
        return self.renewed()

    def renewed(self) -> T:
        assert self._get is not None
        with self._changed:
            if self._getting:
                in_time = self._changed.wait_for(lambda: not self._getting, REFRESH_TIMEOUT)
                if in_time and self._value is not None:
                    return self._value
                raise ConnectionUnavailableError(
                    "the credentials that another thread is getting did not come" + ("" if in_time else " in time")
                )
            self._getting = True
            self._value = None
        value = None
        try:
            value = self._get()
        finally:
            with self._changed:
                self._value = value
                self._getting = False
                self._changed.notify_all()
        return value


class Bearer:
    """A token (RFC 6750).

    Args:
        token: The token, or a function that gets one, for example by logging in. It is called before the first
            connection and again after a 401 and for each renewal; the token is kept in between. It may block, at most
            the transport's ``open_timeout``. What it raises fails that attempt; an ``AuthError`` ends the attempts.
    """

    def __init__(self, token: str | Callable[[], str]) -> None:
        self._token = _Source(token)

    def headers(self) -> Mapping[str, str]:
        """For one upgrade request. Thread: any.

        Raises:
            AuthError: The function gave no token.
        """
        token = self._token.value()
        if not token:
            raise AuthError(f"the function that gets the token returned {token!r}")
        return {"Authorization": f"Bearer {token}"}

    def refresh(self) -> bool:
        """Gets a new token; ``False`` when there is no function to get one. Thread: any."""
        if self._token.is_fixed:
            return False
        self._token.renewed()
        return True


class Headers:
    """Any headers, for servers with a way of their own: ``Headers({"JWT": token})``.

    Args:
        headers: The headers, or a function that gets them, called as that of ``Bearer``.
    """

    def __init__(self, headers: Mapping[str, str] | Callable[[], Mapping[str, str]]) -> None:
        self._headers = _Source(headers)

    def headers(self) -> Mapping[str, str]:
        """For one upgrade request. Thread: any."""
        return self._headers.value()

    def refresh(self) -> bool:
        """Gets new headers; ``False`` when there is no function to get them. Thread: any."""
        if self._headers.is_fixed:
            return False
        self._headers.renewed()
        return True
