"""A page that is refused: what Chromium tells its script, and that it comes in once a person has signed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import write_site

pytest.importorskip("playwright.sync_api")

SCRIPT = """\
import krait_ws
from krait_ws import auth
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

SECRET = "at least sixteen bytes"


class Account(WebsocketsCtrlBase):
    def on_thread_start(self):
        self.push_out_message("in")


def http(request):
    user = auth.require_basic(request, {"Žofie": "pässword"})
    response = krait_ws.Response("signed in")
    auth.set_signed_cookie(response, "session", user, SECRET)
    return response


def websocket(request):
    auth.require_signed_cookie(request, "session", SECRET, close=request.path == "/account" and not request.query)
    return WebsocketsResponse(Account(), (request.protocols or [None])[0])
"""

CONNECT = """
([path, protocols]) => new Promise(resolve => {
    const socket = new WebSocket(location.origin.replace("http", "ws") + path, protocols);
    socket.onmessage = event => resolve([event.data, socket.protocol]);
    socket.onclose = event => resolve([event.code, event.reason]);
})
"""


def test_a_page_sees_why_it_is_refused_and_comes_in_when_signed_in(
    browser: Any, tmp_path: Path, krait_site: Callable[..., SiteServer]
) -> None:
    site = krait_site(write_site(tmp_path / "site", {"account.py": SCRIPT, "index.html": "<!doctype html><p>page"}))
    context = browser.new_context(http_credentials={"username": "Žofie", "password": "pässword"})
    try:
        page = context.new_page()
        page.goto(f"{site.url}/")
        assert page.evaluate(CONNECT, ["/account", []]) == [4401, "Sign in first."]
        assert page.evaluate(CONNECT, ["/account", ["chat", "soap"]]) == [4401, "Sign in first."]
        assert page.evaluate(CONNECT, ["/account?refused", []]) == [1006, ""], "a 401 tells a page nothing"
        page.goto(f"{site.url}/account")
        assert page.inner_text("body") == "signed in"
        page.goto(f"{site.url}/")
        assert page.evaluate(CONNECT, ["/account", ["chat"]]) == ["in", "chat"]
        assert page.evaluate("document.cookie") == "", "HttpOnly"
    finally:
        context.close()
