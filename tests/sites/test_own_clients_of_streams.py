"""Our own client against the hub and the transcriber: the parts that docs/clients.md names, and its two programs."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from krait_ws.client import (
    AuthError,
    Basic,
    Bearer,
    Connection,
    ConnectionBusyError,
    ConnectionClosedError,
    Event,
    EventStream,
    Pool,
    PoolExhaustedError,
    Status,
    Subscriptions,
    Transport,
)
from krait_ws.testing import SiteServer
from tests.client.programs import interrupt
from tests.client.proxy import Proxy
from tests.integration.support import PATIENCE, eventually
from tests.sites.test_own_clients import SITES, SOON, program

Serve = Callable[..., SiteServer]
ADDRESSES = ["10 A1 01 1", "10 A1 02 1", "10 A1 03 1", "10 A1 04 1"]
LAMP, DIMMER = ADDRESSES[:2]
UP = [Status.INITIALIZING, Status.SYNCING, Status.CONNECTED]
AGAIN = [Status.LOST_CONNECTION, Status.RECONNECTING, Status.SYNCING, Status.CONNECTED]


def module(name: str) -> dict[str, Any]:
    """The variables of a module of the site that is being served."""
    (found,) = [module for key, module in list(sys.modules.items()) if key.endswith(f".{name}")]
    return vars(found)


# ---- the hub


@pytest.fixture
def hub(krait_site: Serve, own_port: int, replay_of: Callable[[int], None]) -> SiteServer:
    replay_of(len(ADDRESSES))
    return krait_site(SITES / "hub", port=own_port)


def item_of(message: str) -> dict[str, str]:
    event = ElementTree.fromstring(message)
    return {"number": event.get("seqnum", ""), **{child.tag: child.text or "" for child in event}}


def set_level(address: str, level: int) -> None:
    hub = module("_devices")["hub"]
    hub.set_level(hub.devices[address], level)


class Watcher:
    """What a program sees of the hub."""

    def __init__(self, port: int, auth: Any = None, **options: Any) -> None:
        transport = Transport(f"ws://127.0.0.1:{port}/rest/subscribe", auth=auth or Basic("demo", "demo"), proxy=None)
        self.stream = EventStream(transport, **{"backoff": SOON, "sync_quiet": 0.1, **options})
        self.statuses: list[Status] = []
        self.events: list[tuple[str, str, str, bool]] = []  # address, level, number, replayed
        self.items = Subscriptions(lambda item: item["node"], decode=item_of, skip=lambda item: item["control"] != "ST")
        self.stream.on_status(self.statuses.append)
        self.stream.on_event(self.items)
        for address in ADDRESSES:
            self.items.add(address, self.note)

    def note(self, event: Event) -> None:
        item = event.data
        self.events.append((item["node"], item["action"], item["number"], event.replayed))

    def __enter__(self) -> Watcher:
        self.stream.start()
        self.stream.wait_connected(PATIENCE)
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.stop()

    def failure(self) -> Any:
        """What it ends with."""
        self.stream.start()
        eventually(lambda: self.stream.status is Status.RECONNECT_FAILED)
        assert self.stream.stop(PATIENCE)  # its thread has ended, so it has told everything
        return self.stream.error


def test_the_replay_is_told_from_what_is_live(hub: SiteServer) -> None:
    with Watcher(hub.port) as watcher:
        eventually(lambda: watcher.statuses == UP)  # who waits for CONNECTED may be woken before it is told
        expected = [(address, "0", str(number), True) for number, address in enumerate(ADDRESSES, 1)]
        assert watcher.events == expected
        set_level(DIMMER, 128)
        eventually(lambda: len(watcher.events) == 5)
        assert watcher.events[4] == (DIMMER, "128", "5", False)
        assert watcher.stream.last_event_at is not None
    assert watcher.statuses == [*UP, Status.DISCONNECTED]
    eventually(lambda: not hub.server.sessions)


def test_wrong_credentials_end_it(hub: SiteServer) -> None:
    watcher = Watcher(hub.port, Basic("demo", "wrong"))
    assert isinstance(watcher.failure(), AuthError)
    assert watcher.statuses == [Status.INITIALIZING, Status.RECONNECT_FAILED]


def login(port: int) -> str:
    body = b'{"username": "demo", "password": "demo"}'
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/login", body, method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(json.load(answer)["data"]["accessToken"])


def test_a_401_makes_one_refresh_and_a_second_one_ends_it(hub: SiteServer) -> None:
    good = iter(["old", login(hub.port), "never asked for"])
    with Watcher(hub.port, Bearer(lambda: next(good))):
        assert next(good) == "never asked for"
    bad = iter(["old", "older", "never asked for"])
    assert isinstance(Watcher(hub.port, Bearer(lambda: next(bad))).failure(), AuthError)
    assert next(bad) == "never asked for"


def test_over_a_cut_a_503_and_a_refusal(hub: SiteServer) -> None:
    with Proxy(hub.port) as proxy, Watcher(proxy.port) as watcher:
        for trouble in (proxy.reset, proxy.cut):
            trouble()
            eventually(lambda: watcher.statuses[-4:] == AGAIN)
            del watcher.statuses[:]
        proxy.answer("503 Service Unavailable", times=2)
        set_level(LAMP, 5)
        proxy.cut()
        eventually(lambda: watcher.statuses[-4:] == AGAIN)
        assert watcher.events[-4:] == [(LAMP, "5", "5", True), *watcher.events[-3:]]
        assert proxy.accepted >= 6
        proxy.refuse()
        proxy.cut()
        eventually(lambda: Status.RECONNECTING in watcher.statuses[-2:])
        proxy.accept()
        eventually(lambda: watcher.stream.connected)


def test_over_a_restart_it_signs_in_again(krait_site: Serve, hub: SiteServer) -> None:
    with Watcher(hub.port, Bearer(lambda: login(hub.port))) as watcher:
        hub.close()
        eventually(lambda: Status.RECONNECTING in watcher.statuses)
        krait_site(SITES / "hub", port=hub.port)
        eventually(lambda: watcher.stream.connected)
        set_level(LAMP, 9)
        eventually(lambda: watcher.events[-1] == (LAMP, "9", "5", False))


def test_a_heartbeat_that_is_missed_is_a_loss(hub: SiteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.get("/rest/status")

    def keep_it(stale_after: float) -> bool:
        """Whether heartbeats alone keep the stream for longer than that, and no others do."""
        monkeypatch.setitem(module("_devices"), "HEARTBEAT", 0.1)
        with Watcher(hub.port, stale_after=stale_after, sync_max=0.5) as watcher:
            started = watcher.stream.last_event_at
            long = timedelta(seconds=1.5 * stale_after)
            eventually(lambda: watcher.stream.last_event_at - started > long or watcher.statuses[len(UP) :])
            if watcher.statuses != UP:
                return False
            monkeypatch.setitem(module("_devices"), "HEARTBEAT", 60.0)
            eventually(lambda: Status.LOST_CONNECTION in watcher.statuses)
        return True

    # Where the machine is so slow that no heartbeat comes in the first of these times, the test takes the next.
    assert any(map(keep_it, (1.0, 5.0)))


def test_a_token_is_renewed_without_a_gap(hub: SiteServer) -> None:
    """Connections take over from each other while the states change; every number comes once and in order."""
    tokens: list[str] = []

    def new_token() -> str:
        tokens.append(login(hub.port))
        return tokens[-1]

    # The states change whether or not they are heard yet, so that a connection is silent only where it is slow, and
    # sync_max is longer than a busy machine lets one connection be behind the other. In so long there are not more
    # changes than a mailbox of the hub holds. At the end the last of them is alone and may be as slow as it likes.
    with Watcher(hub.port, Bearer(new_token), renew_every=0.5, sync_quiet=0.3, sync_max=4.0) as watcher:
        number = 0
        connections: set[str] = set()
        while len(connections) < 3 or len(hub.server.sessions) > 1:
            for _ in range(10):
                number += 1
                set_level(ADDRESSES[number % 4], number % 256)
            time.sleep(0.05)
            connections |= {session.id for session in list(hub.server.sessions)}
        eventually(lambda: len(watcher.events) == 4 + number)
        assert [int(event[2]) for event in watcher.events] == list(range(1, number + 5))
        assert watcher.statuses == UP
        assert len(set(tokens)) == len(tokens) >= 3


# ---- the transcriber


@pytest.fixture
def transcriber(krait_site: Serve, own_port: int) -> SiteServer:
    return krait_site(SITES / "transcriber", port=own_port)


def transport_to(port: int, key: str = "demo-key") -> Transport:
    return Transport(f"ws://127.0.0.1:{port}/api-ws/v1/inference", auth=Bearer(key), proxy=None)


def ends_task(message: str | bytes) -> bool:
    return json.loads(message)["header"]["event"] in ("task-finished", "task-failed")


def run_task(task_id: str, model: str = "paraformer-realtime-v2") -> str:
    payload = {"model": model, "parameters": {"format": "pcm", "sample_rate": 16000}, "input": {}}
    return json.dumps({"header": {"task_id": task_id, "action": "run-task"}, "payload": payload})


def finish_task(task_id: str) -> str:
    return json.dumps({"header": {"task_id": task_id, "action": "finish-task"}, "payload": {"input": {}}})


def transcribe(connection: Connection, task_id: str, seconds: int = 1) -> str:
    """The last result of a task."""
    connection.send(run_task(task_id))
    for _ in range(seconds):
        connection.send(bytes(32_000))
    connection.send(finish_task(task_id))
    last = ""
    while True:
        message = json.loads(connection.recv(PATIENCE))
        header = message["header"]
        assert header["task_id"] == task_id, message
        if header["event"] == "task-finished":
            return last
        if header["event"] == "result-generated":
            last = message["payload"]["output"]["sentence"]["text"]


@pytest.fixture
def connection(transcriber: SiteServer) -> Iterator[Connection]:
    connection = Connection(transport_to(transcriber.port), drain_condition=ends_task, drain_timeout=PATIENCE)
    yield connection
    connection.close()


def test_one_connection_takes_one_task_after_the_other(transcriber: SiteServer, connection: Connection) -> None:
    for number in (1, 2, 3):
        with connection.session():
            assert transcribe(connection, f"t{number}", number).startswith(f"{number}.0 s of pcm")
            with pytest.raises(ConnectionBusyError):
                connection.acquire()
    assert len(transcriber.server.sessions) == 1
    assert connection.ping() < PATIENCE


def test_who_leaves_in_the_middle_of_the_answer_leaves_none_of_it(connection: Connection) -> None:
    with connection.session():
        connection.send(run_task("left"))
        for _ in range(10):
            connection.send(bytes(32_000))
        connection.send(finish_task("left"))
    with connection.session():
        assert transcribe(connection, "next").startswith("1.0 s")


def test_a_task_that_fails_leaves_the_connection(connection: Connection) -> None:
    with connection.session():
        connection.send(run_task("wrong", "whisper"))
        assert json.loads(connection.recv(PATIENCE))["header"]["error_code"] == "ModelNotFound"
        assert transcribe(connection, "right").startswith("1.0 s")


def test_a_wrong_key_is_an_auth_error(transcriber: SiteServer) -> None:
    connection = Connection(transport_to(transcriber.port, "wrong"))
    with pytest.raises(AuthError):
        connection.acquire()
    connection.close()


def test_idle_connections_are_closed_by_either_side(transcriber: SiteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Connection(transport_to(transcriber.port), idle_timeout=0.2)
    with idle.session():
        assert transcribe(idle, "t").startswith("1.0 s")
    eventually(lambda: not transcriber.server.sessions and not idle.is_connected)
    monkeypatch.setitem(module("_tasks"), "IDLE_TIMEOUT", 0.2)
    with idle.session(), pytest.raises(ConnectionClosedError) as closed:
        idle.recv(PATIENCE)
    assert (closed.value.code, closed.value.reason) == (1000, "nothing came for 0.2 s")
    monkeypatch.undo()
    with idle.session():
        assert transcribe(idle, "t").startswith("1.0 s")
    idle.close()


def test_a_connection_that_is_cut_costs_its_session_only(transcriber: SiteServer) -> None:
    with Proxy(transcriber.port) as proxy:
        connection = Connection(transport_to(proxy.port), drain_condition=ends_task)
        with connection.session():
            connection.send(run_task("t"))
            assert json.loads(connection.recv(PATIENCE))["header"]["event"] == "task-started"
            proxy.reset()
            with pytest.raises(ConnectionClosedError):
                connection.recv(PATIENCE)
        with connection.session():
            assert transcribe(connection, "t").startswith("1.0 s")
        connection.close()


def test_fifty_threads_share_ten_connections(transcriber: SiteServer) -> None:
    texts: list[str] = []
    with Pool(transport_to(transcriber.port), max_size=10, drain_condition=ends_task, drain_timeout=PATIENCE) as pool:

        def work(number: int) -> None:
            for turn in range(3):
                with pool.session(PATIENCE) as connection:
                    texts.append(transcribe(connection, f"{number}-{turn}", 2))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(texts) == 150
        assert {text.split(",")[0] for text in texts} == {"2.0 s of pcm"}
        assert len(transcriber.server.sessions) <= 10
        assert pool.stats().opened <= 10
    eventually(lambda: not transcriber.server.sessions)


def test_an_exhausted_pool_says_so_and_a_restart_costs_no_place(krait_site: Serve, transcriber: SiteServer) -> None:
    with Pool(transport_to(transcriber.port), max_size=2, drain_condition=ends_task, drain_timeout=PATIENCE) as pool:
        with pool.session(PATIENCE), pool.session(PATIENCE), pytest.raises(PoolExhaustedError):
            pool.acquire(0.05)
        transcriber.close()
        krait_site(SITES / "transcriber", port=transcriber.port)
        for _ in range(5):
            with pool.session(PATIENCE) as one, pool.session(PATIENCE) as two:
                assert transcribe(one, "a").startswith("1.0 s")
                assert transcribe(two, "b").startswith("1.0 s")


def test_with_compression(krait_site: Serve) -> None:
    site = krait_site(SITES / "transcriber", compress=True)
    connection = Connection(transport_to(site.port), drain_condition=ends_task)
    with connection.session():
        assert transcribe(connection, "t", 12).startswith("2.0 s")
    connection.close()


# ---- the programs of docs/clients.md


def test_the_program_that_watches_lamps(hub: SiteServer, tmp_path: Path) -> None:
    with program("lights.py", tmp_path, f"127.0.0.1:{hub.port}") as lights:
        assert lights.stdout is not None
        assert [lights.stdout.readline() for _ in range(2)] == ["was 0\n", "watching\n"]
        set_level(DIMMER, 77)
        assert lights.stdout.readline() == "is 77\n"
        interrupt(lights)
        assert lights.wait(PATIENCE) == 0


def test_the_program_that_transcribes(transcriber: SiteServer, tmp_path: Path) -> None:
    url = f"ws://127.0.0.1:{transcriber.port}/api-ws/v1/inference"
    sounds = [tmp_path / "one", tmp_path / "two"]
    for seconds, sound in enumerate(sounds, 1):
        sound.write_bytes(bytes(seconds * 32_000))
    with program("transcribe.py", tmp_path, url, *map(str, sounds)) as transcriber_program:
        output, _ = transcriber_program.communicate(timeout=PATIENCE)
    assert transcriber_program.returncode == 0
    assert sorted(output.splitlines()) == [
        "1.0 s of pcm, 32,000 bytes, at most 0 % loud",
        "2.0 s of pcm, 64,000 bytes, at most 0 % loud",
    ]
