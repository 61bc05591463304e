"""Our own client against the relay and the director: the parts that docs/clients.md names, and its two programs."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from krait_ws.client import (
    AuthError,
    Backoff,
    ConnectionUnavailableError,
    Event,
    EventStream,
    Headers,
    Link,
    Peers,
    PeerTimeoutError,
    Status,
    Subscriptions,
    Transport,
)
from krait_ws.testing import SiteServer
from tests.client.programs import command, interrupt
from tests.integration.support import PATIENCE, eventually
from tests.operations.conftest import Certificate, certificate, certificates
from tests.sites.test_director import INITIAL, SECONDS_OLD, SECRET, Director, globals_of, old_token

__all__ = ["certificate", "certificates"]

ROOT = Path(__file__).parents[2]
SITES = ROOT / "sites"
SOON = Backoff([0.05])
Serve = Callable[..., SiteServer]


def stream_to(url: str, **options: Any) -> EventStream:
    return EventStream(Transport(url, proxy=None), **{"backoff": SOON, "sync_quiet": 0.1, **options})


# ---- the relay


@pytest.fixture
def relay(krait_site: Serve, own_port: int) -> SiteServer:
    return krait_site(SITES / "relay", port=own_port)


@pytest.fixture
def peers(relay: SiteServer) -> Iterator[Callable[..., Peers]]:
    """``peers(role, room)``; each is shut down at the end."""
    with ExitStack() as stack:

        def make(role: str = "hero", room: str = "", **options: Any) -> Peers:
            url = f"ws://127.0.0.1:{relay.port}/?room={room}"
            awaited = "sidekick" if role == "hero" else "hero"
            made = Peers(stream_to(url, **options), role=role, awaited=awaited)
            stack.callback(made.shutdown)
            return made

        yield make


def test_a_script_waits_for_a_panel_and_both_know_of_each_other(peers: Callable[..., Peers]) -> None:
    script, panel = peers(), peers("sidekick")
    presences: list[tuple[str, bool]] = []
    panel.on_presence(lambda peer, online: presences.append((peer.peer_id, online)))
    panel.start()
    assert script.wait_ready(PATIENCE) == panel.me
    assert panel.wait_ready(PATIENCE) == script.me
    assert dict(script.online) == {panel.me.peer_id: panel.me}
    script.shutdown()
    eventually(lambda: len(presences) == 2)
    assert presences == [(script.me.peer_id, True), (script.me.peer_id, False)]


def test_without_a_panel_the_script_is_told_what_to_check(peers: Callable[..., Peers]) -> None:
    script, other = peers(), peers()
    other.start()
    script.start()
    script.stream.wait_connected(PATIENCE)  # else it might be told to check whether the relay is there
    with pytest.raises(PeerTimeoutError, match="no sidekick came online"):
        script.wait_ready(0.3)


def test_commands_and_clicks_in_order(peers: Callable[..., Peers]) -> None:
    script, panel = peers(), peers("sidekick")
    drawn: list[Any] = []
    clicked: list[Any] = []
    # The announcements may come after wait_ready too: it returns as soon as the first listener has heard of them.
    panel.on_any(lambda event: drawn.append(event.data["payload"]) if event.data["module"] == "grid" else None)
    script.on_message("grid", lambda event: clicked.append(event.data["payload"]))
    script.on_message("other", lambda event: clicked.append("not for the grid"))
    panel.start()
    script.wait_ready(PATIENCE)
    panel.wait_ready(PATIENCE)
    for number in range(2000):
        script.send("grid", "update", target="grid", payload=number)
    eventually(lambda: len(drawn) == 2000)
    assert drawn == list(range(2000))
    for number in range(500):
        panel.stream.send(json.dumps({"id": 0, "module": "grid", "type": "event", "src": "grid", "payload": number}))
    eventually(lambda: len(clicked) == 500)
    assert clicked == list(range(500))


def test_rooms(peers: Callable[..., Peers]) -> None:
    script, panel = peers(room="a"), peers("sidekick", room="b")
    panel.start()
    with pytest.raises(PeerTimeoutError):
        script.wait_ready(0.3)


def test_over_a_restart_both_come_back_and_find_each_other(
    krait_site: Serve, relay: SiteServer, peers: Callable[..., Peers]
) -> None:
    script, panel = peers(), peers("sidekick")
    heard: list[Any] = []
    panel.on_any(lambda event: heard.append(event.data))
    panel.start()
    script.wait_ready(PATIENCE)
    relay.close()
    # Not only until nobody is online: the relay may say so of the one before it closes the other.
    eventually(lambda: {script.stream.status, panel.stream.status} == {Status.RECONNECTING})
    assert not script.online
    assert not panel.online
    krait_site(SITES / "relay", port=relay.port)
    assert script.wait_ready(PATIENCE) == panel.me
    assert panel.wait_ready(PATIENCE) == script.me
    script.send("grid", "update", target="grid", payload="back")
    eventually(lambda: "back" in [message.get("payload") for message in heard])


def test_a_script_that_must_not_come_back_says_why(relay: SiteServer, peers: Callable[..., Peers]) -> None:
    script, panel = peers(backoff=Backoff(attempts=0)), peers("sidekick")
    panel.start()
    script.wait_ready(PATIENCE)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            script.run_forever()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    relay.close()
    thread.join(PATIENCE)
    assert [type(error).__name__ for error in raised] == ["ConnectionClosedError"]
    assert script.stream.status is Status.RECONNECT_FAILED


# ---- the director


@pytest.fixture
def director(
    krait_site: Serve, own_port: int, monkeypatch: pytest.MonkeyPatch, replay_of: Callable[[int], None]
) -> Director:
    monkeypatch.setenv("DIRECTOR_SECRET", SECRET)
    replay_of(2)  # the status of the subscription, and the state of all items
    return Director(krait_site(SITES / "director", port=own_port), "")


class House:
    """What a program sees of the house."""

    def __init__(self, director: Director, token: str, **options: Any) -> None:
        self.events: list[tuple[bool, Any]] = []
        self.items = Subscriptions(lambda item: item.get("iddevice"), decode=self._items_of)
        url = f"ws://127.0.0.1:{director.site.port}/socket.io/?EIO=3&transport=websocket"
        transport = Transport(url, auth=Headers({"JWT": token}), proxy=None)
        self.stream = EventStream(transport, **{"backoff": SOON, "sync_quiet": 0.2, **options})
        self.stream.on_open(lambda link: self._greet(link, director, token))
        self.stream.on_event(self.items)
        self.statuses: list[Status] = []
        self.stream.on_status(self.statuses.append)

    def note(self, event: Event) -> None:
        self.events.append((event.replayed, event.data))

    def _greet(self, link: Link, director: Director, token: str) -> None:
        while not str(packet := link.recv(PATIENCE)).startswith("42"):
            pass
        client_id = json.loads(packet[2:])[1]
        query = urllib.parse.urlencode({"JWT": token, "SubscriptionClient": client_id})
        url = f"http://127.0.0.1:{director.site.port}/api/v1/items/datatoui?{query}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            link.send("42" + json.dumps(["startSubscription", json.load(answer)["subscriptionId"]]))

    @staticmethod
    def _items_of(packet: str) -> Any:
        return json.loads(packet[2:])[1] if packet.startswith("42") else []


def change(changes: dict[int, dict[str, int]]) -> None:
    globals_of("_house")["house"].change(changes)


def test_states_are_replayed_and_changes_are_not(director: Director) -> None:
    house = House(director, director.login())
    for item in (5, 7):
        house.items.add(item, house.note)
        house.items.add(item, house.note)  # twice is once
    with house.stream:
        house.stream.wait_connected(PATIENCE)
        assert house.events == [(True, INITIAL[0]), (True, INITIAL[2])]
        # Who waits for CONNECTED may be woken before it is told.
        eventually(lambda: house.statuses == [Status.INITIALIZING, Status.SYNCING, Status.CONNECTED])
        change({5: {"LIGHT_LEVEL": 1}})
        change({5: {"LIGHT_LEVEL": 2}, 6: {"LIGHT_LEVEL": 3}, 7: {"RelayState": 0}})
        house.stream.send("2")  # the pong is no item
        changes = [{"iddevice": 5, "data": {"LIGHT_LEVEL": 1}}, {"iddevice": 5, "data": {"LIGHT_LEVEL": 2}}]
        changes += [{"iddevice": 7, "data": {"RelayState": 0}}]
        eventually(lambda: len(house.events) == 5)
        assert house.events[2:] == [(False, event) for event in changes]
    eventually(lambda: not director.site.server.sessions)


@pytest.mark.parametrize("wrong", ["", "expired"])
def test_a_bad_token_is_the_end(director: Director, wrong: str) -> None:
    house = House(director, old_token(86401) if wrong else "no token")
    house.stream.start()
    eventually(lambda: house.stream.status is Status.RECONNECT_FAILED)
    assert house.stream.stop(PATIENCE)  # its thread has ended, so it has told everything
    assert isinstance(house.stream.error, AuthError)
    assert house.statuses == [Status.INITIALIZING, Status.RECONNECT_FAILED]


def test_the_house_is_followed_again_after_a_restart(krait_site: Serve, director: Director) -> None:
    house = House(director, director.login())
    house.items.add(5, house.note)
    with house.stream:
        house.stream.wait_connected(PATIENCE)
        director.site.close()
        eventually(lambda: Status.RECONNECTING in house.statuses)
        with pytest.raises(ConnectionUnavailableError):
            house.stream.send("2")
        krait_site(SITES / "director", port=director.site.port)
        house.stream.wait_connected(PATIENCE)
        assert house.events == [(True, INITIAL[0]), (True, INITIAL[0])]
        change({5: {"LIGHT_LEVEL": 1}})
        eventually(lambda: len(house.events) == 3)
        assert house.events[2] == (False, {"iddevice": 5, "data": {"LIGHT_LEVEL": 1}})


def test_the_server_ends_the_connection_of_a_token_that_is_too_old(director: Director) -> None:
    for seconds in SECONDS_OLD:
        house = House(director, old_token(seconds))
        with house.stream:
            eventually(lambda stream=house.stream: stream.status is Status.RECONNECT_FAILED)  # type: ignore[misc]
        if not isinstance(house.stream.error, AuthError):
            break
    assert "4401" in str(house.stream.error)


# ---- the programs of docs/clients.md

PATIENT = """
import runpy, sys
from krait_ws.client import EventStream, Peers

