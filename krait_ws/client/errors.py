"""The exceptions of the clients.

::

    KraitError
    └── ClientError                         root of every exception that krait_ws.client raises on its own account
        ├── ConnectionUnavailableError      no connection could be opened; carries the HTTP status, if one came
        ├── AuthError                       the server does not take the credentials (401 or 403)
        ├── ConnectionBusyError             somebody else uses the connection, or it is used without being acquired
        ├── ConnectionClosedError           the connection is over; carries the close code and the reason
        ├── ConnectionDrainTimeoutError     the rest of an answer did not come in time      (a TimeoutError as well)
        ├── PoolExhaustedError              no connection of the pool became free in time   (a TimeoutError as well)
        └── PeerTimeoutError                the other side did not announce itself in time  (a TimeoutError as well)

A message or a pong that does not come in time is the built-in ``TimeoutError``: nothing is broken, and the call may be
repeated. Mistakes in calls are ``TypeError`` and ``ValueError``. No message shows credentials: of a URL only scheme,
host, port and path are named.
"""

from __future__ import annotations

from krait_ws.errors import KraitError


def printable(text: str) -> str:
    """Words of a server, in one line that may be logged."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


class ClientError(KraitError):
    """Root of every exception that ``krait_ws.client`` raises on its own account."""


class ConnectionUnavailableError(ClientError):
    """No connection could be opened: unreachable, refused, not in time, or answered with something else than 101.

    Args:
        reason: What was tried and what happened.
        status: The HTTP status of the answer; ``None`` when there was no answer.
        retry_after: Seconds after which the server wants to be asked again (RFC 9110 section 10.2.3), if it said so.
    """

    def __init__(self, reason: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class AuthError(ClientError):
    """The server does not take the credentials, or there are none to be had.

    Args:
        reason: What was tried and what happened.
        status: 401 or 403; ``None`` when the server was not asked.
    """

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class ConnectionBusyError(ClientError):
    """The connection is in use elsewhere, or it is used by somebody who has not acquired it."""


class ConnectionClosedError(ClientError):
    """The connection is over.

    Args:
        code: The peer's close code; where it sent none, ours, and 1006 when there was no close frame at all (RFC 6455
            section 7.4.1).
        reason: Why, as far as it is known.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the connection is closed: {code} {printable(reason)}".rstrip())
        self.code = code
        self.reason = reason


class ConnectionDrainTimeoutError(ClientError, TimeoutError):
    """The rest of an answer did not come within ``drain_timeout``.

    The socket was given up; the next use of the connection opens another.
    """


class PoolExhaustedError(ClientError, TimeoutError):
    """Every connection of the pool is in use, and none became free in time."""


class PeerTimeoutError(ClientError, TimeoutError):
    """The other side did not announce itself in time."""
