"""The dashboard as a person sees it, fed by a server that has something to show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from krait_ws.testing import Client, SiteServer
from tests.browser.conftest import Errors
from tests.integration.support import eventually, write_site
from tests.observe.conftest import SITE

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import expect

Open = Callable[..., Any]
PATIENCE = 20_000
"""Milliseconds."""
TOKEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENCE)


@pytest.fixture
def options() -> dict[str, Any]:
    """Settings of the server; a test may set others by parameters."""
    return {}


@pytest.fixture
def demos(tmp_path: Path, krait_site: Callable[..., SiteServer], options: dict[str, Any]) -> SiteServer:
    site = write_site(tmp_path / "site", dict(SITE))
    return krait_site(site, **{"dashboard": True, "metrics": True, **options})


@pytest.fixture
def busy(demos: SiteServer) -> Iterator[list[Client]]:
    """Two chats and an echo that have said something, a stuck handler, and a handshake that was refused."""
    clients = [demos.connect(path) for path in ("/chat/one", "/chat/two", "/echo")]
    for client in clients:
        client.send("hello")
        client.expect("hello")
    demos.connect("/stuck").close()
    with pytest.raises(AssertionError):
        demos.connect("/refuses")
    yield clients
    for client in clients:
        client.close()
    demos.get("/stuck")


def cell(page: Any, table: str, row: str, column: str) -> Any:
    """A cell of a table, by the text of its row's first cell and the title of its column."""
    columns = page.locator(f"#{table} th").all_inner_texts()
    return page.locator(f"#{table} tr", has=page.locator(f"td:first-child:text-is('{row}')")).locator(
        f"td:nth-child({columns.index(column) + 1})"
    )


def look_at(page: Any, route: str, pressed: float = 0) -> Any:
    """The dialog about the connection of a route, whose button is pressed for so many milliseconds."""
    page.locator("#busiest tr", has_text=route).get_by_role("button").click(delay=pressed)
    return page.get_by_role("dialog")


def wait_live(page: Any) -> None:
    expect(page.locator("#status")).to_have_text(re.compile(r"^live, 1 worker, \d+ threads$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 390, "height": 800}, {"width": 1200, "height": 800}], ids=["phone", "desk"])
@pytest.mark.usefixtures("busy")
def test_the_numbers_are_those_of_the_metrics(open_page: Open, demos: SiteServer, size: Any, scheme: str) -> None:
    page = open_page("_krait/", viewport=size, color_scheme=scheme)
    wait_live(page)
    expect(cell(page, "routes", "/chat/[room]", "Open")).to_have_text("2")
    expect(page.locator("#stuck pre")).to_contain_text("ask_the_database")
    expect(page.locator("#tiles .alarm dt").filter(has_text="Stuck")).to_have_text("Stuck handlers")
    expect(cell(page, "refused", "forbidden", "Handshakes")).to_have_text("1")
    values = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(demos.get("/_krait/metrics").text)
        for sample in family.samples
    }
    for route in ("/chat/[room]", "/echo", "/stuck"):
        assert cell(page, "routes", route, "Open").inner_text() == f"{values['krait_connections', route]:.0f}"
        if size["width"] > 1000:
            received = values["krait_messages_total", "in", route]
            assert cell(page, "routes", route, "Messages in").inner_text() == f"{received:.0f}"
    expect(page.locator("#messages polyline")).to_have_count(2)
    width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert width <= 0, f"{width} pixels too wide"
    colours = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (light > dark) == (scheme == "light")


def test_one_connection_is_looked_at_and_closed(open_page: Open, busy: list[Client]) -> None:
    page = open_page("_krait/")
    dialog = look_at(page, "/echo", pressed=2500)  # the table is drawn anew each second, not under a finger
    expect(dialog.locator("#facts")).to_contain_text("Echo (thread)")
    expect(dialog.locator("pre")).to_contain_text("on_thread_start")
    dialog.get_by_role("button", name="Close this connection").click()
    busy[2].send("still here")  # a slip of the finger closes nothing
    busy[2].expect("still here")
    dialog.get_by_role("button", name="Really close it?").click()
    assert busy[2].expect_close(1008) == "closed by the operator"
    expect(dialog.get_by_text("This connection has ended")).to_be_visible()
    expect(dialog.get_by_role("button", name="Close this connection")).to_be_disabled()
    dialog.get_by_role("button", name="Back").click()
    expect(dialog).to_be_hidden()
    expect(cell(page, "routes", "/echo", "Open")).to_have_text("0")


def test_a_connection_is_found_by_its_id(open_page: Open, demos: SiteServer, busy: list[Client]) -> None:
    wanted = next(session for session in list(demos.server.sessions) if session.route == "/echo")
    page = open_page("_krait/")
    wait_live(page)
    page.get_by_label("Connection").first.fill(wanted.id)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#facts")).to_contain_text("Echo (thread)")
    page.keyboard.press("Escape")
    eventually(lambda: not demos.server.observer.watched)


def test_what_clients_choose_is_text(open_page: Open, demos: SiteServer) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    with demos.connect("/chat/%3Cimg%20src=x%20onerror=alert(1)%3E"):
        page = open_page("_krait/")
        look_at(page, "/chat/[room]")
        expect(page.locator("#facts")).to_contain_text(nasty)
        assert page.locator("img").count() == 0


def test_a_lost_server_is_told(open_page: Open, demos: SiteServer, errors: Errors) -> None:
    page = open_page("_krait/")
    wait_live(page)
    demos.close()
    expect(page.locator("#status")).to_have_text("not connected, trying again")
    page.close()  # it tries again, in vain; from now on it does not, and everything that it said has come
    errors.clear()


@pytest.mark.parametrize("options", [{"dashboard_token": TOKEN}])
def test_a_person_logs_in(open_page: Open, errors: Errors) -> None:
    page = open_page("_krait/")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Show the dashboard").click()
    expect(page.get_by_label("Token")).to_have_value("")  # the page that answers may come late
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Show the dashboard").click()
    wait_live(page)
    assert errors.take("401") >= 2
    assert "krait_dashboard" not in page.evaluate("document.cookie"), "no script reads it"
    page.reload()
    wait_live(page)
