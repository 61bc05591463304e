"""What is logged of requests and connections, and what never is.

Comes in: facts about a request, a connection or a failure. Goes out: records of the standard ``logging``. Access events
are objects that become text, or the fields of a JSON object, only where a handler writes them, so that noting one
costs the network loop little. Query values, cookies, credentials and offered subprotocols are in none of them.

Thread: any.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from krait_ws.session import Session

access_logger = logging.getLogger("krait_ws.access")
controller_logger = logging.getLogger("krait_ws.controller")

REDACTED = "[redacted]"

_ENVIRON = "_krait_environ"  # on its way from a controller's log to the filter
_LONGEST_TARGET = 1024  # characters; a head may have 32 KiB
_LEAST_SECRET = 4  # characters; what is shorter is no secret, and stands in every second word
_SECRET_HEADER = re.compile(r"AUTH|COOKIE|TOKEN|SECRET|KEY|PASS|SEC_WEBSOCKET_PROTOCOL")
_USER_INFO = re.compile(r"(^|//)([^/@]*)@")
# Also those that turn text around or begin a line in some programs.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_FRAME_LINE = re.compile(r'[ |+-]*File "')
_PLACE = "\U0010ffff"  # no character: stands where a secret was


# ---- what is never logged


def escaped(text: str) -> str:
    """``text`` on one line, its control characters as escapes: nobody forges a line, or moves a terminal's cursor."""
    if text.isprintable():  # nearly always, and then there is none of them
        return text
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def redacted_target(target: str) -> str:
    """The target of a request without the values of its query, and without user and password."""
    path, mark, query = target[:_LONGEST_TARGET].partition("?")
    if not mark and "@" not in path and len(target) <= _LONGEST_TARGET:
        return escaped(path)
    parts = (part.partition("=") for part in query.split("&"))
    names = [f"{name}{equals}*" if equals else "*" for name, equals, _ in parts]
    dots = "…" if len(target) > _LONGEST_TARGET else ""
    return escaped(_USER_INFO.sub(r"\1*@", path) + mark + ("&".join(names) if query else "") + dots)


def secrets_of(environ: Mapping[str, Any]) -> list[str]:
    """What a request came with that may be secret, in every form in which it may stand in a message; longest first."""
    found = {form for value in set(_secret_values(environ)) for form in _forms(value)}
    return sorted((form for form in found if len(form) >= _LEAST_SECRET), key=len, reverse=True)


def redacted_traceback(error: BaseException, secrets: list[str]) -> str:
    """A traceback whose messages hold none of ``secrets``. Its lines of code are as they are: they hold no values."""
    # Not REDACTED at once: a client whose query has parts of that word would make a line grow with each of them.
    secrets = [secret.replace(_PLACE, "?") for secret in secrets]
    parts = []
    for part in traceback.TracebackException.from_exception(error).format():
        if not _FRAME_LINE.match(part):
            part = part.replace(_PLACE, "?")
            for secret in secrets:
                part = part.replace(secret, _PLACE)
            part = part.replace(_PLACE, REDACTED)
        parts.append(part)
    return "".join(parts).rstrip("\n")


def _secret_values(environ: Mapping[str, Any]) -> Iterator[str]:
    query: str = environ.get("QUERY_STRING", "")
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        yield value if equals else name
    path: str = environ.get("PATH_INFO", "")
    for text in (path, environ.get("HTTP_ORIGIN", ""), environ.get("HTTP_REFERER", "")):
        yield from (found[2] for found in _USER_INFO.finditer(text))
    for name, value in environ.items():
        if not name.startswith("HTTP_") or not isinstance(value, str) or not _SECRET_HEADER.search(name):
            continue
        yield value
        for part in re.split(r"[;,]", value):
            yield part.strip()
            yield part.partition("=")[2].strip().strip('"')
        scheme, _, credentials = value.partition(" ")
        yield credentials
        if scheme.lower() == "basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                pair = base64.b64decode(credentials).decode()
                yield pair
                yield pair.partition(":")[2]


def _forms(value: str) -> Iterator[str]:
    """As it came, decoded, and as ``repr`` shows it."""
    decoded = {value, unquote_plus(value)}
    with suppress(UnicodeError):
        decoded.add(value.encode("latin-1").decode())  # a WSGI environ holds bytes as characters (PEP 3333)
    for form in decoded:
        yield form
        yield repr(form)[1:-1]


# ---- access