EventStream.__init__.__kwdefaults__["sync_quiet"] = 4.0
Peers.wait_ready.__defaults__ = (20.0,)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program as it stands, which takes the defaults. On a busy machine a replay may begin after the second that
they give it, and would count as live, and a panel may be heard after their two."""


@contextmanager
def program(name: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    text = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    source = re.search(rf"^```python file={name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert source
    (folder / name).write_text(source[1], encoding="utf-8")
    (folder / "patient.py").write_text(PATIENT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "*"}
    pipe = subprocess.PIPE
    patient = command(folder / "patient.py", str(folder / name), *arguments)
    process = subprocess.Popen(patient, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        sys.stderr.write(process.communicate()[1])


def test_the_program_that_draws(relay: SiteServer, tmp_path: Path) -> None:
    def next_of(kind: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            message = json.loads(panel.receive(PATIENCE))
            if message["type"] == kind:
                return message
        raise AssertionError(f"no {kind}")

    payload = {"peerId": "p", "role": "sidekick", "status": "online", "version": "1", "timestamp": 1}
    click = {"id": 0, "module": "grid", "type": "event", "src": "board", "payload": {"event": "click", "x": 1, "y": 2}}
    with relay.connect("/") as panel, program("draw.py", tmp_path, f"ws://127.0.0.1:{relay.port}/") as script:
        panel.send(json.dumps({"id": 0, "module": "system", "type": "announce", "payload": payload}))
        assert next_of("spawn")["payload"] == {"numColumns": 8, "numRows": 6}
        panel.send(json.dumps(click))
        painted = {"action": "setColor", "options": {"x": 1, "y": 2, "color": "teal"}}
        assert next_of("update")["payload"] == painted
        interrupt(script)
        assert next_of("announce")["payload"]["status"] == "offline"
        assert script.wait(PATIENCE) == 0


def test_the_program_that_follows(krait_site: Serve, certificate: Certificate, tmp_path: Path) -> None:
    site = krait_site(SITES / "director", **certificate.settings)
    context: ssl.SSLContext = certificate.context()
    body = json.dumps({"user": "ann", "password": "a garden of stones"}).encode()
    login = urllib.request.Request(f"{site.url}/login", body, method="POST")
    with urllib.request.urlopen(login, timeout=PATIENCE, context=context) as answer:
        token = json.load(answer)["token"]
    with program("follow.py", tmp_path, site.url, token, str(certificate.cert)) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "was 80\n"
        assert follower.stdout.readline() == "following\n"
        change({5: {"LIGHT_LEVEL": 30}})
        assert follower.stdout.readline() == "is 30\n"
