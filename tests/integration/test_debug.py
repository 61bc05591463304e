"""``debug=True``: changed scripts and modules are loaded anew, and the page shows the traceback, escaped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from krait_ws.testing import Refused, SiteServer

Serve = Callable[..., SiteServer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "site"


def rewrite(file: Path, text: str) -> None:
    """Writes a file so that its time tells: the clock for the times of files may go on only every few milliseconds."""
    before = file.stat().st_mtime_ns
    file.write_text(text)
    while file.stat().st_mtime_ns == before:
        time.sleep(0.001)
        file.write_text(text)


def controller_that_says(expression: str, head: str = "") -> str:
    return (
        f"{head}\nfrom krait_ws.websockets import *\n"
        "class Says(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
        f"        self.push_out_message({expression})\n"
        "def websocket(request):\n    return WebsocketsResponse(Says())\n"
    )


def said(site: SiteServer, path: str) -> str:
    with site.connect(path) as client:
        return str(client.receive())


def test_changed_scripts_are_loaded_anew(serve_files: Serve, folder: Path) -> None:
    site = serve_files(
        {
            "function.py": controller_that_says("'1'"),
            "script.py": "import krait_ws\nkrait_ws.response = krait_ws.Response('1')\n",
        },
        debug=True,
    )
    for number in "123456789":  # within the same second and with the same size
        rewrite(folder / "function.py", controller_that_says(f"'{number}'"))
        rewrite(folder / "script.py", f"import krait_ws\nkrait_ws.response = krait_ws.Response('{number}')\n")
        assert said(site, "/function") == number
        assert site.get("/script").text == number


def test_changed_private_modules_are_loaded_anew(serve_files: Serve, folder: Path) -> None:
    site = serve_files(
        {
            "index.py": controller_that_says("outer.value", "from _shared import outer"),
            "_shared/__init__.py": "",
            "_shared/outer.py": "from _shared.inner import value\n",
            "_shared/inner.py": "value = '0'\n",
        },
        debug=True,
    )
    assert said(site, "/") == "0"
    for number in "123456789":
        rewrite(folder / "_shared/inner.py", f"value = '{number}'\n")
        assert said(site, "/") == number


def test_an_open_connection_survives_a_reload(serve_files: Serve, folder: Path) -> None:
    echo = (
        "from krait_ws.websockets import *\n"
        "class Echo(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
        "        for message in self.messages():\n            self.push_out_message(message + '%s')\n"
        "def websocket(request):\n    return WebsocketsResponse(Echo())\n"
    )
    site = serve_files({"index.py": echo % "1"}, debug=True)
    with site.connect("/") as old:
        rewrite(folder / "index.py", echo % "2")
        with site.connect("/") as new:
            new.send("x")
            new.expect("x2")
            old.send("x")
            old.expect("x1")


def test_a_mistake_can_be_mended_without_a_restart(serve_files: Serve, folder: Path) -> None:
    site = serve_files({"index.py": "def websocket(request:\n"}, debug=True)
    for broken in ("def websocket(request:\n", "import no_such_module_anywhere\n", "1 / 0\n"):
        (folder / "index.py").write_text(broken)
        assert site.get("/").status == 500
        with pytest.raises(Refused) as refused:
            site.connect("/")
        assert refused.value.status == 500
    (folder / "index.py").write_text(controller_that_says("'mended'"))
    assert said(site, "/") == "mended"
    (folder / "new.py").write_text("import krait_ws\nkrait_ws.response = krait_ws.Response('new')\n")
    assert site.get("/new").text == "new"
    os.remove(folder / "new.py")
    assert site.get("/new").status == 404


def test_the_traceback_is_shown_and_escaped(serve_files: Serve) -> None:
    site = serve_files(
        {"index.py": "def helper():\n    raise ValueError('<script>alert(1)</script>&')\nhelper()\n"}, debug=True
    )
    answer = site.get("/")
    assert answer.status == 500
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Traceback" in answer.text
    assert "in helper" in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in answer.text
    assert "<script>" not in answer.text
    with pytest.raises(Refused) as refused:
        site.connect("/")
    assert refused.value.status == 500
    assert b"Traceback" in refused.value.body
    assert b"<script>" not in refused.value.body


def test_without_debug_nothing_is_shown_and_nothing_reloaded(serve_files: Serve, folder: Path) -> None:
    site = serve_files(
        {"broken.py": "raise ValueError('the secret')\n", "index.py": controller_that_says("'1'")}, debug=False
    )
    answer = site.get("/broken")
    assert answer.status == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert said(site, "/") == "1"
    (folder / "index.py").write_text(controller_that_says("'2'"))
    assert said(site, "/") == "1"
