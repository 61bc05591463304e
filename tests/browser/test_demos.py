"""Every demo of ``sites/`` as a person sees it. Playwright's ``expect`` waits with a deadline."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.browser.conftest import Errors
from tests.integration.support import eventually

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

Open = Callable[..., Any]
PATIENCE = 20_000
"""Milliseconds."""

DEMOS = ["ping-pong", "echo", "clock", "chat", "blocking", "relay", "director"]


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE)


def number(page: Any, selector: str) -> int:
    return int(page.locator(selector).inner_text().replace(",", ""))


def wait_open(page: Any) -> None:
    expect(page.locator("#state")).to_have_text("open")


@pytest.mark.parametrize("size", [{"width": 360, "height": 740}, {"width": 1280, "height": 800}], ids=["phone", "desk"])
def test_home_leads_to_every_demo(open_page: Open, size: Any) -> None:
    page = open_page("", viewport=size)
    for demo in DEMOS:
        page.locator(f'main a[href="{demo}/"]').first.click()
        expect(page).to_have_url(re.compile(f"/{demo}/$"))
        page.wait_for_load_state()  # with its style sheet, which decides how wide it is
        expect(page.locator("h1")).to_be_visible()
        if demo not in ("chat", "director"):  # there a person comes in first
            wait_open(page)
        width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, f"{demo} is {width} pixels too wide"
        page.locator("a.brand").click()
        expect(page.locator("h1")).to_be_visible()


def test_ping_pong_both_ways(open_page: Open) -> None:
    page = open_page("ping-pong/")
    wait_open(page)
    expect(page.locator("#detail")).to_have_text("subprotocol pingpong")
    for side in ("#page-exchanges", "#server-exchanges"):
        page.wait_for_function(f"Number(document.querySelector('{side}').textContent) >= 2", timeout=PATIENCE)
    assert number(page, "#exchanges") >= 4
    assert number(page, "#sent") >= 4
    assert number(page, "#received") >= 4
    expect(page.locator("#rtt")).to_have_text(re.compile(r"^[0-9.,]+ ms$"))
    lines = page.locator("#log li")
    for who, line in [("page", "PING 1"), ("server", "PONG 1"), ("server", "PING 1"), ("page", "PONG 1")]:
        expect(lines.and_(page.locator(f".{who}")).filter(has_text=line).first).to_be_attached()


def test_ping_pong_ticker_moves(open_page: Open) -> None:
    """The ball of a side flies when the side has had its answer."""
    page = open_page("ping-pong/", reduced_motion="no-preference")
    wait_open(page)
    for side in ("page", "server"):
        page.wait_for_function(
            f"document.getElementById('{side}-flight').getAnimations().length > 0", polling=20, timeout=PATIENCE
        )
    before = number(page, "#exchanges")
    page.wait_for_function(
        f"Number(document.getElementById('exchanges').textContent) >= {before + 2}", timeout=PATIENCE
    )


def test_ping_pong_refuses_another_subprotocol(open_page: Open, errors: Errors) -> None:
    page = open_page("ping-pong/")
    wait_open(page)
    for button, offer in [("#try-other", 'subprotocol "croquet"'), ("#try-none", "no subprotocol")]:
        page.locator(button).click()
        expect(page.locator("#refusal")).to_have_text(f"Offered {offer}: refused, code 1006.")
    expect(page.locator("#state")).to_have_text("open")
    eventually(lambda: page.evaluate("1") and sum("Unexpected response code: 400" in error for error in errors) == 2)
    assert errors.take("Unexpected response code: 400") == 2
    errors.take("400: ")  # the answer itself, where Chromium reports it


def test_disconnect_and_reconnect(open_page: Open) -> None:
    page = open_page("ping-pong/")
    wait_open(page)
    page.locator("#disconnect").click()
    expect(page.locator("#state")).to_have_text("closed")
    expect(page.locator("#detail")).to_have_text("code 1000 (normal end)")
    page.locator("#reconnect").click()
    wait_open(page)


def test_echo(open_page: Open) -> None:
    page = open_page("echo/")
    wait_open(page)
    texts = ["Hello, krait", "ä€😀", "<b>no markup</b>", ""]
    for count, text in enumerate(texts, 1):
        page.locator("#input").fill(text)
        page.locator("#send").click()
        expect(page.locator("#equal")).to_have_text(str(count))
    expect(page.locator("#log li.server").filter(has_text="<b>no markup</b>")).to_have_count(1)
    for count, size in enumerate(["1", "1024", "65536"], len(texts) + 1):
        page.locator("#size").select_option(size)
        page.locator("#send-bytes").click()
        expect(page.locator("#equal")).to_have_text(str(count))
    expect(page.locator("#different")).to_have_text("0")
    expect(page.locator("#sent")).to_have_text(str(len(texts) + 3))


def test_clock(open_page: Open) -> None:
    page = open_page("clock/")
    wait_open(page)
    time = page.locator("#time")
    expect(time).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    first = time.inner_text()
    expect(time).not_to_have_text(first)
    second = time.inner_text()
    expect(time).not_to_have_text(second)
    expect(page.locator("#iso")).to_have_text(re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d$"))


def join(page: Any, name: str, room: str) -> None:
    page.locator("#name").fill(name)
    page.locator("#room").fill(room)
    page.locator("#join").click()


def test_chat(open_page: Open) -> None:
    ann, bob, eve = open_page("chat/"), open_page("chat/"), open_page("chat/")
    join(ann, "Ann", "lobby")
    expect(ann.locator("#people li")).to_have_text(["Ann"])
    join(bob, "Bob", "lobby")
    join(eve, "Eve", "elsewhere")
    expect(ann.locator("#people li")).to_have_text(["Ann", "Bob"])
    expect(bob.locator("#people li")).to_have_text(["Ann", "Bob"])
    expect(eve.locator("#people li")).to_have_text(["Eve"])
    expect(ann.locator("#messages")).to_contain_text("Bob joined")

    ann.locator("#input").fill("<i>hello</i> ä")
    ann.locator("#send").click()
    for page in (ann, bob):
        expect(page.locator("#messages .message .text")).to_have_text(["<i>hello</i> ä"])
        expect(page.locator("#messages .message .by b")).to_have_text(["Ann"])
    bob.locator("#input").fill("hello Ann")
    bob.locator("#input").press("Enter")
    for page in (ann, bob):
        expect(page.locator("#messages .message .text")).to_have_text(["<i>hello</i> ä", "hello Ann"])
    expect(eve.locator("#messages .message")).to_have_count(0)

    bob.locator("#leave").click()
    expect(bob.locator("#state")).to_have_text("closed")
    expect(ann.locator("#messages")).to_contain_text("Bob left")
    expect(ann.locator("#people li")).to_have_text(["Ann"])
    eve.context.close()
    expect(ann.locator("#state")).to_have_text("open")


def test_chat_refuses_a_name_that_is_taken(open_page: Open) -> None:
    ann, other = open_page("chat/"), open_page("chat/?room=taken")
    join(ann, "Ann", "taken")
    expect(ann.locator("#people li")).to_have_text(["Ann"])
    join(other, "ANN", "taken")
    expect(other.locator("#state")).to_have_text("closed")
    expect(other.locator("#detail")).to_have_text("code 1008 (policy violation): the name is taken")
    expect(ann.locator("#people li")).to_have_text(["Ann"])


def test_blocking_leaves_the_echo_alone(open_page: Open) -> None:
    page = open_page("blocking/")
    wait_open(page)
    expect(page.locator("#echo-state")).to_have_text("open")
    expect(page.locator("#rtt")).to_have_text(re.compile(r"^[0-9.,]+ ms$"))
    for _ in range(3):  # six seconds: two may be over before a busy machine has looked
        page.locator("#work").click()
    expect(page.locator("#waiting")).to_have_text(re.compile(r"^\d jobs? (is|are) under way$"))
    points = "document.getElementById('curve').points.length"
    before = page.evaluate(points)
    page.wait_for_function(
        f"{points} >= {before + 5} && document.getElementById('waiting').textContent.includes('under way')"
    )
    expect(page.locator("#log li.server")).to_have_text([re.compile(r"DONE [2-9]")] * 3)
    expect(page.locator("#waiting")).to_have_text("no job is waiting")


def test_a_page_that_goes_away_leaves_no_session(open_page: Open, demos: SiteServer) -> None:
    pages = [open_page(f"{demo}/") for demo in ("ping-pong", "echo", "clock")]
    for page in pages:
        wait_open(page)
    pages[0].context.close()
    pages[1].reload()
    wait_open(pages[1])
    pages[1].context.close()
    pages[2].goto("about:blank")
    eventually(lambda: pages[2].evaluate("1") and not demos.server.sessions)
