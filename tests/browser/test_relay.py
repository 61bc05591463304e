"""The panel of the relay: it draws what scripts send and reports what a person does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from krait_ws.testing import Client, SiteServer
from tests.browser.test_demos import PATIENCE, wait_open

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE)


def tell(script: Client, module: str, kind: str, target: str | None = None, **payload: Any) -> None:
    script.send(json.dumps({"id": 0, "module": module, "type": kind, "target": target, "payload": payload}))


def say_online(script: Client) -> None:
    tell(script, "system", "announce", peerId="script", role="hero", status="online", version="1", timestamp=1)


def heard(script: Client, kind: str) -> dict[str, Any]:
    """The next message of this type."""
    while True:
        message: dict[str, Any] = json.loads(script.receive(PATIENCE / 1000))
        if message["type"] == kind:
            return message


@contextmanager
def script_in(demos: SiteServer, room: str) -> Iterator[Client]:
    """A script that has heard of the panel, which therefore hears it."""
    with demos.connect(f"/relay/?room={room}") as script:
        say_online(script)
        assert heard(script, "announce")["payload"]["role"] == "sidekick"
        yield script


def test_a_script_draws_and_is_told_of_clicks(open_page: Open, demos: SiteServer) -> None:
    page = open_page("relay/?room=a")
    wait_open(page)
    with script_in(demos, "a") as script:
        tell(script, "grid", "spawn", "g", numColumns=4, numRows=3)
        tell(script, "grid", "update", "g", action="setColor", options={"x": 1, "y": 2, "color": "rgb(1, 2, 3)"})
        tell(script, "grid", "update", "g", action="setText", options={"x": 3, "y": 0, "text": "<b>A</b>"})
        cells = page.locator(".cell")
        expect(cells).to_have_count(12)
        expect(cells.nth(9)).to_have_css("background-color", "rgb(1, 2, 3)")
        expect(cells.nth(3)).to_have_text("<b>A</b>")

        cells.nth(7).click()
        assert heard(script, "event") == {
            "id": 0, "module": "grid", "type": "event", "src": "g", "payload": {"event": "click", "x": 3, "y": 1},
        }  # fmt: skip
        cells.nth(7).press("ArrowUp")
        page.keyboard.press("Enter")
        assert heard(script, "event")["payload"] == {"event": "click", "x": 3, "y": 0}

        tell(script, "grid", "update", "g", action="clear")
        expect(cells.nth(3)).to_have_text("")
        tell(script, "global", "clearAll")
        expect(cells).to_have_count(0)
        expect(page.locator(".empty")).to_be_visible()


def test_a_console_and_a_control(open_page: Open, demos: SiteServer) -> None:
    page = open_page("relay/?room=b")
    wait_open(page)
    with script_in(demos, "b") as script:
        tell(script, "console", "spawn", "c", text="Who?\n", showInput=True)
        tell(script, "control", "spawn", "k")
        button = {"controlType": "button", "config": {"buttonText": "Quit"}}
        tell(script, "control", "update", "k", action="add", controlId="quit", options=button)
        expect(page.locator(".console")).to_have_text("Who?\n")
        page.get_by_label("Answer the script").fill("<i>me</i>")
        page.keyboard.press("Enter")
        assert heard(script, "event")["payload"] == {"event": "inputText", "value": "<i>me</i>"}
        tell(script, "console", "update", "c", action="append", options={"text": "Hello, <i>me</i>\n"})
        expect(page.locator(".console")).to_have_text("Who?\nHello, <i>me</i>\n")
        page.get_by_role("button", name="Quit").click()
        assert heard(script, "event")["payload"] == {"event": "click", "controlId": "quit"}
        tell(script, "control", "update", "k", action="remove", controlId="quit")
        expect(page.get_by_role("button", name="Quit")).to_have_count(0)
        tell(script, "console", "remove", "c")
        expect(page.locator(".console")).to_have_count(0)


def test_what_cannot_be_drawn_is_told_to_the_script(open_page: Open, demos: SiteServer) -> None:
    page = open_page("relay/?room=c")
    wait_open(page)
    with script_in(demos, "c") as script:
        for kind, payload in [("canvas", {}), ("grid", {"numColumns": 1000, "numRows": 1000}), ("toString", {})]:
            tell(script, kind, "spawn", "w", **payload)
            error = heard(script, "error")
            assert (error["module"], error["src"]) == (kind, "w")
            assert error["payload"]["message"]
        tell(script, "grid", "update", "nobody", action="clear")
        assert heard(script, "error")["payload"] == {"message": "there is no nobody"}
        expect(page.locator(".widget")).to_have_count(0)


def test_the_script_of_the_page(open_page: Open) -> None:
    page = open_page("relay/?room=d")
    wait_open(page)
    page.locator("#play").click()
    cells = page.locator(".cell")
    expect(cells).to_have_count(48)
    expect(page.locator("#peers li")).to_have_text(re.compile(r"hero \d+"))
    expect(cells.first).not_to_have_css("background-color", "rgb(233, 168, 32)")
    cells.first.click()
    expect(cells.first).to_have_css("background-color", "rgb(233, 168, 32)")
    expect(page.locator(".console")).to_contain_text("column 0, row 0")
    page.locator("#play").click()
    expect(page.locator("#peers li")).to_have_count(0)
    expect(page.locator("#play")).to_have_text("Run a script in this page")


def test_the_panel_is_served_by_its_own_site_too(browser: Any, krait_site: Callable[..., SiteServer]) -> None:
    from tests.browser.conftest import SITES

    site = krait_site(SITES / "relay")
    page = browser.new_page()
    missing: list[str] = []
    page.on("response", lambda answer: answer.status >= 400 and missing.append(answer.url))
    try:
        page.goto(site.url)
        wait_open(page)
        assert missing == []
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgba(0, 0, 0, 0)"
        with site.connect("/") as script:
            say_online(script)
            assert json.loads(script.receive())["payload"]["role"] == "sidekick"
    finally:
        page.close()
