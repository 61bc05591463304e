"""pyControl4 2.0.2 against the director, as it comes from PyPI, over TLS."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.clients.conftest import SITES
from tests.clients.support import PATIENCE, Program
from tests.integration.support import eventually
from tests.operations.conftest import Certificate
from tests.sites.test_director import INITIAL, SECRET, globals_of, old_token

Serve = Callable[..., SiteServer]
USER = {"user": "ann", "password": "a garden of stones"}


@pytest.fixture
def serve(krait_site: Serve, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """``serve(port)``: the director as a site of its own."""
    monkeypatch.setenv("DIRECTOR_SECRET", SECRET)
    return lambda port: krait_site(SITES / "director", port=port, **certificate.settings)


@pytest.fixture
def site(serve: Serve, own_port: int) -> SiteServer:
    return serve(own_port)


@pytest.fixture
def token(site: SiteServer, certificate: Certificate) -> str:
    request = urllib.request.Request(f"{site.url}/login", json.dumps(USER).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE, context=certificate.context()) as answer:
        token = json.load(answer)["token"]
    assert isinstance(token, str)
    return token


@pytest.fixture
def start(site: SiteServer) -> Iterator[Callable[[], Program]]:
    """Starts a program; it ends with the test."""
    with ExitStack() as stack:

        def start() -> Program:
            program = stack.enter_context(Program("pycontrol4", "director_client.py", f"127.0.0.1:{site.port}"))
            program.wait_for("ready")
            return program

        yield start


def do(program: Program, command: str, **fields: Any) -> dict[str, Any]:
    program.tell(command, **fields)
    return program.wait_for("done", command=command)


def follow(program: Program, token: str, *items: int) -> None:
    """Connects with a callback for each of the items; the state of each has come."""
    for item in items:
        do(program, "add", item=item, name=f"of {item}")
    program.tell("connect", token=token)
    for item in items:
        program.wait_for("item", message=state_of(item))


def state_of(item: int) -> dict[str, Any]:
    return next(state for state in INITIAL if state["iddevice"] == item)


def change(changes: dict[int, dict[str, int]]) -> None:
    globals_of("_house")["house"].change(changes)


def said(program: Program, event: str, name: str) -> list[Any]:
    """The messages of the events that have this name, in the order in which they were said."""
    return [one["message"]["data"] for one in program.all_of(event) if one["name"] == name]


def test_connects_and_gets_the_state_of_each_item(start: Callable[[], Program], token: str) -> None:
    program = start()
    follow(program, token, 5, 6, 7)
    assert len(program.all_of("connected")) == 1
    assert [one["device"] for one in program.all_of("item")] == [5, 6, 7]


@pytest.mark.parametrize("wrong", ["no token", "expired", "foreign"])
def test_is_refused_without_a_good_token(
    start: Callable[[], Program], site: SiteServer, token: str, wrong: str
) -> None:
    bad = {"no token": "", "expired": old_token(86401), "foreign": old_token(0, "another secret")}[wrong]
    program = start()
    program.tell("connect", token=bad)
    assert program.wait_for("error", command="connect")["kind"] == "ConnectionError"
    program.tell("items", token=bad)
    assert program.wait_for("error", command="items")["kind"] == "BadToken"
    follow(program, token, 5)  # and then with a good one


def test_a_change_reaches_the_callbacks_of_its_item_only(start: Callable[[], Program], token: str) -> None:
    program = start()
    follow(program, token, 5, 6)
    do(program, "add", item=5, name="another")
    levels = [{"LIGHT_LEVEL": level} for level in range(100, 200)]
    for level in levels:
        change({5: level})
    change({7: {"RelayState": 0}})
    change({6: {"LIGHT_LEVEL": 1}})
    program.wait_for("item", name="of 6", message={"iddevice": 6, "data": {"LIGHT_LEVEL": 1}})
    assert said(program, "item", "of 5") == [{"LIGHT_LEVEL": 80}, *levels]
    assert said(program, "item", "another") == levels
    assert said(program, "item", "of 6") == [{"LIGHT_LEVEL": 0}, {"LIGHT_LEVEL": 1}]


def test_several_changes_come_as_a_list(start: Callable[[], Program], token: str) -> None:
    program = start()
    follow(program, token, 5, 6, 7)
    change({5: {"LIGHT_LEVEL": 1}, 6: {"LIGHT_LEVEL": 2}, 7: {"RelayState": 0}})
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 1}})
    program.wait_for("item", message={"iddevice": 6, "data": {"LIGHT_LEVEL": 2}})
    program.wait_for("item", message={"iddevice": 7, "data": {"RelayState": 0}})


def test_a_callback_that_raises_stops_no_other(start: Callable[[], Program], token: str) -> None:
    program = start()
    do(program, "add", item=5, name="raising", raises=True)
    follow(program, token, 5)
    for level in (1, 2):
        change({5: {"LIGHT_LEVEL": level}})
        for name in ("raising", "of 5"):
            program.wait_for("item", name=name, message={"iddevice": 5, "data": {"LIGHT_LEVEL": level}})
    assert program.all_of("disconnected") == []


def test_callbacks_are_removed(start: Callable[[], Program], token: str) -> None:
    program = start()
    follow(program, token, 5, 6)
    do(program, "add", item=5, name="another")
    do(program, "remove", item=5, name="of 5")
    change({5: {"LIGHT_LEVEL": 1}})
    program.wait_for("item", name="another")
    do(program, "remove", item=5)
    change({5: {"LIGHT_LEVEL": 2}})
    change({6: {"LIGHT_LEVEL": 3}})
    program.wait_for("item", message={"iddevice": 6, "data": {"LIGHT_LEVEL": 3}})
    assert said(program, "item", "of 5") == [{"LIGHT_LEVEL": 80}]
    assert said(program, "item", "another") == [{"LIGHT_LEVEL": 1}]


def test_its_pings_are_answered(start: Callable[[], Program], token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = start()
    follow(program, token, 5)
    eventually(lambda: len(program.all_of("pong")) == 1, what="the pong to the ping that it sends at the start")
    monkeypatch.setitem(globals_of("_client"), "PING_INTERVAL", 4.0)  # in which the pong must have come, else it leaves
    program.tell("connect", token=token)
    program.wait_for("item", message=state_of(5))
    for _ in range(3):
        program.wait_for("pong")
    change({5: {"LIGHT_LEVEL": 1}})
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 1}})
    assert program.all_of("disconnected") == []


def test_plain_requests(start: Callable[[], Program], token: str) -> None:
    program = start()
    follow(program, token, 5, 7)
    program.tell("items", token=token)
    assert [item["name"] for item in program.wait_for("items")["items"]][:2] == ["Kitchen", "Hall"]
    program.tell("set_level", token=token, item=5, level=33)
    assert program.wait_for("level") == {"event": "level", "level": 33}
    program.tell("lock", token=token, item=7)
    assert program.wait_for("locked") == {"event": "locked", "state": 0}
    # Answers and events come on two connections.
    eventually(lambda: said(program, "item", "of 5")[-1] == {"LIGHT_LEVEL": 33})
    eventually(lambda: said(program, "item", "of 7")[-1] == {"RelayState": 0})


def test_two_programs_follow_the_same_items(start: Callable[[], Program], token: str) -> None:
    programs = [start(), start()]
    for program in programs:
        follow(program, token, 5)
    change({5: {"LIGHT_LEVEL": 7}})
    for program in programs:
        program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 7}})


@pytest.mark.parametrize("how", ["close", "abort"])
def test_comes_back_when_the_server_ends_the_connection(
    start: Callable[[], Program], site: SiteServer, token: str, how: str
) -> None:
    program = start()
    follow(program, token, 5)
    (session,) = site.server.sessions
    if how == "close":
        session.controller.close(1012, "for the test")
    else:
        site.server.loop.call(session.abort)
    program.wait_for("disconnected")
    change({5: {"LIGHT_LEVEL": 42}})  # while it is away
    program.wait_for("connected")
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 42}})
    change({5: {"LIGHT_LEVEL": 43}})
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 43}})


def test_comes_back_with_the_same_token_after_a_restart(
    start: Callable[[], Program], site: SiteServer, serve: Serve, token: str
) -> None:
    program = start()
    follow(program, token, 5)
    started = time.monotonic()
    site.close()
    assert time.monotonic() - started < 8
    program.wait_for("disconnected")
    serve(site.port)
    program.wait_for("connected")
    program.wait_for("item", message=state_of(5))
    change({5: {"LIGHT_LEVEL": 9}})
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 9}})


def test_a_new_token_takes_the_place_of_the_old_connection(
    start: Callable[[], Program], site: SiteServer, token: str
) -> None:
    """What the package says to do each day: ``sio_connect`` with a new token."""
    program = start()
    follow(program, token, 5)
    program.tell("connect", token=old_token(100))
    program.wait_for("item", message=state_of(5))
    eventually(lambda: len(site.server.sessions) == 1, what="the end of the old connection")
    change({5: {"LIGHT_LEVEL": 3}})
    program.wait_for("item", message={"iddevice": 5, "data": {"LIGHT_LEVEL": 3}})
    assert said(program, "item", "of 5").count({"LIGHT_LEVEL": 3}) == 1


def test_ends_cleanly(start: Callable[[], Program], site: SiteServer, token: str) -> None:
    program = start()
    follow(program, token, 5)
    assert do(program, "disconnect")["seconds"] < 10
    eventually(lambda: not site.server.sessions, what="the end of the connection")
    assert not globals_of("_client")["clients"]._clients
    assert program.finish() == 0
    assert program.all_of("loop_error") == []


def test_a_program_that_is_killed_leaves_nothing(start: Callable[[], Program], site: SiteServer, token: str) -> None:
    program = start()
    follow(program, token, 5)
    program.send_signal(9)
    eventually(lambda: not site.server.sessions, what="the end of the connection")
    eventually(lambda: not globals_of("_client")["clients"]._clients)
