"""``krait_ws.testing``: ``drive`` for a controller alone, ``SiteServer`` and its clients for a whole site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from krait_ws.errors import ConfigError, SiteError
from krait_ws.testing import Refused, SiteServer, drive
from krait_ws.waiting import Signal
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, own_thread

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]
Serve = Callable[..., SiteServer]

FILES = {
    "index.html": "<h1>start</h1>",
    "echo.py": """
        import krait_ws
        from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

        class Echo(WebsocketsCtrlBase):
            def on_thread_start(self):
                for message in self.messages():
                    if message == "close":
                        self.close(4000, "asked for")
                    elif message == "raise":
                        raise ValueError("a secret")
                    else:
                        self.push_out_message(message)

        def websocket(request):
            if request.headers.get("X-Refuse"):
                return krait_ws.Response("not you", status=403, headers={"X-Why": "because"})
            return WebsocketsResponse(Echo(), (request.protocols or [None])[0])

        def http(request):
            body = request.get_data(as_text=True)
            text = f"{request.method} {request.headers.get('X-Own')} {body}"
            return krait_ws.Response(text, headers={"X-Own": "yes"})
        """,
}


class Echo(WebsocketsCtrlBase):
    def on_thread_start(self) -> None:
        for message in self.messages():
            self.push_out_message(message)


# ---- drive


@own_thread
def test_drive_runs_a_controller_without_a_socket() -> None:
    with drive(Echo()) as echo:
        echo.send("hello")
        echo.expect("hello")
        echo.send(b"\x00")
        assert echo.receive() == b"\x00"
    assert echo.controller.close_code == 1000
    assert echo.controller.wait_stopped(0)


@own_thread
def test_drive_gives_the_request_that_it_is_told() -> None:
    with drive(Echo(), "/chat?x=1", params={"room": "a"}, protocol="v1", headers={"X-Own": "yes"}) as echo:
        request = echo.controller.request
        assert request is not None
        assert (request.path, request.query["x"], request.params) == ("/chat", "1", {"room": "a"})
        assert request.headers["X-Own"] == "yes"
        assert echo.controller.protocol == "v1"


@own_thread
def test_what_does_not_come_is_an_assertion_error() -> None:
    with drive(Echo()) as echo:
        with pytest.raises(AssertionError, match=r"nothing within 0\.01 s"):
            echo.receive(0.01)
        with pytest.raises(AssertionError, match=r"did not close within 0\.01 s"):
            echo.expect_close(1000, 0.01)
        echo.send("a")
        with pytest.raises(AssertionError, match="expected 'b', the controller pushed 'a'"):
            echo.expect("b")


@own_thread
def test_another_close_code_is_an_assertion_error() -> None:
    with drive(Echo()) as echo:
        echo.controller.close(4000, "why")
        with pytest.raises(AssertionError, match="expected a close with 1000, got 4000 'why'"):
            echo.expect_close(1000)


@own_thread
def test_the_client_may_close_with_a_code() -> None:
    with drive(Echo()) as echo:
        echo.close(4001, "bye")
        assert (echo.controller.close_code, echo.controller.close_reason) == (4001, "bye")


@own_thread
def test_a_handler_that_does_not_end_is_an_assertion_error() -> None:
    release = Signal()

    class Stuck(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            release.wait(DEADLINE)

    with pytest.raises(AssertionError, match=r"did not end within 0\.02 s"), drive(Stuck(), timeout=0.02) as stuck:
        pass
    release.set()
    assert stuck.controller.wait_stopped(DEADLINE)


@own_thread
def test_a_failing_test_is_not_hidden_and_the_handler_is_joined() -> None:
    with pytest.raises(LookupError), drive(Echo()) as echo:
        raise LookupError
    assert echo.controller.wait_stopped(0)


# ---- SiteServer


def test_a_client_sends_and_receives(krait_site: Serve, site_folder: SiteFolder) -> None:
    site = krait_site(site_folder(FILES))
    with site.connect("/echo") as client:
        client.send("hello")
        client.expect("hello")
        client.send(b"\x00\xff")
        assert client.receive() == b"\x00\xff"
        assert client.protocol is None


def test_a_client_offers_subprotocols_and_gets_one(krait_site: Serve, site_folder: SiteFolder) -> None:
    with krait_site(site_folder(FILES)).connect("/echo", protocols=["v2", "v1"]) as client:
        assert client.protocol == "v2"


def test_a_client_sees_the_close(krait_site: Serve, site_folder: SiteFolder, caplog: pytest.LogCaptureFixture) -> None:
    site = krait_site(site_folder(FILES))
    with site.connect("/echo") as client:
        client.send("close")
        assert client.expect_close(4000) == "asked for"
    with site.connect("/echo") as client:
        client.send("unread")
        client.send("raise")
        assert client.expect_close(1011) == ""
    with site.connect("/echo") as client:
        client.send("close")
        with pytest.raises(AssertionError, match="expected a close with 1000, got 4000"):
            client.expect_close(1000)


def test_what_does_not_come_to_a_client_is_an_assertion_error(krait_site: Serve, site_folder: SiteFolder) -> None:
    with krait_site(site_folder(FILES)).connect("/echo") as client:
        with pytest.raises(AssertionError, match=r"no message came within 0\.01 s"):
            client.receive(0.01)
        with pytest.raises(AssertionError, match=r"not closed within 0\.01 s"):
            client.expect_close(1000, 0.01)
        client.send("close")
        with pytest.raises(AssertionError, match="closed instead of a message"):
            client.receive()


def test_a_refusal_has_status_body_and_headers(krait_site: Serve, site_folder: SiteFolder) -> None:
    with pytest.raises(Refused) as refused:
        krait_site(site_folder(FILES)).connect("/echo", headers={"X-Refuse": "1"})
    assert refused.value.status == 403
    assert refused.value.body == b"not you"
    assert refused.value.headers["X-Why"] == "because"


def test_plain_requests(krait_site: Serve, site_folder: SiteFolder) -> None:
    site = krait_site(site_folder(FILES))
    assert site.get("/").text == "<h1>start</h1>"
    answer = site.get("/echo", method="POST", headers={"X-Own": "mine"}, body=b"body")
    assert (answer.status, answer.text, answer.headers["X-Own"]) == (200, "POST mine body", "yes")


@pytest.mark.parametrize(
    "path", ["/../setup.cfg", "/%2e%2e/setup.cfg", "/..%2fsetup.cfg", "/echo.py", "//index.html", "/a%00"]
)
def test_attacks_go_out_as_they_are_and_find_nothing(krait_site: Serve, site_folder: SiteFolder, path: str) -> None:
    assert krait_site(site_folder(FILES)).get(path).status == 404


def test_two_sites_at_the_same_time(krait_site: Serve, site_folder: SiteFolder, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("other")
    first, second = krait_site(site_folder(FILES)), krait_site(other)
    assert first.port != second.port
    assert (first.get("/").text, second.get("/").text) == ("<h1>start</h1>", "other")


def test_settings_are_those_of_the_configuration(krait_site: Serve, site_folder: SiteFolder) -> None:
    with krait_site(site_folder(FILES), max_message_size=10).connect("/echo") as client:
        client.send("x" * 11)
        client.expect_close(1009)


@pytest.mark.parametrize(
    ("options", "error"), [({}, SiteError), ({"port": 70000}, ConfigError), ({"no_such": 1}, TypeError)]
)
def test_a_server_that_cannot_start_raises(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        SiteServer(tmp_path / "missing", **options)


def test_closing_ends_clients_with_1001(site_folder: SiteFolder) -> None:
    with SiteServer(site_folder(FILES)) as site:
        client = site.connect("/echo")
        client.send("a")
        client.expect("a")
    client.expect_close(1001)
    client.close()
    site.close()
