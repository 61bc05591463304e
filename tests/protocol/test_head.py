"""Heads of HTTP requests (RFC 9112): what two readers could understand in two ways is refused."""

from __future__ import annotations

import pytest

from krait_ws.errors import RequestError
from krait_ws.protocol.head import (
    MAX_FIELDS,
    body_size,
    check_field_line,
    check_request_line,
    head_end,
    parse_head,
)
from tests.helpers import splits


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


# ---- whole heads

HEAD = (
    b"GET /chat/%C3%BC?room=a%20b HTTP/1.1\r\nHost: example.org\r\nX-One:1\r\nx-one: \t2 \r\nCookie: a=1\r\n"
    b"Cookie: b=2\r\nX_Two: no\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nX-High: \xe9\xa0\r\n\r\n"
)


def refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as refused:
        parse_head(data)
    return refused.value.status


def test_a_head_and_its_environ() -> None:
    head = parse_head(HEAD)
    assert (head.method, head.target, head.version) == ("GET", "/chat/%C3%BC?room=a%20b", "HTTP/1.1")
    assert head.body_size == 3
    assert head.values("x-one") == ["1", "2"]
    environ: dict[str, object] = {"wsgi.url_scheme": "http"}
    head.add_to(environ)
    assert environ == {
        "wsgi.url_scheme": "http",
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/chat/\xc3\xbc",
        "QUERY_STRING": "room=a%20b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.org",
        "HTTP_X_ONE": "1,2",
        "HTTP_COOKIE": "a=1; b=2",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "3",
        "HTTP_X_HIGH": "\xe9\xa0",
    }


def test_the_end_of_a_head_is_found_wherever_it_is_cut() -> None:
    for parts in splits(HEAD):
        data = b""
        for part in parts:
            assert not head_end(data)
            data += part
        assert head_end(data) == len(HEAD)
    assert head_end(HEAD + b"GET / HTTP/1.1\r\n\r\n") == len(HEAD)
    assert head_end(b"GET / HTTP/1.0\n\nmore") == len(b"GET / HTTP/1.0\n\n")


@pytest.mark.parametrize("broken", [line for line in HEAD.split(b"\r\n")[1:-2] if line != b"Host: example.org"])
@pytest.mark.parametrize("by", [b" folded", b"no colon", b"Na me: x", b"X: a\0b", b"X: a\rb", b": x", b"X : y"])
def test_a_head_with_one_wrong_field_is_refused_whole(broken: bytes, by: bytes) -> None:
    assert refusal(HEAD.replace(broken, by, 1)).startswith("400 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", "400"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "400"),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", "400"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-encoding: chunked\r\n\r\n", "411"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MAX_FIELDS + b"\r\n", "431"),
    ],
)
def test_heads_that_are_refused(head: bytes, status: str) -> None:
    assert refusal(head).startswith(status)


@pytest.mark.parametrize(
    ("target", "path"),
    [("http://a/b?c", "/b?c"), ("HTTPS://a", "/"), ("http://a?b", "/?b"), ("*", "*"), ("/http://a", "/http://a")],
)
def test_the_absolute_form(target: str, path: str) -> None:
    assert parse_head(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()).target == path


@pytest.mark.parametrize(
    ("version", "connection", "closes"),
    [
        ("1.1", (), False),
        ("1.1", ("keep-alive",), False),
        ("1.1", ("Close",), True),
        ("1.1", ("upgrade, close",), True),
        ("1.1", ("upgrade", "close"), True),
        ("1.0", (), True),
        ("1.0", ("Keep-Alive",), False),
        ("1.0", ("keep-alive, close",), True),
    ],
)
def test_whether_the_connection_closes(version: str, connection: tuple[str, ...], closes: bool) -> None:
    fields = "".join(f"Connection: {value}\r\n" for value in connection)
    assert parse_head(f"GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n".encode()).closes is closes
