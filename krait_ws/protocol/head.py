"""The head of an HTTP/1.1 request (RFC 9112), without I/O: its bytes, or one line of it, come in; a ``Head`` goes out.

A head that two readers understand in two ways lets one request hide in the body of another. So what is not plainly
right is refused, and the only framing of a body that is taken is one Content-Length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from krait_ws.errors import RequestError

MAX_FIELDS = 100
"""Fields of a head, at most."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST = rf"({_TOKEN}) ([\x21-\x7e]+) (HTTP/1\.[01])\r?\n"
_FIELD = rf"({_TOKEN}):([\t\x20-\x7e\x80-\xff]*)\r?\n"
_REQUEST_LINE = re.compile(_REQUEST)
_FIELD_LINE = re.compile(_FIELD.encode("latin-1"))
_FIELDS = re.compile(_FIELD)
_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(r"[0-9]{1,15}")
_BAD_REQUEST = "400 Bad Request"
_UNREADABLE_FIELD = "a header field cannot be read"


class Head:
    """A head that could be read.

    Attributes:
        method: As it came.
        target: Path and query; also where the absolute form was sent.
        version: ``HTTP/1.0`` or ``HTTP/1.1``.
        fields: Names as they came, and values without the blanks around them, in order.
        body_size: Bytes of the body that follows.
    """

    __slots__ = ("body_size", "fields", "method", "target", "version")

    def __init__(self, method: str, target: str, version: str, fields: list[tuple[str, str]]) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.fields = fields
        self.body_size = 0

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the answer (RFC 9112 section 9.3)."""
        options = [option.strip() for option in ",".join(self.values("connection")).lower().split(",")]
        return "close" in options or (self.version == "HTTP/1.0" and options != ["keep-alive"])

    def values(self, name: str) -> list[str]:
        """The values of all fields of this name, which is given in lower case."""
        return [value for other, value in self.fields if other.lower() == name]

    def add_to(self, environ: dict[str, Any]) -> None:
        """Adds method, URL and fields to a WSGI environ (PEP 3333). A name with an underscore is left out, because it
        could pass for one with a hyphen."""
        path, _, query = self.target.partition("?")
        environ["REQUEST_METHOD"] = self.method
        environ["SCRIPT_NAME"] = ""
        environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query
        environ["SERVER_PROTOCOL"] = self.version
        for name, value in self.fields:
            key = _environ_name(name)
            if key not in environ:
                environ[key] = value
            elif key not in ("", "CONTENT_TYPE"):
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + value
        environ.pop("", None)


def head_end(data: bytes) -> int:
    """Where the head that ``data`` begins with ends; 0 when its end has not come."""
    found = _END.search(data)
    return found.end() if found else 0


def check_request_line(line: str) -> None:
    """Raises ``RequestError`` unless ``line`` is method, target and version with one blank between (section 3)."""
    if not _REQUEST_LINE.fullmatch(line):
        raise RequestError(_BAD_REQUEST, "the request line cannot be read")


def check_field_line(line: bytes) -> None:
    """Raises ``RequestError`` unless ``line`` is a header field, not folded, or the end of the head (section 5)."""
    if line not in (b"\r\n", b"\n") and not _FIELD_LINE.fullmatch(line):
        raise RequestError(_BAD_REQUEST, _UNREADABLE_FIELD)


def parse_head(data: bytes) -> Head:
    """Reads a whole head, up to and with its empty line.

    Raises:
        RequestError: It is not plainly right: 400, 411 or 431.
    """
    text = data.decode("latin-1")
    request = _REQUEST_LINE.match(text)
    if request is None:
        raise RequestError(_BAD_REQUEST, "the request line cannot be read")
    method, target, version = request.groups()
    fields: list[tuple[str, str]] = []
    at = request.end()
    lengths: list[str] = []
    encodings: list[str] = []
    hosts = 0
    while field := _FIELDS.match(text, at):
        at = field.end()
        name, value = field.groups()
        value = value.strip(" \t")
        fields.append((name, value))
        plain = name.lower()
        if plain == "host":
            hosts += 1
        elif plain == "content-length":
            lengths.append(value)
        elif plain == "transfer-encoding":
            encodings.append(value)
    if text[at:] not in ("\r\n", "\n"):
        raise RequestError(_BAD_REQUEST, _UNREADABLE_FIELD)
    if len(fields) > MAX_FIELDS:
        raise RequestError("431 Request Header Fields Too Large", f"there are more than {MAX_FIELDS} header fields")
    if hosts > 1 or (not hosts and version == "HTTP/1.1"):
        raise RequestError(_BAD_REQUEST, "there must be one Host header")
    head = Head(method, target if target.startswith("/") else _path_of(target), version, fields)
    if lengths or encodings:
        head.body_size = body_size(lengths, encodings)
        if head.body_size and method == "HEAD":
            raise RequestError(_BAD_REQUEST, "a HEAD request has no body")
    return head


def body_size(lengths: Iterable[str], transfer_encodings: Iterable[str]) -> int:
    """The size of the body in bytes (section 6.3).

    Args:
        lengths: The values of all Content-Length fields.
        transfer_encodings: The values of all Transfer-Encoding fields.

    Raises:
        RequestError: 411 for a body without a length, 400 for a length that cannot be read or stands there twice.
    """
    if list(transfer_encodings):
        raise RequestError("411 Length Required", "send the body with Content-Length; no Transfer-Encoding is taken")
    values = list(lengths)
    if not values:
        return 0
    if len(values) > 1 or not _LENGTH.fullmatch(values[0].strip()):
        raise RequestError(_BAD_REQUEST, "there must be one Content-Length, a number")
    return int(values[0])


def _path_of(target: str) -> str:
    """A server takes the absolute form too (section 3.2.2).

    Raises:
        RequestError: It is no URL.
    """
    if not target.lower().startswith(("http://", "https://")):
        return target
    try:
        url = urlsplit(target)
    except ValueError:
        raise RequestError(_BAD_REQUEST, "the request line cannot be read") from None
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


@lru_cache(maxsize=1024)
def _environ_name(field: str) -> str:
    """The name of a field in a WSGI environ; empty for one that is left out. One string for all requests."""
    if "_" in field:
        return ""
    name = field.upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
