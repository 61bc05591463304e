"""pyisyox 6.0.1 against the hub, as it comes from PyPI."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.client.proxy import Proxy
from tests.clients.conftest import SITES
from tests.clients.support import PATIENCE, Program
from tests.integration.support import eventually

Serve = Callable[..., SiteServer]
Start = Callable[..., Program]
ADDRESSES = ["10 A1 01 1", "10 A1 02 1", "10 A1 03 1", "10 A1 04 1"]
LAMP, DIMMER = ADDRESSES[:2]
UP = ["INITIALIZING", "SYNCING", "CONNECTED"]


@pytest.fixture
def site(krait_site: Serve) -> SiteServer:
    return krait_site(SITES / "hub")


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(url, "local")`` starts a program; it ends with the test."""
    with ExitStack() as stack:

        def start(url: str, kind: str = "local", user: str = "demo", password: str = "demo") -> Program:
            program = stack.enter_context(Program("pyisyox", "pyisyox_program.py", url, kind, user, password))
            program.wait_for("ready")
            return program

        yield start


def subscribed(start: Start, url: str, kind: str = "local") -> Program:
    """A program that has come through the replay."""
    program = start(url, kind)
    program.tell("subscribe")
    program.wait_for("status", status="CONNECTED")
    return program


def module(name: str) -> dict[str, Any]:
    """The variables of a module of the hub that is being served."""
    (found,) = [module for key, module in list(sys.modules.items()) if key.endswith(f".{name}")]
    return vars(found)


def set_level(address: str, level: int) -> None:
    hub = module("_devices")["hub"]
    hub.set_level(hub.devices[address], level)


def statuses(program: Program) -> list[str]:
    return [said["status"] for said in program.all_of("status")]


def numbers(program: Program) -> list[int]:
    return [said["number"] for said in program.all_of("event") if said["control"] == "ST"]


# ---- the stream


@pytest.mark.parametrize("kind", ["local", "portal"])
@pytest.mark.parametrize("place", ["a site of its own", "a part of sites"])
def test_loads_everything_then_hears_the_replay_and_what_is_live(
    krait_site: Serve, start: Start, kind: str, place: str
) -> None:
    alone = place == "a site of its own"
    site = krait_site(SITES / "hub" if alone else SITES)
    program = start(site.url + ("" if alone else "/hub"), kind)
    program.tell("connect")
    nodes = program.wait_for("nodes")["nodes"]
    assert nodes[DIMMER] == ["Kitchen lamp", "0"]
    assert list(nodes) == ADDRESSES
    program.wait_for("status", status="CONNECTED")
    assert statuses(program) == UP[1:] or statuses(program) == UP
    replay = program.all_of("event")
    assert [(said["action"], said["address"]) for said in replay] == [("0", address) for address in ADDRESSES]
    assert {said["status"] for said in replay} <= {"INITIALIZING", "SYNCING"}
    program.tell("send", address=DIMMER, order="DON", value=128)
    live = program.wait_for("event")
    assert (live["control"], live["action"], live["address"], live["status"]) == ("ST", "128", DIMMER, "CONNECTED")
    program.wait_for("done", command="send")
    program.tell("levels")
    assert program.wait_for("levels")["levels"] == {**dict.fromkeys(ADDRESSES, "0"), DIMMER: "128"}
    (session,) = site.server.sessions
    program.tell("stop")
    assert program.wait_for("stopped")["tasks"] == []
    eventually(lambda: session.close_code == 1000, what="the client's close")
    assert program.finish() == 0


def test_hears_every_change_once_and_in_order(site: SiteServer, start: Start) -> None:
    program = subscribed(start, site.url)
    for number in range(2000):
        set_level(ADDRESSES[number % 4], number % 256)
        if number % 500 == 499:  # not more at once than the mailbox of a subscriber holds
            eventually(lambda number=number: len(numbers(program)) == number + 5)
    assert numbers(program) == list(range(1, 2005))


