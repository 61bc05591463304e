"""Heads of HTTP requests (RFC 9112): what two readers could understand in two ways is refused."""

from __future__ import annotations

import pytest

from krait_ws.errors import RequestError
from krait_ws.protocol.head import body_size, check_field_line, check_request_line


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "POST /a?b=c%20 HTTP/1.1\r\n",
        "M-SEARCH * HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
    ],
)
def test_request_lines(line: str) -> None:
    check_request_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "\r\n",
        "GET /\r\n",
        "GET / HTTP/1.1",
        "GET  / HTTP/1.1\r\n",
        "GET /  HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET /a b HTTP/1.1\r\n",
        "GET /\0 HTTP/1.1\r\n",
        "GET /é HTTP/1.1\r\n",
        "G(T / HTTP/1.1\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / http/1.1\r\n",
        "GET / HTTP/1.1\r\r\n",
    ],
)
def test_request_lines_that_are_refused(line: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_request_line(line)
    assert refused.value.status.startswith("400 ")


@pytest.mark.parametrize(
    "line", [b"Host: a\r\n", b"Host:a\r\n", b"X:\r\n", b"X-Y_z: \t a b\xff\r\n", b"Host: a\n", b"\r\n", b"\n"]
)
def test_field_lines(line: bytes) -> None:
    check_field_line(line)


@pytest.mark.parametrize(
    "line",
    [
        b"Host : a\r\n",
        b" Host: a\r\n",
        b"\tfolded\r\n",
        b": a\r\n",
        b"Host\r\n",
        b"Ho st: a\r\n",
        b"X: a\0b\r\n",
        b"X: a\rb\r\n",
        b"X: a",
        b"X\xe9: a\r\n",
        b"",
    ],
)
def test_field_lines_that_are_refused(line: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        check_field_line(line)
    assert refused.value.status.startswith("400 ")


@pytest.mark.parametrize(("lengths", "size"), [([], 0), (["0"], 0), (["17"], 17), ([" 17 "], 17), (["0017"], 17)])
def test_body_sizes(lengths: list[str], size: int) -> None:
    assert body_size(lengths, []) == size


@pytest.mark.parametrize(
    ("lengths", "encodings", "status"),
    [
        ([], ["chunked"], "411"),
        (["5"], ["chunked"], "411"),
        ([], ["identity"], "411"),
        (["5", "5"], [], "400"),
        (["5", "6"], [], "400"),
        (["5,5"], [], "400"),
        (["-1"], [], "400"),
        (["+1"], [], "400"),
        (["0x10"], [], "400"),
        (["1_0"], [], "400"),
        (["٣"], [], "400"),
        ([""], [], "400"),
        (["9" * 20], [], "400"),
    ],
)
def test_bodies_that_are_refused(lengths: list[str], encodings: list[str], status: str) -> None:
    with pytest.raises(RequestError) as refused:
        body_size(lengths, encodings)
    assert refused.value.status.startswith(status)
