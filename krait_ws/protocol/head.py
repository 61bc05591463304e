"""The rules for the head of an HTTP/1.1 request (RFC 9112) that gevent's reader does not enforce, without I/O.

A head that two readers understand in two ways lets one request hide in the body of another. So what is not plainly
right is refused, and the only framing of a body that is taken is one Content-Length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from krait_ws.errors import RequestError

_REQUEST_LINE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.[01]\r?\n")
_FIELD_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r?\n")
_LENGTH = re.compile(r"[0-9]{1,15}")
_BAD_REQUEST = "400 Bad Request"


def check_request_line(line: str) -> None:
    """Raises ``RequestError`` unless ``line`` is method, target and version with one blank between (section 3)."""
    if not _REQUEST_LINE.fullmatch(line):
        raise RequestError(_BAD_REQUEST, "the request line cannot be read")


def check_field_line(line: bytes) -> None:
    """Raises ``RequestError`` unless ``line`` is a header field, not folded, or the end of the head (section 5)."""
    if line not in (b"\r\n", b"\n") and not _FIELD_LINE.fullmatch(line):
        raise RequestError(_BAD_REQUEST, "a header field cannot be read")


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
