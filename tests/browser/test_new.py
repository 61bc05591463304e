"""The page that ``krait-ws new`` writes, in a real browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krait_ws.testing import SiteServer


def test_the_page_works_as_a_site_and_as_a_part_of_one(
    browser: Any, krait_site: Callable[..., SiteServer], tmp_path: Path
) -> None:
    site = tmp_path / "sites" / "room"
    subprocess.run([sys.executable, "-m", "krait_ws", "new", site], check=True, capture_output=True, timeout=30)
    for url in (f"{krait_site(site).url}/", f"{krait_site(site.parent).url}/room/"):
        context = browser.new_context()
        faults: list[str] = []
        ada, bob = context.new_page(), context.new_page()
        ada.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
        ada.on("console", lambda message, faults=faults: faults.append(message.text))
        ada.goto(url)
        ada.get_by_text("somebody joined, 1 here").wait_for()
        bob.goto(url)
        bob.get_by_text("connected", exact=True).wait_for()
        bob.get_by_label("Message", exact=True).fill("hello <b>there</b>")
        bob.keyboard.press("Enter")
        ada.get_by_text("somebody: hello <b>there</b>").wait_for()
        bob.close()
        ada.get_by_text("somebody left, 1 here").wait_for()
        assert faults == []
        context.close()


NOTE_STATES = """() => {
    window.states = [];
    const state = document.getElementById("state");
    new MutationObserver(() => states.push(state.textContent)).observe(state, { childList: true });
}"""
"""A state may be shown for a quarter of a second only, until the next attempt."""


def test_the_page_connects_again(
    browser: Any, krait_site: Callable[..., SiteServer], own_port: int, tmp_path: Path
) -> None:
    site = tmp_path / "room"
    subprocess.run([sys.executable, "-m", "krait_ws", "new", site], check=True, capture_output=True, timeout=30)
    first = krait_site(site, port=own_port)
    context = browser.new_context()
    page = context.new_page()
    page.goto(first.url)
    page.get_by_text("connected", exact=True).wait_for()
    page.evaluate(NOTE_STATES)
    first.close()
    page.wait_for_function("states.includes('closed with 1001, trying again')")
    krait_site(site, port=own_port)
    page.get_by_text("connected", exact=True).wait_for()
    context.close()
