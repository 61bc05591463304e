"""Static files, and plain HTTP around them: what a browser, a cache or a proxy asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import TEXT, RawClient, http_exchange, raw_get, upgrade_request

Serve = Callable[..., SiteServer]

LARGE = os.urandom(3 << 20)
FILES: dict[str, str | bytes] = {
    "index.html": "<h1>ü</h1>",
    "about.html": "about",
    "style.css": "a {}",
    "code.js": "1;",
    "logo.svg": "<svg/>",
    "photo.PNG": b"\x89PNG",
    "data.json": "{}",
    "notes.txt": "0123456789",
    "unknown.qqq": b"\x00",
    "large.bin": LARGE,
    "with space.txt": "space",
    "ü.txt": "umlaut",
    "folder/index.html": "folder",
    "folder/page.html": "page in folder",
    "empty.txt": b"",
}


@pytest.fixture
def site(serve_files: Serve) -> SiteServer:
    return serve_files(FILES)


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [
        ("/", "text/html; charset=utf-8", "<h1>ü</h1>".encode()),
        ("/index.html", "text/html; charset=utf-8", "<h1>ü</h1>".encode()),
        ("/index", "text/html; charset=utf-8", "<h1>ü</h1>".encode()),
        ("/about", "text/html; charset=utf-8", b"about"),
        ("/about?query=1", "text/html; charset=utf-8", b"about"),
        ("/about.html", "text/html; charset=utf-8", b"about"),
        ("/style.css", "text/css; charset=utf-8", b"a {}"),
        ("/code.js", "text/javascript; charset=utf-8", b"1;"),
        ("/logo.svg", "image/svg+xml", b"<svg/>"),
        ("/photo.PNG", "image/png", b"\x89PNG"),
        ("/data.json", "application/json", b"{}"),
        ("/notes.txt", "text/plain; charset=utf-8", b"0123456789"),
        ("/unknown.qqq", "application/octet-stream", b"\x00"),
        ("/large.bin", "application/octet-stream", LARGE),
        ("/with%20space.txt", "text/plain; charset=utf-8", b"space"),
        ("/%C3%BC.txt", "text/plain; charset=utf-8", b"umlaut"),
        ("/folder/", "text/html; charset=utf-8", b"folder"),
        ("/folder/page", "text/html; charset=utf-8", b"page in folder"),
        ("/empty.txt", "text/plain; charset=utf-8", b""),
    ],
)
def test_files(site: SiteServer, path: str, content_type: str, body: bytes) -> None:
    answer = site.get(path)
    assert answer.status == 200
    assert answer.body == body
    assert answer.headers["Content-Type"].split(";")[0] == content_type.split(";")[0]
    if "charset" in content_type:
        assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    head = site.get(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(body))
    assert head.headers["ETag"] == answer.headers["ETag"]


def test_a_folder_without_its_slash_is_redirected(site: SiteServer) -> None:
    answer = site.get("/folder?a=1&b=%20")
    assert answer.status == 308
    assert answer.headers["Location"].endswith("/folder/?a=1&b=%20")
    assert not answer.headers["Location"].startswith("//")


@pytest.mark.parametrize("path", ["/nothing", "/folder/nothing", "/nothing/", "/about/", "/notes.txt/", "/nothing.txt"])
def test_not_found(site: SiteServer, path: str) -> None:
    assert site.get(path).status == 404


def test_etag_and_last_modified(site: SiteServer, tmp_path: Path) -> None:
    first = site.get("/notes.txt")
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for headers in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", {etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
    ):
        answer = site.get("/notes.txt", headers=headers)
        assert (answer.status, answer.body) == (304, b""), headers
        assert answer.headers["ETag"] == etag
        assert site.get("/notes.txt", method="HEAD", headers=headers).status == 304
    assert site.get("/notes.txt", headers={"If-None-Match": '"other"'}).status == 200
    assert site.get("/notes.txt", headers={"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}).status == 200
    file = tmp_path / "site/notes.txt"
    file.write_text("changed, and longer")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    answer = site.get("/notes.txt", headers={"If-None-Match": etag})
    assert (answer.status, answer.text) == (200, "changed, and longer")
    assert answer.headers["ETag"] != etag


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-999", 206, b"56789", "bytes 5-9/10"),
        ("bytes=20-30", 416, None, "bytes */10"),
    ],
)
def test_ranges(site: SiteServer, asked: str, status: int, body: bytes | None, content_range: str) -> None:
    answer = site.get("/notes.txt", headers={"Range": asked})
    assert answer.status == status
    assert answer.headers["Content-Range"] == content_range
    if body is not None:
        assert answer.body == body
        assert answer.headers["Content-Length"] == str(len(body))


def test_range_of_a_large_file(site: SiteServer) -> None:
    answer = site.get("/large.bin", headers={"Range": "bytes=1000000-2999999"})
    assert answer.status == 206
    assert answer.body == LARGE[1_000_000:3_000_000]


def test_if_range(site: SiteServer) -> None:
    etag = site.get("/notes.txt").headers["ETag"]
    same = site.get("/notes.txt", headers={"Range": "bytes=0-1", "If-Range": etag})
    assert (same.status, same.body) == (206, b"01")
    changed = site.get("/notes.txt", headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (changed.status, changed.body) == (200, b"0123456789")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused_on_files(site: SiteServer, method: str) -> None:
    answer = site.get("/notes.txt", method=method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


# ---- route scripts that answer plain requests

SCRIPT = """
import krait_ws

