"""A whole site: which request is answered by what, and what a failing script leads to."""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from krait_ws.config import Config
from krait_ws.errors import SiteError
from krait_ws.http import Request
from krait_ws.site import Site
from krait_ws.websockets import WebsocketsResponse
from tests.helpers import http_request, upgrade_http_request

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]

FILES = {
    "index.html": "<h1>start</h1>",
    "style.css": "body {}",
    "docs/index.html": "docs",
    "echo.py": """
        from krait_ws import websockets
        from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
        websockets.response = WebsocketsResponse(WebsocketsCtrlBase())
        """,
    "chat/[room].py": """
        import krait_ws
        from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
        def websocket(request):
            return WebsocketsResponse(WebsocketsCtrlBase(), request.query.get("protocol"))
        def http(request):
            return krait_ws.Response(f"{request.params['room']} {krait_ws.request.params['room']}")
        """,
    "live/index.py": """
        import krait_ws
        from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
        def websocket(request): return WebsocketsResponse(WebsocketsCtrlBase())
        def http(request): return krait_ws.Response("live")
        """,
    "refuses.py": "pass",
    "fails.py": "raise ValueError('a secret')",
    "exits.py": "raise SystemExit(3)",
    "aborts.py": "from werkzeug.exceptions import abort\nabort(403)",
    "wrong.py": "def http(request): return 'text'\ndef websocket(request): return 'text'",
    "broken.py": "def (",
    "not-python.py": b"x = 1\0",
    "fails-to-accept.py": """
        from krait_ws.websockets import WebsocketsResponse
        def websocket(request): return WebsocketsResponse(None)
        """,
    "_secret.py": "secret",
}


@pytest.fixture(params=[False, True], ids=["production", "debug"])
def debug(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def site(site_folder: SiteFolder, debug: bool) -> Iterator[Site]:
    site = Site(site_folder(FILES), Config(debug=debug))
    yield site
    site.close()


def http(site: Site, url: str, method: str = "GET", **environ: Any) -> Any:
    answer: Any = contextvars.Context().run(site.answer, http_request(url, method=method, **environ))
    if answer is not None:
        answer.direct_passthrough = False
    return answer


def upgrade(site: Site, url: str, headers: Any = ()) -> Any:
    return contextvars.Context().run(site.answer, upgrade_http_request(url, headers))


def status_of(answer: Any) -> int:
    """404 where the site has nothing: what is behind it decides then."""
    return 404 if answer is None else answer.status_code


@pytest.mark.parametrize(
    ("url", "status", "text"),
    [
        ("/", 200, "<h1>start</h1>"),
        ("/style.css", 200, "body {}"),
        ("/docs/", 200, "docs"),
        ("/live/", 200, "live"),
        ("/chat/lobby", 200, "lobby lobby"),
        ("/echo", 426, None),
        ("/refuses", 426, None),
        ("/aborts", 403, None),
        ("/nothing", 404, None),
        ("/_secret", 404, None),
        ("/echo.py", 404, None),
        ("/..%2fsetup.cfg", 404, None),
        ("/%2e%2e/setup.cfg", 404, None),
        ("/style.css%00.png", 404, None),
        ("/docs%5cindex.html", 404, None),
        ("/%ff", 404, None),
    ],
)
def test_plain_requests(site: Site, url: str, status: int, text: str | None) -> None:
    answer = http(site, url)
    assert status_of(answer) == status
    if text is not None:
        assert answer.get_data(as_text=True) == text
    if answer is not None:
        answer.close()


def test_several_slashes_at_the_start_are_not_one(site: Site) -> None:
    assert status_of(http(site, "/", PATH_INFO="//style.css")) == 404


def test_a_folder_is_redirected_before_its_script_runs(site: Site) -> None:
    for url in ("/docs", "/live"):
        answer = http(site, url + "?q=1")
        assert answer.status_code == 308
        assert answer.headers["Location"] == url + "/?q=1"


@pytest.mark.parametrize("url", ["/echo", "/chat/lobby", "/live/", "/live"])
def test_upgrades_that_are_accepted(site: Site, url: str) -> None:
    assert isinstance(upgrade(site, url), WebsocketsResponse)


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/refuses", 400),
        ("/style.css", 400),
        ("/", 400),
        ("/docs", 400),
        ("/aborts", 403),
        ("/nothing", 404),
        ("/_secret", 404),
        ("/fails", 500),
        ("/fails-to-accept", 500),
    ],
)
def test_upgrades_that_are_refused(site: Site, url: str, status: int) -> None:
    assert status_of(upgrade(site, url)) == status


