"""The page of the transcriber: sound of a microphone or of a file goes in, and results come meanwhile."""

from __future__ import annotations

import io
import math
import re
import wave
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


def open_ready(open_page: Open, **options: Any) -> Any:
    page = open_page("transcriber/", **options)
    expect(page.locator("#record")).to_be_enabled()
    return page


def tone(seconds: float, rate: int = 44_100) -> bytes:
    """A WAV file with a tone at half of the full loudness, of two channels."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        samples = (int(16384 * math.sin(number / rate * 2 * math.pi * 440)) for number in range(int(seconds * rate)))
        sound.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) * 2 for sample in samples))
    return file.getvalue()


def choose(page: Any, name: str, content: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "audio/wav", "buffer": content})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_and_says_that_it_is_a_stand_in(open_page: Open, width: int, scheme: str) -> None:
    page = open_ready(open_page, viewport={"width": width, "height": 844}, color_scheme=scheme)
    expect(page.get_by_text("No word is recognised here.")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_a_file_is_heard(open_page: Open) -> None:
    page = open_ready(open_page)
    choose(page, "tone.wav", tone(7.0))
    results = page.locator("#sentences li")
    expect(results).to_have_count(2)
    expect(results.nth(0)).to_contain_text("0.0 s5.0 s of pcm, 160,000 bytes, at most 50 % loud")
    expect(results.nth(1)).to_contain_text("5.0 s2.0 s of pcm, 64,000 bytes, at most 50 % loud")
    expect(page.locator("#sentences li.interim")).to_have_count(0)
    expect(page.locator("#bytes")).to_have_text("224,000")
    expect(page.locator("#record")).to_have_text("Record")
    choose(page, "again.wav", tone(1.0))  # the same connection takes the next task
    expect(results).to_have_count(3)
    expect(results.nth(2)).to_contain_text("1.0 s of pcm")


def test_the_microphone_is_heard_until_it_is_stopped(open_page: Open) -> None:
    page = open_ready(open_page, permissions=["microphone"])
    page.locator("#record").click()
    interim = page.locator("#sentences li.interim")
    expect(interim).to_contain_text(re.compile(r"[1-9]\.\d s of pcm"))
    expect(page.locator("#file")).to_be_disabled()
    page.get_by_role("button", name="Stop").click()
    expect(interim).to_have_count(0)
    expect(page.locator("#record")).to_have_text("Record")
    # One, or more where the machine is so slow that it was stopped after the five seconds of a sentence only.
    first = page.locator("#sentences li").first
    expect(first).to_contain_text("s of pcm")
    # The device beeps: something was heard.
    assert not re.search(r"at most 0 %", first.inner_text())


def test_what_is_no_sound_is_said_and_the_next_file_is_heard(open_page: Open) -> None:
    page = open_ready(open_page)
    choose(page, "no sound.wav", b"<html>")
    expect(page.locator("#problem")).to_contain_text("no sound.wav:")
    expect(page.locator("#record")).to_have_text("Record")
    choose(page, "tone.wav", tone(1.0))
    expect(page.locator("#sentences li")).to_have_count(1)
    expect(page.locator("#problem")).to_have_text("")


def test_a_microphone_that_may_not_be_used_is_said(open_page: Open) -> None:
    page = open_ready(open_page, permissions=[])
    page.locator("#record").click()
    expect(page.locator("#problem")).to_have_text("Microphone: Permission denied")
    expect(page.locator("#record")).to_have_text("Record")


def test_a_connection_that_is_lost_stops_the_recording(open_page: Open, demos: SiteServer) -> None:
    page = open_ready(open_page, permissions=["microphone"])
    page.locator("#record").click()
    expect(page.locator("#sentences li").first).to_be_visible()
    for session in list(demos.server.sessions):
        session.controller.close(1012, "it restarts")
    expect(page.locator("#detail")).to_have_text("code 1012 (server restarts): it restarts")
    expect(page.locator("#record")).to_be_disabled()
    page.get_by_role("button", name="Reconnect").click()
    choose(page, "tone.wav", tone(1.0))
    expect(page.locator("#sentences li").last).to_contain_text("1.0 s of pcm")


def test_the_folder_is_a_site_of_its_own(browser: Any, krait_site: Callable[..., SiteServer], errors: Errors) -> None:
    site = krait_site(SITES / "transcriber")
    with browser.new_context() as context:
        page = context.new_page()
        page.on("response", lambda answer: answer.status >= 400 and errors.append(f"{answer.status}: {answer.url}"))
        page.goto(site.url)
        expect(page.locator("#record")).to_be_enabled()
        choose(page, "tone.wav", tone(1.0))
        expect(page.locator("#sentences li")).to_contain_text("1.0 s of pcm")