def test_a_heartbeat_is_an_event_and_no_change(site: SiteServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    site.get("/rest/status")
    monkeypatch.setitem(module("_devices"), "HEARTBEAT", 0.2)
    program = start(site.url)
    program.tell("subscribe")
    for _ in range(5):
        program.wait_for("event", control="_0", address="")
    # Its sign of quiet is a second without a frame: with a heartbeat in each it takes the ten seconds that it allows.
    # It may have come before the five, where the machine is so slow that there was a second without a heartbeat.
    eventually(lambda: "CONNECTED" in statuses(program))
    assert statuses(program) == UP
    assert len(site.server.sessions) == 1


def test_a_callback_that_raises_hurts_nothing(site: SiteServer, start: Start) -> None:
    program = subscribed(start, site.url)
    program.tell("raise_in_callbacks")
    program.wait_for("done", command="raise_in_callbacks")
    for level in (1, 2, 3):
        set_level(LAMP, level)
        program.wait_for("event", action=str(level))
    assert statuses(program) == UP
    eventually(lambda: program.errors.count("event listener raised") == 3)


def test_a_command_that_is_refused_is_an_error_of_its_own(site: SiteServer, start: Start) -> None:
    program = start(site.url)
    program.tell("connect")
    program.wait_for("status", status="CONNECTED")
    program.tell("send", address=LAMP, order="BEEP")
    assert "400" in program.wait_for("error", command="send")["text"]
    program.tell("send", address=LAMP, order="DON")
    program.wait_for("event", action="255")


# ---- who may come in


@pytest.mark.parametrize("kind", ["local", "portal"])
def test_wrong_credentials_end_it_for_good(site: SiteServer, start: Start, kind: str) -> None:
    program = start(site.url, kind, "demo", "wrong")
    program.tell("subscribe")
    program.wait_for("status", status="RECONNECT_FAILED")
    assert statuses(program) == ["INITIALIZING", "RECONNECT_FAILED"]
    assert not site.server.sessions
    program.tell("connect")
    assert program.wait_for("error", command="connect")["kind"] == "AuthError"


def test_a_token_that_is_good_no_more_is_renewed_once(
    site: SiteServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(site.port) as proxy:
        program = subscribed(start, f"http://127.0.0.1:{proxy.port}", "portal")
        tokens = module("_access")["tokens"]
        renewed = []
        renew = tokens.renew
        monkeypatch.setattr(tokens, "renew", lambda token: renewed.append(token) or renew(token))
        access = next(token for token, (_, use, _) in tokens._owners.items() if use == "access")
        assert tokens.forget(access)
        proxy.cut()
        program.wait_for("status", status="LOST_CONNECTION")
        program.wait_for("status", status="CONNECTED")
    assert len(renewed) == 1
    assert tokens.user_of(access) is None


def test_after_a_restart_that_lost_all_tokens_it_signs_in_again(krait_site: Serve, start: Start, own_port: int) -> None:
    site = krait_site(SITES / "hub", port=own_port)
    program = subscribed(start, site.url, "portal")
    site.close()
    program.wait_for("status", status="LOST_CONNECTION")
    again = krait_site(SITES / "hub", port=site.port)
    program.wait_for("status", status="CONNECTED")
    assert len(again.server.sessions) == 1


# ---- losses


def test_states_over_a_connection_that_is_cut(site: SiteServer, start: Start) -> None:
    with Proxy(site.port) as proxy:
        program = subscribed(start, f"http://127.0.0.1:{proxy.port}")
        set_level(LAMP, 7)
        program.wait_for("event", action="7")
        proxy.reset()
        program.wait_for("status", status="LOST_CONNECTION")
        eventually(lambda: not site.server.sessions, what="the end of the lost connection")
        set_level(DIMMER, 9)  # while it is away: the next replay has it
        program.wait_for("status", status="CONNECTED")
        assert statuses(program) == [*UP, "LOST_CONNECTION", "RECONNECTING", *UP]
        replayed = {said["address"]: said["action"] for said in program.all_of("event")[-4:]}
        assert replayed == {**dict.fromkeys(ADDRESSES, "0"), LAMP: "7", DIMMER: "9"}


def test_backs_off_while_the_hub_is_away_and_comes_back(site: SiteServer, start: Start) -> None:
    with Proxy(site.port) as proxy:
        program = subscribed(start, f"http://127.0.0.1:{proxy.port}")
        proxy.refuse()
        proxy.cut()
        tries = [program.wait_for("status", status="LOST_CONNECTION")["at"]]
        for _ in range(2):
            program.wait_for("status", status="INITIALIZING")
            tries.append(program.wait_for("status", status="LOST_CONNECTION")["at"])
        proxy.accept()
        program.wait_for("status", status="CONNECTED", timeout=PATIENCE + 5)
        waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
        # Each is longer than the one before; how long they take in the end is a matter of the machine, too.
        eventually(lambda: re.findall(r"WS reconnect in (\S+)s", program.errors)[:2] == ["1.0", "2.0"])
        assert waits[0] > 0.9
        assert waits[1] > 1.9


def test_an_answer_that_is_no_upgrade_makes_it_try_again(site: SiteServer, start: Start) -> None:
    with Proxy(site.port) as proxy:
        program = start(f"http://127.0.0.1:{proxy.port}")
        proxy.answer("503 Service Unavailable")
        program.tell("subscribe")
        program.wait_for("status", status="LOST_CONNECTION")
        program.wait_for("status", status="CONNECTED")


def test_two_programs_do_not_disturb_each_other(site: SiteServer, start: Start) -> None:
    one, two = subscribed(start, site.url), subscribed(start, site.url, "portal")
    one.tell("stop")
    one.wait_for("stopped")
    eventually(lambda: len(site.server.sessions) == 1)
    set_level(LAMP, 3)
    two.wait_for("event", action="3")
    assert statuses(two) == UP


def test_a_switch_in_the_browser_reaches_the_program_and_back(browser: Any, krait_site: Serve, start: Start) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE * 1000)
    site = krait_site(SITES)
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"{site.url}/hub/")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".device")).to_have_count(4)
        program = start(f"{site.url}/hub", "portal")
        program.tell("connect")
        program.wait_for("status", status="CONNECTED")
        page.get_by_role("switch", name="Hall lamp").click()
        program.wait_for("event", control="ST", action="255", address=LAMP, status="CONNECTED")
        page.get_by_role("slider", name="Level of Kitchen lamp").fill("51")
        program.wait_for("event", control="ST", action="51", address=DIMMER)
        program.tell("send", address=LAMP, order="DOF")
        expect(page.get_by_role("switch", name="Hall lamp")).to_have_attribute("aria-checked", "false")
        program.tell("send", address=DIMMER, order="DON", value=255)
        expect(page.locator(".device").nth(1).locator(".level")).to_have_text("on")
    finally:
        context.close()