class Event:
    """Something that happened, as values; a message when it is written."""

    __slots__: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """For a JSON object: a name for each value that is known."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {"event": self.name} | {name: value for name, value in values.items() if value not in (None, "")}

    def log(self) -> None:
        """Hands it to the handlers of ``krait_ws.access``, if somebody wants it."""
        if access_logger.isEnabledFor(logging.INFO):
            access_logger.handle(_record_of(self))


_record_of_process: dict[str, Any] = {}  # what is the same in all records of access events
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_record_of_process.clear)


def _record_of(event: Event) -> logging.LogRecord:
    """The record of an event, without what costs more than all the rest: the search for the caller, and for the names
    of the thread and the process."""
    now = time.time()
    if not _record_of_process:
        _record_of_process.update(vars(logging.LogRecord(access_logger.name, logging.INFO, "", 0, None, (), None)))
    record = logging.LogRecord.__new__(logging.LogRecord)
    fields = vars(record)
    fields.update(_record_of_process)
    fields["msg"] = event
    fields["created"] = now
    fields["msecs"] = float(int(now % 1 * 1000))
    fields["relativeCreated"] += (now - _record_of_process["created"]) * 1000
    return record


class Answered(Event):
    """A request was answered; with 101 a connection was opened."""

    __slots__ = (
        "bytes_out", "client", "connection", "controller", "error", "method", "raw_target", "route", "seconds",
        "status",
    )  # fmt: skip

    def __init__(
        self,
        client: str,
        method: str,
        target: str,
        status: int,
        *,
        bytes_out: int = 0,
        seconds: float = 0.0,
        error: str = "",
        session: Session | None = None,
    ) -> None:
        self.client = client
        self.method = method
        self.raw_target = target
        self.status = status
        self.bytes_out = None if session is not None else bytes_out
        self.seconds = round(seconds, 6)
        self.error = error
        self.connection = self.route = self.controller = ""
        if session is not None:
            self.connection = session.id
            self.route = session.route
            self.controller = type(session.controller).__qualname__

    @property
    def name(self) -> str:
        return "opened" if self.connection else "request"

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        raw_target = fields.pop("raw_target", "")
        return {**fields, "client": escaped(self.client), "target": redacted_target(raw_target)}

    def __str__(self) -> str:
        text = f"{escaped(self.client)} {escaped(self.method)} {redacted_target(self.raw_target)} {self.status}"
        if self.connection:
            return f"{text} in {self.seconds:.3f} s, opened connection {self.connection} {self.route} {self.controller}"
        if self.error:
            return f"{text} {self.error}"
        return f"{text} {self.bytes_out} bytes in {self.seconds:.3f} s"


class Closed(Event):
    """A connection has ended."""

    __slots__ = (
        "bytes_in", "bytes_out", "client", "code", "connection", "controller", "messages_in", "messages_out", "route",
        "seconds",
    )  # fmt: skip

    def __init__(self, session: Session, seconds: float) -> None:
        self.client = session.request.remote_addr if session.request is not None else ""
        self.connection = session.id
        self.route = session.route
        self.controller = type(session.controller).__qualname__
        self.code = session.close_code
        self.seconds = round(seconds, 3)
        self.messages_in = session.messages_in
        self.messages_out = session.messages_out
        self.bytes_in = session.bytes_in
        self.bytes_out = session.bytes_out

    @property
    def name(self) -> str:
        return "closed"

    def __str__(self) -> str:
        return (
            f"{escaped(self.client or '-')} closed connection {self.connection} {self.route} {self.controller} with "
            f"{self.code} after {self.seconds:.3f} s; in {self.messages_in} messages, {self.bytes_in} bytes; "
            f"out {self.messages_out} messages, {self.bytes_out} bytes"
        )


# ---- failures and controllers


def log_failure(
    logger: logging.Logger, error: BaseException, environ: Mapping[str, Any], message: str, *args: Any, **fields: Any
) -> None:
    """Logs what user code raised, with a traceback that says nothing of what may be secret in the request.

    Args:
        logger: Whose record it is.
        error: What was raised.
        environ: The request.
        message: With ``args`` what failed, without secrets.
        fields: Further attributes of the record.
    """
    if not logger.isEnabledFor(logging.ERROR):
        return
    raised = (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, message, args, raised, extra=fields)
    record.exc_text = redacted_traceback(error, secrets_of(environ))  # formatters take it instead of making their own
    logger.handle(record)


def connection_fields(session: Session) -> dict[str, str]:
    """What each record about a connection carries as attributes."""
    return {
        "connection": session.id,
        "route": session.route,
        "controller": type(session.controller).__qualname__,
    }


def _redact_failure(record: logging.LogRecord) -> bool:
    """A filter of ``controller_logger``: a traceback that a controller logs is redacted like one that it raises."""
    environ = record.__dict__.pop(_ENVIRON, None)
    error = record.exc_info[1] if record.exc_info else None
    if environ is not None and error is not None:
        record.exc_text = redacted_traceback(error, secrets_of(environ))
    return True


controller_logger.addFilter(_redact_failure)


class ConnectionLog(logging.LoggerAdapter):  # type: ignore[type-arg]  # no parameter before Python 3.11
    """The log of one controller: what is logged carries the connection's id, its route and the class."""

    def __init__(self, session: Session) -> None:
        super().__init__(controller_logger, connection_fields(session))
        self._request = session.request

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields: dict[str, Any] = dict(self.extra or {})
        kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        if kwargs.get("exc_info") and self._request is not None:
            kwargs["extra"][_ENVIRON] = self._request.http.environ
        return f"connection {fields['connection']}: {msg}", kwargs
