"""A script and its panel, over the relay of the demo sites."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from krait_ws.client import (
    Backoff,
    ConnectionClosedError,
    ConnectionUnavailableError,
    Event,
    EventStream,
    Peer,
    Peers,
    PeerTimeoutError,
    Transport,
)
from krait_ws.client import peers as peers_module
from krait_ws.testing import SiteServer
from tests.client.proxy import Proxy
from tests.client.servers import websockets_serve
from tests.client.test_stream import PATCH, process
from tests.helpers import Task, until
from tests.integration.support import native_threads, open_descriptors

SITE = Path(__file__).resolve().parents[2] / "sites" / "relay"


@pytest.fixture
def relay(leaves_nothing: None) -> Iterator[SiteServer]:
    with SiteServer(SITE) as site:
        yield site


@pytest.fixture
def way(relay: SiteServer) -> Iterator[Proxy]:
    with Proxy(relay.port) as between:
        yield between


def stream_to(port: int, **options: Any) -> EventStream:
    given = {"sync_quiet": 0.05, "backoff": Backoff((0.05,)), **options}
    return EventStream(Transport(f"ws://127.0.0.1:{port}/", proxy=None, close_timeout=2), **given)


def script(port: int, **options: Any) -> Peers:
    return Peers(stream_to(port, **options), peer_id="script")


def panel(port: int, peer_id: str = "panel") -> Peers:
    return Peers(stream_to(port), role="sidekick", awaited="hero", peer_id=peer_id)


def test_both_find_each_other_whoever_comes_first(relay: SiteServer) -> None:
    with script(relay.port) as one, panel(relay.port) as other:
        assert one.wait_ready(10) == other.me
        assert other.wait_ready(10) == one.me
        with panel(relay.port, "late") as late:
            assert late.wait_ready(10) == one.me
            until(lambda: set(one.online) == {"panel", "late"}, "both panels")
        until(lambda: set(one.online) == {"panel"}, "the end of one panel")
        with pytest.raises(TypeError):
            one.online["x"] = other.me  # type: ignore[index]


def test_commands_and_clicks(relay: SiteServer) -> None:
    seen: list[Any] = []
    clicks: list[tuple[str, Any]] = []
    with script(relay.port) as one, panel(relay.port) as other:
        other.on_any(lambda event: seen.append(event.data) if event.data["module"] != "system" else None)
        one.on_message("board", lambda event: clicks.append(("board", event.data["payload"])))
        one.on_message("other board", lambda event: clicks.append(("other", event.data["payload"])))
        one.wait_ready(10)
        other.wait_ready(10)
        one.send("grid", "spawn", target="board", payload={"numColumns": 8}, number=7)
        one.send("global", "clearAll")
        until(lambda: len(seen) == 2, "two commands")
        assert seen == [
            {"id": 7, "module": "grid", "type": "spawn", "target": "board", "payload": {"numColumns": 8}},
            {"id": 0, "module": "global", "type": "clearAll"},
        ]
        other.stream.send(
            json.dumps({"id": 0, "module": "grid", "type": "notify", "src": "board", "payload": {"x": 1}})
        )
        until(lambda: clicks, "a click")
        assert clicks == [("board", {"x": 1})]


def test_what_is_no_message_hurts_nothing(tmp_path: Path) -> None:
    announcement = {"id": 0, "module": "system", "type": "announce", "payload": {"peerId": "p", "status": "online"}}
    odd = ["", "{", "7", "[]", "{}", '{"src": 5}', '{"module": "system", "type": "announce"}']
    odd += ['{"module": "system", "type": "announce", "payload": {"peerId": []}}']

    def serve(connection: ServerConnection) -> None:
        connection.recv()
        for message in odd:
            connection.send(message)
        connection.send(json.dumps({**announcement, "payload": {**announcement["payload"], "role": "sidekick"}}))  # type: ignore[dict-item]
        for _ in connection:
            pass

    with websockets_serve(serve) as port, script(port) as one:
        assert one.wait_ready(10).peer_id == "p"


def test_presence_is_told_once(relay: SiteServer) -> None:
    seen: list[tuple[str, bool]] = []
    with script(relay.port) as one:
        one.on_presence(lambda peer, is_online: seen.append((peer.peer_id, is_online)))
        one.stream.wait_connected(10)
        with panel(relay.port):
            one.wait_ready(10)
        until(lambda: len(seen) == 2, "coming and going")
    assert seen == [("panel", True), ("panel", False)]


def test_nobody_comes(relay: SiteServer) -> None:
    with script(relay.port) as one:
        one.stream.wait_connected(10)
        with pytest.raises(PeerTimeoutError, match=r"no sidekick .* 0\.3 s .*nobody.* does it run"):
            one.wait_ready(0.3)


def test_the_relay_is_not_there(way: Proxy) -> None:
    way.refuse()
    with script(way.port) as one, pytest.raises(PeerTimeoutError, match="is it running there"):
        one.wait_ready(0.3)
    with script(way.port, backoff=Backoff(attempts=0)) as one, pytest.raises(ConnectionUnavailableError):
        one.wait_ready(10)


def test_a_loss_is_told_and_a_reconnect_announces_again(way: Proxy) -> None:
    lost: list[str] = []
    with script(way.port) as one, panel(way.port) as other:
        one.wait_ready(10)
        other.wait_ready(10)
        one.on_presence(lambda peer, is_online: None if is_online else lost.append(peer.peer_id))
        way.cut()
        until(lambda: lost, "the loss")  # it may be over before we look at the status
        assert one.wait_ready(10) == other.me
        assert other.wait_ready(10) == one.me


def test_a_loss_without_reconnecting_ends_run_forever(relay: SiteServer, way: Proxy) -> None:
    """sidekick's just returns, and the exception dies with a background thread."""
    with script(way.port, backoff=Backoff(attempts=0)) as one, panel(relay.port):
        one.wait_ready(10)
        running = Task(one.run_forever).until_blocked()
        way.cut()
        with pytest.raises(ConnectionClosedError):
            running.result()
        with pytest.raises(ConnectionUnavailableError, match="reconnect failed"):
            one.send("global", "clearAll")
        with pytest.raises(ConnectionClosedError):
            one.wait_ready(10)
        assert way.accepted == 1, "nothing opened a new connection"
        assert not one.online


