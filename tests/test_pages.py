"""Static files and the answers that no script gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response

from krait_ws import pages
from tests.helpers import http_request

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]

TEXT = b"0123456789"


@pytest.fixture
def file(site_folder: SiteFolder) -> Path:
    return site_folder({"page.html": "<h1>page</h1>", "digits.txt": TEXT}) / "digits.txt"


@pytest.fixture
def get(file: Path) -> Iterator[Callable[..., Response]]:
    """Gets the file; what was opened is closed at the end."""
    answers: list[Response] = []

    def request(headers: dict[str, str] | None = None, method: str = "GET", name: str = "digits.txt") -> Response:
        answer = pages.static_file(file.with_name(name), http_request("/", headers, method))
        answers.append(answer)
        return answer

    yield request
    for answer in answers:
        answer.close()


Get = Callable[..., Response]


def body(answer: Response) -> bytes:
    answer.direct_passthrough = False
    return answer.get_data()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.html", "text/html; charset=utf-8"),
        ("digits.txt", "text/plain; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.svg", "image/svg+xml; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.unknown-ending", "application/octet-stream"),
        ("no-ending", "application/octet-stream"),
    ],
)
def test_types(get: Get, file: Path, name: str, kind: str) -> None:
    if not file.with_name(name).exists():
        file.with_name(name).write_bytes(b"x")
    answer = get(name=name)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == kind
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_javascript_has_a_type_that_modules_need(get: Get, file: Path) -> None:
    file.with_name("a.js").write_bytes(b"x")
    assert get(name="a.js").mimetype in ("text/javascript", "application/javascript")


def test_the_whole_file(get: Get) -> None:
    answer = get()
    assert answer.content_length == 10
    assert answer.headers["ETag"]
    assert answer.headers["Last-Modified"]
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert body(answer) == TEXT


@pytest.mark.parametrize(
    ("spec", "status", "content"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=4-", 206, b"456789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=9-99", 206, b"9"),
        ("bytes=10-", 416, None),
        ("bytes=5-2", 200, TEXT),
        ("lines=1-2", 200, TEXT),
    ],
)
def test_ranges(get: Get, spec: str, status: int, content: bytes | None) -> None:
    answer = get({"Range": spec})
    if spec == "bytes=5-2":
        assert answer.status_code in (200, 416), "an invalid range may be ignored or refused"
    elif spec == "lines=1-2":
        assert answer.status_code in (200, 416)
    else:
        assert answer.status_code == status
    if answer.status_code == status and content is not None:
        assert body(answer) == content
    if answer.status_code == 206:
        assert answer.headers["Content-Range"].endswith("/10")


def test_what_has_not_changed_is_not_sent_again(get: Get) -> None:
    first = get()
    for headers in (
        {"If-None-Match": first.headers["ETag"]},
        {"If-None-Match": f'"other", {first.headers["ETag"]}'},
        {"If-Modified-Since": first.headers["Last-Modified"]},
    ):
        answer = get(headers)
        assert answer.status_code == 304
        assert answer.headers["ETag"] == first.headers["ETag"]


def test_what_has_changed_is_sent_again(get: Get, file: Path) -> None:
    tag = get().headers["ETag"]
    file.write_bytes(b"something else")
    answer = get({"If-None-Match": tag})
    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag
    assert body(answer) == b"something else"


def test_head_gets_the_headers(get: Get) -> None:
    answer = get(method="HEAD")
    assert answer.status_code == 200
    assert answer.content_length == 10


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(get: Get, method: str) -> None:
    answer = get(method=method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_file_that_vanished_is_404(get: Get, file: Path) -> None:
    file.unlink()
    assert get().status_code == 404


@pytest.mark.parametrize(
    ("url", "path", "location"),
    [
        ("/chat", "/chat", "/chat/"),
        ("/chat?room=a&x=%20", "/chat", "/chat/?room=a&x=%20"),
        ("/caf%C3%A9", "/café", "/caf%C3%A9/"),
        ("/a%20b", "/a b", "/a%20b/"),
        ("/a%3Fb", "/a?b", "/a%3Fb/"),
    ],
)
def test_a_folder_is_redirected_to_its_own_url(url: str, path: str, location: str) -> None:
    answer = pages.folder_redirect(http_request(url), path)
    assert answer.status_code == 308, "the method stays"
    assert answer.headers["Location"] == location


def test_an_http_exception_of_werkzeug_becomes_its_answer() -> None:
    answer = pages.http_exception(Forbidden("not you"), http_request())
    assert answer.status_code == 403
    assert b"not you" in answer.get_data()


def failure() -> Any:
    try:
        raise ValueError("a secret <b>")
    except ValueError as error:
        return error


def test_a_failed_script_shows_nothing_of_itself() -> None:
    answer = pages.script_error(failure(), debug=False)
    assert answer.status_code == 500
    assert b"secret" not in answer.get_data()
    assert b"Traceback" not in answer.get_data()


def test_a_failed_script_shows_its_traceback_in_debug_and_no_markup_of_it() -> None:
    answer = pages.script_error(failure(), debug=True)
    assert answer.status_code == 500
    assert answer.mimetype == "text/html"
    text = answer.get_data(as_text=True)
    assert "Traceback" in text
    assert "a secret &lt;b&gt;" in text
    assert "<b>" not in text
