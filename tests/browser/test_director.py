"""The director's page: sign in, see the items, change them, and see what others change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Errors
from tests.browser.test_demos import PATIENCE, wait_open

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE)


def state(page: Any, item: int) -> Any:
    return page.locator(f'[data-item="{item}"] .item-state')


def signed_in(open_page: Open) -> Any:
    page = open_page("director/")
    page.locator("#sign-in").click()
    wait_open(page)
    expect(state(page, 5)).to_have_text("80 %")
    return page


def test_what_one_changes_both_see(open_page: Open) -> None:
    one, two = signed_in(open_page), signed_in(open_page)
    expect(state(one, 7)).to_have_text("unlocked")
    one.get_by_role("button", name="Turn the key").click()
    for page in (one, two):
        expect(state(page, 7)).to_have_text("locked")
    two.locator('[data-item="6"] input').fill("45")
    for page in (one, two):
        expect(state(page, 6)).to_have_text("45 %")
        expect(page.locator('[data-item="6"] input')).to_have_value("45")
    two.get_by_role("button", name="Activate").click()
    for page in (one, two):
        expect(state(page, 5)).to_have_text("off")
        expect(state(page, 6)).to_have_text("5 %")


def test_coming_back(open_page: Open) -> None:
    page = signed_in(open_page)
    page.locator("#disconnect").click()
    expect(page.locator("#state")).to_have_text("closed")
    expect(page.get_by_role("button", name="Turn the key")).to_be_disabled()
    page.locator("#reconnect").click()
    wait_open(page)
    expect(page.get_by_role("button", name="Turn the key")).to_be_enabled()


def test_a_wrong_password(open_page: Open, errors: Errors) -> None:
    page = open_page("director/")
    page.locator("#password").fill("wrong")
    page.locator("#sign-in").click()
    expect(page.locator("#problem")).to_have_text(re.compile("Bad credentials"))
    expect(page.locator("#state")).to_have_text("closed")
    page.close()  # everything that it said has come
    assert errors.take("401") >= 1