request = krait_ws.request
krait_ws.response = krait_ws.Response(
    f"{request.method} {request.path} {request.args.get('q')} {len(request.get_data())} {request.form.get('field')}",
    headers={"X-Mine": "yes"},
)
"""
FUNCTION = """
import krait_ws

def http(request):
    if request.path == "/parts":
        return krait_ws.Response((f"part {n} " for n in range(5)), mimetype="text/x-parts")
    return krait_ws.Response(request.get_data(), status=201)
"""


@pytest.fixture
def scripts(serve_files: Serve) -> SiteServer:
    return serve_files({"script.py": SCRIPT, "function.py": FUNCTION, "parts.py": FUNCTION, "a/[x]/b.py": SCRIPT})


def test_scripts_answer_every_method(scripts: SiteServer) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = scripts.get("/script?q=1", method=method)
        assert (answer.status, answer.text) == (200, f"{method} /script 1 0 None")
        assert answer.headers["X-Mine"] == "yes"
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert scripts.get("/a/anything/b").text == "GET /a/anything/b None 0 None"


@pytest.mark.parametrize("path", ["/script", "/function", "/parts"])
def test_head_on_a_script_has_no_body(scripts: SiteServer, path: str) -> None:
    get = raw_get(scripts.port, path.encode())
    head = raw_get(scripts.port, path.encode(), method=b"HEAD")
    assert get.body != b"" or path == "/function"
    assert head.body == b""
    assert head.status == get.status
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_streamed_body_comes_whole(scripts: SiteServer) -> None:
    answer = scripts.get("/parts")
    assert answer.text == "".join(f"part {n} " for n in range(5))
    assert answer.headers["Content-Type"].startswith("text/x-parts")


def test_bodies_of_posts(scripts: SiteServer) -> None:
    for size in (0, 1, 65_536, 1 << 20):
        answer = scripts.get("/function", method="POST", body=b"x" * size)
        assert answer.status == 201
        assert answer.body == b"x" * size
    answer = scripts.get(
        "/script",
        method="POST",
        body=b"field=value",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.text.endswith(" value")


def test_a_chunked_body_is_refused_and_none_of_it_is_taken_for_a_request(scripts: SiteServer) -> None:
    """411, which RFC 9112 section 6.3 allows. What stands in the body must not be answered (request smuggling)."""
    smuggled = b"GET /script HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /function HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    for more in (b"", b"Content-Length: 4\r\n"):
        body = b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled), smuggled)
        (answer,) = http_exchange(scripts.port, head + more + body + smuggled)
        assert answer.status in (400, 411)


def test_a_body_that_is_too_large_gets_413(serve_files: Serve) -> None:
    site = serve_files({"function.py": FUNCTION}, max_body_size=1000)
    assert site.get("/function", method="POST", body=b"x" * 1000).status == 201
    announced = b"POST /function HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n"
    client = RawClient(site.port, upgrade=False)
    try:
        client.send(announced)  # and none of it: the head alone says that it is too large
        assert client.read_answer().status == 413
        client.expect_end()
    finally:
        client.close()


def test_keep_alive(scripts: SiteServer) -> None:
    client = RawClient(scripts.port, upgrade=False)
    try:
        for number in range(20):
            client.send(f"GET /script?q={number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = client.read_answer()
            assert answer.body == f"GET /script {number} 0 None".encode()
        client.send(b"POST /function HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody")
        assert client.read_answer().body == b"body"
        client.send(b"GET /script HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.read_answer().status == 200
        client.expect_end()
    finally:
        client.close()


def test_pipelined_requests_are_answered_in_order(scripts: SiteServer) -> None:
    requests = b"".join(f"GET /script?q={n} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for n in range(10))
    last = b"GET /script?q=last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = http_exchange(scripts.port, requests + last)
    assert [answer.body.split()[2] for answer in answers] == [str(n).encode() for n in range(10)] + [b"last"]


def test_an_upgrade_on_a_kept_connection(serve_files: Serve) -> None:
    site = serve_files(
        {
            "page.html": "page",
            "echo.py": "from krait_ws.websockets import *\nfrom tests.integration.support import HandlerEcho\n"
            "def websocket(request):\n    return WebsocketsResponse(HandlerEcho())\n",
        }
    )
    with RawClient(site.port, upgrade=False) as client:
        client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().body == b"page"
        client.send(upgrade_request("/echo"))
        client.read_head()
        assert client.status == 101
        client.send_frame(TEXT, "hello")
        client.expect("hello")


def test_an_idle_kept_connection_is_closed(serve_files: Serve) -> None:
    site = serve_files({"page.html": "page"}, keep_alive_timeout=0.3)
    with RawClient(site.port, upgrade=False) as client:
        client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().body == b"page"
        client.expect_end()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["blank", "nonsense", "no target", "version", "no colon", "TLS", "long target", "long header"],
)
def test_requests_that_are_none(site: SiteServer, request_bytes: bytes) -> None:
    client = RawClient(site.port, upgrade=False)
    try:
        client.send(request_bytes)
        with suppress(OSError):  # it may have been answered and ended before it was read whole
            client.half_close()
        received = b""
        try:
            while data := client.sock.recv(1 << 16):
                received += data
        except ConnectionResetError:
            pass
        assert received == b"" or received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 5", b"HTTP/1.1 200"))
    finally:
        client.close()
    assert site.get("/about").text == "about"
