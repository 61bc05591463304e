"""The page of the hub: sign in, see every device, switch one, and see what others switch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.browser.conftest import SITES, Errors

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=20_000)


def open_signed_in(open_page: Open, path: str = "hub/", **options: Any) -> Any:
    page = open_page(path, **options)
    expect(page.locator("#detail")).to_have_text("sign in first")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#state")).to_have_text("open")
    expect(page.locator(".device")).to_have_count(4)
    return page


def expect_level(page: Any, name: str, level: str, checked: bool) -> None:
    row = page.locator(".device").filter(has_text=name)
    expect(row.locator(".level")).to_have_text(level)
    expect(page.get_by_role("switch", name=name)).to_have_attribute("aria-checked", str(checked).lower())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits(open_page: Open, width: int, scheme: str) -> None:
    page = open_page("hub/", viewport={"width": width, "height": 844}, color_scheme=scheme)
    too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    expect(page.locator("#sign-in")).to_be_visible()
    assert page.evaluate(too_wide) <= 0
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator(".device")).to_have_count(4)
    assert page.evaluate(too_wide) <= 0
    for switch in page.get_by_role("switch").all():
        box = switch.bounding_box()
        assert min(box["width"], box["height"]) >= 44


def test_what_one_person_switches_another_sees(open_page: Open) -> None:
    ann, bob = open_signed_in(open_page), open_signed_in(open_page)
    ann.get_by_role("switch", name="Hall lamp").click()
    ann.get_by_role("slider", name="Level of Kitchen lamp").fill("128")
    for page in (ann, bob):
        expect_level(page, "Hall lamp", "on", True)
        expect_level(page, "Kitchen lamp", "50 %", True)
        expect_level(page, "Garden pump", "off", False)
    bob.get_by_role("switch", name="Kitchen lamp").press("Space")
    for page in (ann, bob):
        expect_level(page, "Kitchen lamp", "off", False)
        assert page.get_by_role("slider", name="Level of Kitchen lamp").input_value() == "0"
    expect(ann.locator("#log")).to_contain_text("number 7: 10 A1 02 1 ST 0")


def test_a_newcomer_sees_the_states_as_they_are(open_page: Open) -> None:
    ann = open_signed_in(open_page)
    ann.get_by_role("switch", name="Bedroom lamp").click()
    expect_level(ann, "Bedroom lamp", "on", True)
    bob = open_signed_in(open_page)
    expect_level(bob, "Bedroom lamp", "on", True)
    expect(bob.locator("#events")).to_have_text("4")


def test_a_wrong_password_is_said(open_page: Open, errors: Errors) -> None:
    page = open_page("hub/")
    expect(page.locator("#sign-in")).to_be_visible()
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#refusal")).to_have_text("Name or password is wrong.")
    expect(page.locator("#state")).to_have_text("closed")
    page.close()  # everything that it said has come
    assert errors.take("401") >= 1


def test_a_signed_in_page_stays_so_until_it_signs_out(open_page: Open) -> None:
    page = open_signed_in(open_page)
    page.reload()
    expect(page.locator(".device")).to_have_count(4)
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#state")).to_have_text("closed")
    expect(page.locator("#sign-in")).to_be_visible()
    page.reload()
    expect(page.locator("#detail")).to_have_text("sign in first")


def test_a_lost_connection_can_be_opened_again(open_page: Open, demos: SiteServer) -> None:
    page = open_signed_in(open_page)
    for session in list(demos.server.sessions):
        session.controller.close(1012, "the hub restarts")
    expect(page.locator("#detail")).to_have_text("code 1012 (server restarts): the hub restarts")
    page.get_by_role("button", name="Reconnect").click()
    expect(page.locator("#state")).to_have_text("open")
    page.get_by_role("switch", name="Hall lamp").click()
    expect_level(page, "Hall lamp", "on", True)


def test_the_folder_is_a_site_of_its_own(browser: Any, krait_site: Callable[..., SiteServer], errors: Errors) -> None:
    site = krait_site(SITES / "hub")
    with browser.new_context() as context:
        page = context.new_page()
        page.on("response", lambda answer: answer.status >= 400 and errors.append(f"{answer.status}: {answer.url}"))
        page.goto(site.url)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".device")).to_have_count(4)
        body = json.loads(page.evaluate("fetch('api/nodes').then((answer) => answer.text())"))
        assert len(body["data"]["nodes"]["node"]) == 4
