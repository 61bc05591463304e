"""The relay: who is there is told to newcomers, everything else goes to all others as it came."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import Client, Refused, SiteServer
from tests.integration.support import PATIENCE, RawClient, eventually

SITES = Path(__file__).parents[2] / "sites"
Serve = Callable[..., SiteServer]


@pytest.fixture(params=["a site of its own", "a part of sites"])
def relay(request: pytest.FixtureRequest, krait_site: Serve) -> Callable[..., Client]:
    """``relay(room)`` connects to the relay, wherever it is served."""
    alone = request.param == "a site of its own"
    site = krait_site(SITES / "relay" if alone else SITES)

    def connect(room: str = "") -> Client:
        return join(site, ("/" if alone else "/relay/") + (f"?room={room}" if room else ""))

    return connect


_numbers = itertools.count()


def join(site: SiteServer, path: str = "/") -> Client:
    """A client that hears what is said from now on: its handler, which comes in, runs a little later than the 101."""
    number = str(next(_numbers))
    client = site.connect(path, headers={"X-Number": number}, timeout=PATIENCE)
    eventually(lambda: number in members(), what="the client to come in")
    return client


def members() -> list[str | None]:
    """The X-Number headers of those that are in a room."""
    rooms = [room for room, _ in list(globals_of_the_relay()["rooms"]._rooms.values())]
    return [peer.request.headers.get("X-Number") for room in rooms for peer in room.group.members()]


def globals_of_the_relay() -> dict[str, Any]:
    (module,) = [module for name, module in list(sys.modules.items()) if name.endswith("._relay")]
    return vars(module)


def announcement(peer_id: str, role: str = "hero", status: str = "online", **changed: Any) -> str:
    payload = {"peerId": peer_id, "role": role, "status": status, "version": "0.0.6", "timestamp": 1, **changed}
    payload = {name: value for name, value in payload.items() if value is not None}
    return json.dumps({"id": 0, "module": "system", "type": "announce", "payload": payload})


def command(text: str) -> str:
    return json.dumps({"id": 0, "module": "console", "type": "update", "target": "c", "payload": {"text": text}})


def presence(client: Client) -> tuple[str, str]:
    """Peer id and status of the next message, which is an announcement."""
    message = json.loads(client.receive(PATIENCE))
    assert (message["id"], message["module"], message["type"]) == (0, "system", "announce")
    return message["payload"]["peerId"], message["payload"]["status"]


def expect_nobody_online(late: Client, other: Client) -> None:
    """Who says online now is told of nobody."""
    late.send(announcement("late", "sidekick"))
    other.expect(announcement("late", "sidekick"), PATIENCE)
    expect_nothing_before(late, other)


def expect_nothing_before(client: Client, other: Client) -> None:
    """What comes next to ``client`` is what ``other`` says now."""
    other.send(command("sentinel"))
    client.expect(command("sentinel"), PATIENCE)


def test_a_newcomer_learns_who_is_online_and_is_announced(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as script:
        panel.send(announcement("panel", "sidekick"))
        script.expect(announcement("panel", "sidekick"))
        with relay() as late:
            expect_nothing_before(late, script)  # it has not said who it is
            panel.expect(command("sentinel"), PATIENCE)
            late.send(announcement("late", "sidekick"))
            late.expect(announcement("panel", "sidekick"), PATIENCE)
            for client in (panel, script):
                client.expect(announcement("late", "sidekick"), PATIENCE)
            expect_nothing_before(late, script)


def test_who_says_online_again_is_told_again_who_is(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as script, relay() as late:
        panel.send(announcement("panel", "sidekick"))
        script.expect(announcement("panel", "sidekick"), PATIENCE)
        for version in ("1", "2"):
            script.send(announcement("script", version=version))
            script.expect(announcement("panel", "sidekick"), PATIENCE)
            panel.expect(announcement("script", version=version), PATIENCE)
        for expected in (announcement("panel", "sidekick"), *(announcement("script", version=v) for v in "12")):
            late.expect(expected, PATIENCE)
        late.send(announcement("late"))
        late.expect(announcement("panel", "sidekick"), PATIENCE)
        late.expect(announcement("script", version="2"), PATIENCE)
        expect_nothing_before(late, script)


def test_messages_go_to_all_others_as_they_came_and_in_order(relay: Callable[..., Client]) -> None:
    odd = '{ "type":"x",  "module" : "é\\ud83d\\ude00", "big": 12345678901234567890, "a":1, "a":2 }'
    with relay() as one, relay() as two, relay() as three:
        messages = [odd, *(command(str(number)) for number in range(2000))]
        for message in messages:
            one.send(message)
        for client in (two, three):
            assert [client.receive(PATIENCE) for _ in messages] == messages
        expect_nothing_before(one, two)


def test_component_stands_for_module(relay: Callable[..., Client]) -> None:
    with relay() as one, relay() as two:
        for message in ('{"component": "grid", "type": "click"}', announcement("a").replace("module", "component")):
            one.send(message)
            two.expect(message, PATIENCE)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "no JSON",
        "[]",
        "7",
        "null",
        "{}",
        '{"module": "grid"}',
        '{"type": "click"}',
        '{"module": 7, "type": "click"}',
        '{"module": "", "type": "click"}',
        '{"module": "grid", "type": "click", "x": NaN}',
        '{"module": "grid", "type": "click"',
        "[" * 100_000,
        '{"module":' * 10_000,
        b'{"module": "grid", "type": "click"}',
        '{"module": "system", "type": "announce"}',
        '{"module": "system", "type": "announce", "payload": []}',
        *(announcement("a", **{name: None}) for name in ("peerId", "role", "status", "version", "timestamp")),
        announcement(""),
        announcement("a", "king"),
        announcement("a", status="asleep"),
        announcement("a", peerId=7),
        announcement("a", timestamp="now"),
        announcement("a" * 5000),
    ],
    ids=lambda wrong: repr(wrong[:40]),
)
def test_a_wrong_message_is_dropped_and_the_connection_stays(krait_site: Serve, wrong: str | bytes) -> None:
    site = krait_site(SITES / "relay")
    with join(site) as one, join(site) as two:
        one.send(wrong)
        expect_nothing_before(two, one)
        with join(site) as late:
            expect_nobody_online(late, one)


def test_a_message_that_is_too_large_ends_its_own_connection_only(relay: Callable[..., Client]) -> None:
    with relay() as one, relay() as two, relay() as three:
        one.send(command("x" * (1 << 20)))
        one.expect_close(1009, PATIENCE)
        expect_nothing_before(two, three)


def test_rooms_hear_nothing_of_each_other(relay: Callable[..., Client]) -> None:
    with relay("a") as one, relay("b") as two, relay("a") as three, relay("b") as four:
        one.send(announcement("one"))
        one.send(command("for a"))
        three.expect(announcement("one"), PATIENCE)
        three.expect(command("for a"))
        expect_nothing_before(two, four)
        with relay("b") as late:
            expect_nobody_online(late, two)


def test_a_room_has_a_name_of_a_certain_size(krait_site: Serve) -> None:
    site = krait_site(SITES / "relay")
    site.connect(f"/?room={'r' * 64}").close()
    with pytest.raises(Refused) as refused:
        site.connect(f"/?room={'r' * 65}")
    assert refused.value.status == 400


@pytest.mark.parametrize("end", ["close", "reset", "half_close"])
def test_a_peer_that_is_lost_is_announced_offline_once(krait_site: Serve, end: str) -> None:
    site = krait_site(SITES / "relay")
    with join(site) as panel, join(site) as other:
        lost = RawClient(site.port, "/")
        lost.send_frame(1, announcement("script"))
        assert presence(panel) == ("script", "online")
        before = time.time() * 1000
        getattr(lost, end)()
        offline = json.loads(panel.receive(PATIENCE))
        lost.close()
        assert offline["payload"].pop("timestamp") >= int(before)
        expected = json.loads(announcement("script", status="offline"))
        del expected["payload"]["timestamp"]
        assert offline == expected
        assert presence(other) == ("script", "online")
        assert presence(other) == ("script", "offline")
        expect_nothing_before(panel, other)
        with join(site) as late:
            expect_nobody_online(late, other)


def test_a_peer_that_says_offline_stays_and_is_not_announced_again(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as other:
        script = relay()
        script.send(announcement("script"))
        script.send(announcement("script", status="offline"))
        assert [presence(panel), presence(panel)] == [("script", "online"), ("script", "offline")]
        expect_nothing_before(panel, script)  # the connection stays
        script.close()
        expect_nothing_before(panel, other)
        assert [presence(other), presence(other)] == [("script", "online"), ("script", "offline")]
        other.expect(command("sentinel"), PATIENCE)
        with relay() as late:
            expect_nobody_online(late, other)


def test_offline_goes_to_the_others_whether_or_not_it_was_online(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as script:
        script.send(announcement("script", status="offline"))
        assert presence(panel) == ("script", "offline")
        expect_nothing_before(panel, script)


def test_what_is_said_for_a_lost_peer_is_json_whatever_it_had_said(relay: Callable[..., Client]) -> None:
    with relay() as panel:
        script = relay()
        script.send(announcement("script").replace('"timestamp": 1', '"timestamp": 1, "more": 1e999'))
        assert presence(panel) == ("script", "online")
        script.close()
        assert "Infinity" not in (said := panel.receive(PATIENCE))
        assert json.loads(said)["payload"]["status"] == "offline"


def test_a_peer_that_comes_back_before_its_end_was_noticed_stays_online(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as other:
        old, new = relay(), relay()
        old.send(announcement("script"))
        assert presence(panel) == ("script", "online")
        new.send(announcement("script", version="1"))
        assert presence(panel) == ("script", "online")
        old.close()
        expect_nothing_before(panel, other)
        with relay() as late:
            late.send(announcement("late"))
            assert presence(late) == ("script", "online")
            assert presence(panel) == ("late", "online")
        assert presence(panel) == ("late", "offline")
        new.close()
        assert presence(panel) == ("script", "offline")


def test_one_connection_is_one_peer_at_a_time(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as script:
        for peer_id, status in [("a", "online"), ("b", "online"), ("a", "offline"), ("b", "online")]:
            script.send(announcement(peer_id, status=status))
        assert [presence(panel) for _ in range(3)] == [("a", "online"), ("a", "offline"), ("b", "online")]


def test_nobody_says_offline_for_another(relay: Callable[..., Client]) -> None:
    with relay() as panel, relay() as script, relay() as foe:
        script.send(announcement("script"))
        assert presence(panel) == ("script", "online")
        foe.send(announcement("script", status="offline"))
        expect_nothing_before(panel, foe)
        with relay() as late:
            late.send(announcement("late"))
            assert presence(late) == ("script", "online")


def test_a_panel_that_reads_slowly_gets_every_command(krait_site: Serve) -> None:
    """The script is held back: far more than the mailbox holds comes through, in order and without a loss."""
    site = krait_site(SITES / "relay")
    sent: list[int] = []
    filling = "x" * 2000

    def send() -> None:
        for number in range(20_000):
            script.send(command(f"{number} {filling}"))
            sent.append(number)

    headers = ("X-Number: raw",)
    with RawClient(site.port, "/", headers=headers, receive_buffer=1 << 14) as panel, join(site) as script:
        eventually(lambda: "raw" in members())
        sender = threading.Thread(target=send)
        sender.start()
        eventually(lambda: stands_still(lambda: len(sent)), what="the script to be held back")
        assert sender.is_alive()
        for number in range(20_000):
            assert panel.receive() == command(f"{number} {filling}")
        sender.join(PATIENCE)
        assert not sender.is_alive()


def stands_still(count: Callable[[], int]) -> bool:
    """Whether a count is above 0 and stays the same for a while. On a very slow machine it only seems to, and the test
    tries an easier case."""
    before = count()
    time.sleep(0.3)
    return before > 0 and count() == before


def test_a_panel_that_never_reads_is_closed_and_the_room_goes_on(
    krait_site: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = krait_site(SITES / "relay")
    text = command("x" * 100_000)
    with join(site) as script, join(site) as panel:
        expect_nothing_before(panel, script)
        monkeypatch.setitem(globals_of_the_relay(), "PATIENCE", 0.5)
        with RawClient(site.port, "/", headers=("X-Number: raw",), receive_buffer=1 << 14):
            eventually(lambda: "raw" in members())  # one that came in late might miss too much to be far behind
            started = time.monotonic()
            for _ in range(400):
                script.send(text)
                panel.expect(text, PATIENCE)
            assert time.monotonic() - started < PATIENCE  # the room was held up once, not for each message
            eventually(lambda: len(site.server.sessions) == 2, what="the end of the peer that does not read")


def test_a_room_and_the_relay_have_an_end(krait_site: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    site = krait_site(SITES / "relay")
    with join(site) as one:
        with join(site) as two:
            expect_nothing_before(two, one)
        monkeypatch.setitem(globals_of_the_relay(), "MAX_PEERS", 2)
        monkeypatch.setitem(globals_of_the_relay(), "MAX_ROOMS", 2)
        eventually(lambda: len(site.server.sessions) == 1)
        with join(site), join(site, "/?room=other"):
            eventually(lambda: len(globals_of_the_relay()["rooms"]._rooms) == 2)
            with site.connect("/") as full:
                assert full.expect_close(1013) == "the room is full"
            with site.connect("/?room=third") as full:
                full.expect_close(1013)
        eventually(
            lambda: len(globals_of_the_relay()["rooms"]._rooms) == 1, what="a room that nobody is in is forgotten"
        )


def test_the_panel_and_what_it_needs_are_served(krait_site: Serve) -> None:
    alone, part = krait_site(SITES / "relay"), krait_site(SITES)
    assert alone.get("/").body == part.get("/relay/").body == (SITES / "relay/_panel.html").read_bytes()
    for name in ("panel.js", "style.css", "demo.js", "favicon.svg"):
        assert alone.get(f"/{name}").status == 200
    for path in ("/setup.cfg", "/_panel.html", "/index.html", "/..%2findex.html", "/demo.js/"):
        assert alone.get(path).status == 404, path