def test_a_subprotocol_that_was_offered_may_be_chosen(site: Site) -> None:
    answer = upgrade(site, "/chat/lobby?protocol=v2", [("Sec-WebSocket-Protocol", "v1, v2")])
    assert answer.protocol == "v2"


@pytest.mark.parametrize("offer", [[], [("Sec-WebSocket-Protocol", "v1")], [("Sec-WebSocket-Protocol", "V2")]])
def test_a_subprotocol_that_was_not_offered_is_the_scripts_bug(
    site: Site, offer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert upgrade(site, "/chat/lobby?protocol=v2", offer).status_code == 500
    assert len(caplog.records) == 1
    assert "'v2'" in str(caplog.records[0].exc_info[1])  # type: ignore[index]


@pytest.mark.parametrize("url", ["/fails", "/exits", "/wrong", "/broken", "/not-python"])
def test_a_failing_script_is_500_and_logged_with_its_traceback(
    site: Site, debug: bool, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = http(site, url)
    assert answer.status_code == 500
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert url in record.getMessage()
    text = answer.get_data(as_text=True)
    assert (type(record.exc_info[1]).__name__ in text) is debug
    assert ("Traceback" in text) is debug


def test_in_debug_the_page_shows_what_failed(site_folder: SiteFolder, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(site_folder(FILES), Config(debug=True))
    try:
        text = http(site, "/fails").get_data(as_text=True)
        assert "Traceback" in text
        assert "fails.py" in text
        assert "a secret" in text
    finally:
        site.close()


def test_a_change_is_seen_in_debug_only(site: Site, debug: bool) -> None:
    assert http(site, "/refuses").status_code == 426
    (site.router.root / "refuses.py").write_text("import krait_ws\nkrait_ws.response = krait_ws.Response('changed')")
    assert http(site, "/refuses").status_code == (200 if debug else 426)


def test_a_missing_site_is_told(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="missing"):
        Site(tmp_path / "missing", Config())


def test_json_that_is_nested_too_deep_is_the_clients_fault(site_folder: SiteFolder) -> None:
    script = "import krait_ws\ndef http(request):\n    return krait_ws.Response(str(request.get_json()))\n"
    site = Site(site_folder({"numbers.py": script}), Config())
    for body, status in ((b"[1]", 200), (b"[" * 100_000, 400), (b'{"a":' * 100_000, 400), (b"[1", 400)):
        environ = EnvironBuilder("/numbers", method="POST", data=body, content_type="application/json").get_environ()
        answer = contextvars.Context().run(site.answer, Request(environ, populate_request=False))
        assert isinstance(answer, Response)
        assert answer.status_code == status
    site.close()


def test_json_that_is_nested_too_deep_is_none_for_who_asks_silently() -> None:
    environ = EnvironBuilder(method="POST", data=b"[" * 100_000, content_type="application/json").get_environ()
    assert Request(environ, populate_request=False).get_json(silent=True) is None


def test_a_request_does_not_see_what_another_one_did_to_its_parameters(site: Site) -> None:
    first = upgrade_http_request("/chat/lobby")
    contextvars.Context().run(site.answer, first)
    first.params["room"] = "changed"
    second = upgrade_http_request("/chat/lobby")
    contextvars.Context().run(site.answer, second)
    assert second.params == {"room": "lobby"}


def test_a_script_that_comes_or_goes_is_noticed_soon(site_folder: SiteFolder, debug: bool) -> None:
    root = site_folder({"[name].py": "def http(request): import krait_ws; return krait_ws.Response('any')"})
    site = Site(root, Config(debug=debug))
    try:
        assert http(site, "/page").get_data(as_text=True) == "any"
        (root / "page.py").write_text("def http(request): import krait_ws; return krait_ws.Response('page')")
        if not debug:
            time.sleep(0.03)
        assert http(site, "/page").get_data(as_text=True) == "page"
        (root / "page.py").unlink()
        if not debug:
            time.sleep(0.03)
        assert http(site, "/page").get_data(as_text=True) == "any"
    finally:
        site.close()