def test_a_slow_handler_keeps_nobody_from_sending(relay: SiteServer) -> None:
    inside, go_on = threading.Event(), threading.Event()
    with script(relay.port) as one, panel(relay.port) as other:
        one.on_message("board", lambda event: inside.set() or go_on.wait(10))  # type: ignore[func-returns-value]
        one.wait_ready(10)
        other.wait_ready(10)  # it may have said online, and not be told yet that it is connected
        other.stream.send(json.dumps({"module": "grid", "type": "notify", "src": "board"}))
        assert inside.wait(10)
        started = time.monotonic()
        Task(lambda: one.send("global", "clearAll")).result()
        assert time.monotonic() - started < 9, "it did not wait for the callback"
        go_on.set()


def test_waiting_in_a_handler_is_refused(relay: SiteServer) -> None:
    told: list[str] = []
    one = script(relay.port)

    def wait(event: Event) -> None:
        try:
            one.wait_ready()
        except RuntimeError as error:
            told.append(str(error))

    one.on_any(wait)
    with one, panel(relay.port):
        until(lambda: told, "the refusal")


def test_shutdown_from_a_handler_says_offline(relay: SiteServer) -> None:
    with script(relay.port) as one, panel(relay.port) as other:
        offline: list[Any] = []

        def note(event: Event) -> None:
            if event.data["payload"]["status"] == "offline":
                offline.append(event.data["payload"])

        other.on_any(note)
        one.on_message("board", lambda event: one.shutdown())
        one.wait_ready(10)
        other.wait_ready(10)
        running = Task(one.run_forever)
        other.stream.send(json.dumps({"module": "grid", "type": "notify", "src": "board"}))
        running.result()
        until(lambda: offline, "going offline")
        assert not other.online
        assert [(payload["peerId"], payload["role"]) for payload in offline] == [("script", "hero")]


def test_offline_is_said_by_us_before_the_close(tmp_path: Path) -> None:
    heard: list[Any] = []

    def serve(connection: ServerConnection) -> None:
        heard.extend(json.loads(message)["payload"]["status"] for message in connection)

    with websockets_serve(serve) as port:
        with script(port) as one:
            one.stream.wait_connected(10)
        until(lambda: len(heard) == 2, "two announcements")
    assert heard == ["online", "offline"]


