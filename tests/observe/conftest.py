"""Fixtures of the tests that look at a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import no_leaks, write_site

STUCK = """\
import threading
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

release = threading.Event()

class Stuck(WebsocketsCtrlBase):
    stop_timeout = 0.05

    def on_thread_start(self):
        self.ask_the_database()

    def ask_the_database(self):
        release.wait(30)

def websocket(request):
    return WebsocketsResponse(Stuck())

def http(request):
    import krait_ws
    release.set()
    return krait_ws.Response("released")
"""

SITE = {
    "echo.py": """\
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

class Echo(WebsocketsCtrlBase):
    def on_thread_start(self):
        for message in self.messages():
            self.push_out_message(message)

def websocket(request):
    return WebsocketsResponse(Echo())
""",
    "chat/[room].py": """\
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

class Room(WebsocketsCtrlBase):
    runs_on = "loop"

    def on_in_message(self, message):
        self.push_out_message(message)

def websocket(request):
    return WebsocketsResponse(Room())
""",
    "stuck.py": STUCK,
    "lingers.py": STUCK.replace("stop_timeout = 0.05", "stop_timeout = 20"),
    "flood.py": """\
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

class Flood(WebsocketsCtrlBase):
    slow_consumer = "drop_new"
    max_out_messages = 4

    def on_thread_start(self):
        while not self.wait_stop(0.001):
            self.push_out_message(bytes(1 << 20))

def websocket(request):
    return WebsocketsResponse(Flood())
""",
    "refuses.py": """\
import krait_ws

def websocket(request):
    return krait_ws.Response("no", status=403)
""",
}


@pytest.fixture
def serve(tmp_path: Path, krait_site: Callable[..., SiteServer]) -> Iterator[Callable[..., SiteServer]]:
    """``serve(metrics=True)`` serves a site of echoes, chats and everything that goes wrong."""

    def serve(**options: Any) -> SiteServer:
        return krait_site(write_site(tmp_path / "site", dict(SITE)), **options)

    return serve


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with no_leaks():
        yield
