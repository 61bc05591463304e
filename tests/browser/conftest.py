"""Fixtures of the browser tests: the demos of ``sites/`` on a real server, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.sites.conftest import own_port

__all__ = ["SITES", "Errors", "own_port"]

SITES = Path(__file__).parents[2] / "sites"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="package")  # not longer: while it is open an asyncio loop counts as running in this thread
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        # A user without the browser still gets the rest; in CI nothing may go untested.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-fake-device-for-media-stream",  # a microphone that beeps, for pages that may use one
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def demos(krait_site: Callable[..., SiteServer]) -> SiteServer:
    return krait_site(SITES)


class Errors(list[str]):
    """What pages complained about: messages on the console and exceptions that nobody caught. Empty at the end of a
    test, or the test fails; a test takes out what it expects."""

    def take(self, part: str) -> int:
        """Takes out the messages with ``part`` in them and returns how many there were."""
        found = [message for message in self if part in message]
        self[:] = [message for message in self if part not in message]
        return len(found)


@pytest.fixture
def errors() -> Iterator[Errors]:
    errors = Errors()
    yield errors
    assert errors == []


@pytest.fixture
def open_page(browser: Any, demos: SiteServer, errors: Errors) -> Iterator[Callable[..., Any]]:
    """``open_page("echo/")`` opens a page of the demos in a context of its own."""
    contexts = []

    def note_message(message: Any) -> None:
        if message.type in ("error", "warning"):
            errors.append(f"{message.type}: {message.text}")

    def open_page(path: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", note_message)
        page.on("pageerror", lambda error: errors.append(f"exception: {error}"))
        page.on("response", lambda answer: answer.status >= 400 and errors.append(f"{answer.status}: {answer.url}"))
        page.goto(f"{demos.url}/{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