def test_shutdown_from_many_threads_at_once(relay: SiteServer) -> None:
    for _ in range(10):
        one = script(relay.port).start()
        one.stream.wait_connected(10)
        assert all(task.result() for task in [Task(one.shutdown) for _ in range(6)])


def test_after_the_shutdown_nobody_is_waited_for(relay: SiteServer) -> None:
    with script(relay.port) as one:
        one.stream.wait_connected(10)
    with pytest.raises(ConnectionUnavailableError, match="disconnected"):
        one.wait_ready(60)


def test_a_relay_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(peers_module, "MOST_PEERS", 3)

    def serve(connection: ServerConnection) -> None:
        connection.recv()
        for peer_id in "abcdeca":
            payload = {"peerId": peer_id, "role": "sidekick" if peer_id == "a" else "hero", "status": "online"}
            connection.send(json.dumps({"module": "system", "type": "announce", "payload": payload}))
        for _ in connection:
            pass

    heard: list[Any] = []
    with websockets_serve(serve) as port:
        one = script(port)
        one.on_any(heard.append)
        with one:
            until(lambda: len(heard) == 7, "all announcements")
            assert set(one.online) == {"a", "b", "c"}
    assert "more than 3 peers" in caplog.text


def test_what_json_cannot_hold_is_told(relay: SiteServer) -> None:
    with script(relay.port) as one:
        one.stream.wait_connected(10)
        with pytest.raises(ValueError):
            one.send("grid", "update", payload={"x": float("nan")})


def test_a_stream_that_renews_is_refused() -> None:
    with pytest.raises(ValueError, match="renew_every"):
        Peers(EventStream("ws://127.0.0.1:9/", renew_every=10))


def test_a_peer_has_an_id_of_its_own() -> None:
    ids = {Peers(EventStream("ws://127.0.0.1:9/")).me.peer_id for _ in range(3)}
    assert len(ids) == 3
    assert all(one.startswith("hero-") for one in ids)
    assert Peer("a", "hero", "1") == Peer("a", "hero", "1")


def test_a_thousand_starts_and_shutdowns_leave_nothing(relay: SiteServer) -> None:
    for number in range(1000):
        one = script(relay.port, sync_quiet=0).start()
        if number % 2:
            one.stream.wait_connected(10)
        assert one.shutdown()
        if number == 100:
            threads, descriptors = len(native_threads()), len(open_descriptors())
    until(lambda: len(native_threads()) <= threads + 2, "no more threads than after 100")
    until(lambda: len(open_descriptors()) <= descriptors + 2, "no more descriptors than after 100")


PROGRAM = """
{patch}
import sys
from krait_ws.client import EventStream, Peers

peers = Peers(EventStream(sys.argv[1]), peer_id="program")
peers.start()
peers.wait_ready(20)
peers.send("global", "clearAll")
{ending}
"""


@pytest.mark.parametrize("patch", ["", PATCH], ids=["plain", "gevent"])
@pytest.mark.parametrize("ending", ["", "1 / 0"], ids=["falls off", "raises"])
def test_a_program_that_ends_says_offline(relay: SiteServer, patch: str, ending: str) -> None:
    offline: list[Any] = []
    with panel(relay.port) as other:
        with script(relay.port) as one:
            one.wait_ready(10)  # the panel is in the room; else it might hear the program twice
            other.wait_ready(10)
        until(lambda: not other.online, "we are alone again")
        other.on_any(lambda event: offline.append(event.data))
        with process(PROGRAM.format(patch=patch, ending=ending), f"ws://127.0.0.1:{relay.port}/") as running:
            assert running.wait(30) == (1 if ending else 0)
            assert running.stderr is not None
            assert ("ZeroDivisionError" in running.stderr.read()) is bool(ending)
        until(lambda: offline and offline[-1].get("payload", {}).get("status") == "offline", "going offline")
    assert [message["type"] for message in offline] == ["announce", "clearAll", "announce"]
    assert "timestamp" in offline[-1]["payload"]
