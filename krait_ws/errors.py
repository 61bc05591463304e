"""The exceptions that krait-ws raises. Imports nothing, so that every module can use it.

::

    KraitError
    ├── ConfigError         a flag, an environment variable or a class attribute has a bad value
    ├── SiteError           the site folder, or the way its files map to URLs, is wrong
    ├── ScriptTimeoutError  a route script did not answer in time
    ├── RouteScriptError    a route script answered with something that cannot be sent
    ├── ThreadLimitError    there is no thread for a handler
    ├── ConnectionEndedError  the connection ended before the answer that was waited for
    ├── GroupFullError      a group keeps a last message for as many keys as it may
    ├── RequestError        an HTTP request cannot be taken; carries the status of the answer
    │   └── HandshakeError  an upgrade request cannot be accepted
    └── ProtocolError       the peer broke RFC 6455; carries the close code that says so

Mistakes in calls (a message of a wrong type, joining yourself, popping from a disabled queue) raise the
built-in ``TypeError``, ``ValueError`` and ``RuntimeError``: they are bugs to mend, not conditions to handle.
"""

from __future__ import annotations


class KraitError(Exception):
    """Root of every exception that krait-ws raises on its own account."""


class ConfigError(KraitError):
    """A setting has a value that cannot be used. The message names the setting, the value and the remedy."""


class SiteError(KraitError):
    """The site cannot be served: the folder is missing, or two files claim the same URL."""


class RouteScriptError(KraitError):
    """A route script returned or assigned something that is no answer. Logged, and 500 for the client."""


class ThreadLimitError(KraitError, RuntimeError):
    """There is no thread for a handler: ``max_threads`` is reached, or the system gives no more. 503 for the client."""


class ScriptTimeoutError(KraitError):
    """A route script did not answer within ``script_timeout``. Logged, and 503 for the client."""


class ConnectionEndedError(KraitError):
    """The connection ended while something was waited for."""


class GroupFullError(KraitError):
    """A message has a new key, and its group keeps the last message of ``max_keys`` others."""


class ProtocolError(KraitError):
    """The peer broke the protocol.

    Raised and caught inside ``krait_ws.protocol``: bytes from a peer never raise out of it.

    Args:
        code: The close code to send (RFC 6455 section 7.4.1).
        reason: What was wrong, at most 123 bytes of UTF-8, sent to the peer.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class RequestError(KraitError):
    """An HTTP request cannot be answered otherwise than with an error.

    Args:
        status: The HTTP status line's text, for example ``"400 Bad Request"``.
        reason: What was wrong and what to send instead; becomes the body of the answer.
        headers: Headers the answer needs, for example ``Sec-WebSocket-Version``.
    """

    def __init__(self, status: str, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.headers = headers


class HandshakeError(RequestError):
    """An upgrade request cannot be accepted (RFC 6455 section 4.2)."""
