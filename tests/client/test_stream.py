"""A stream that is kept open: its states, its callbacks, and every fault on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from krait_ws.client import (
    Backoff,
    ClientError,
    ConnectionClosedError,
    ConnectionUnavailableError,
    Event,
    EventStream,
    Link,
    PeerTimeoutError,
    Status,
    Transport,
)
from krait_ws.client import feed as feed_module
from tests.client.hub import Hub, krait_hub
from tests.client.proxy import Proxy
from tests.client.servers import websockets_serve
from tests.helpers import Task, until
from tests.integration.support import native_threads, open_descriptors
from tests.operations.conftest import make_certificate

FRESH = [Status.INITIALIZING, Status.SYNCING, Status.CONNECTED]
AGAIN = [Status.LOST_CONNECTION, Status.RECONNECTING, Status.SYNCING, Status.CONNECTED]


class Watched(EventStream):
    """A stream with short times that notes what happens."""

    def __init__(self, url: str, transport: dict[str, Any] | None = None, **options: Any) -> None:
        given = {"sync_quiet": 0.05, "backoff": Backoff((0.02,)), **options}
        super().__init__(Transport(url, **{"proxy": None, **(transport or {})}), **given)
        self.events: list[Event] = []
        self.statuses: list[Status] = []
        self.on_event(self.events.append)
        self.on_status(self.statuses.append)

    @property
    def messages(self) -> list[Any]:
        return [event.data for event in self.events]

    def wait_connected(self, timeout: float = 30.0) -> None:
        """Until the callbacks know it too: who waits wakes before they are called."""
        super().wait_connected(timeout)
        until(lambda: self.statuses[-1] is self.status, f"the callbacks; they heard {self.statuses}")

    def until(self, *statuses: Status) -> None:
        """For a status that lasts."""
        until(lambda: self.status in statuses, f"{statuses}, it is {self.status}")

    def until_lost(self) -> None:
        """It may be CONNECTED again before anybody looks at its status."""
        until(lambda: Status.LOST_CONNECTION in self.statuses, f"the loss; it was {self.statuses}")

    def came_back(self, times: int = 1) -> None:
        until(lambda: self.statuses.count(Status.CONNECTED) > times, f"CONNECTED again; it was {self.statuses}")


FAST_PINGS = {"ping_interval": 0.2, "ping_timeout": 0.2, "open_timeout": 1.0, "close_timeout": 0.5}


# ---- the way to CONNECTED


def test_replayed_states_are_told_from_live_events(any_hub: Hub, replay_of: Callable[[int], None]) -> None:
    replay_of(2)
    any_hub.replay = ["state 1", "state 2"]
    with Watched(any_hub.url, sync_quiet=0.3) as stream:
        stream.wait_connected(10)
        any_hub.publish("live")
        until(lambda: len(stream.events) == 3, "three events")
        assert [(event.data, event.replayed) for event in stream.events] == [
            ("state 1", True),
            ("state 2", True),
            ("live", False),
        ]
        assert stream.connected
    assert stream.statuses == [*FRESH, Status.DISCONNECTED]
    assert not stream.connected


def test_a_replay_that_is_never_quiet_ends_after_sync_max(hub: Hub, replay_of: Callable[[int], None]) -> None:
    replay_of(1)
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            hub.publish("busy")

    publisher = Task(publish)
    with Watched(hub.url, sync_quiet=5, sync_max=0.3) as stream:
        stream.wait_connected(10)
        until(lambda: stream.events and not stream.events[-1].replayed, "a live event")
        stop.set()
    publisher.result()
    assert stream.events[0].replayed


def test_a_slow_callback_does_not_make_live_events_of_replayed_ones(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(feed_module, "time", SimpleNamespace(monotonic=lambda: now))  # they arrive at one moment, and …
    hub.replay = ["state 1", "state 2", "state 3"]
    stream = Watched(hub.url, sync_quiet=0.2)

    def wait_for_all(status: Status) -> None:
        if status is Status.SYNCING:  # … are all there before the first one is taken
            until(lambda: len(stream._supervisor._inbox._items) == 3, "three states")  # type: ignore[union-attr]

    stream.on_status(wait_for_all)
    stream.on_event(lambda event: time.sleep(0.3))
    with stream:
        stream.wait_connected(10)
    assert [event.replayed for event in stream.events] == [True] * 3


def test_the_time_of_the_last_event_is_in_utc(hub: Hub) -> None:
    with Watched(hub.url) as stream:
        assert stream.last_event_at is None
        stream.wait_connected(10)
        hub.wait_joined()
        hub.publish("live")
        until(lambda: stream.events, "an event")
        assert stream.last_event_at == stream.events[0].received_at
        assert stream.last_event_at.tzinfo is timezone.utc
        assert datetime.now(timezone.utc) - stream.last_event_at < timedelta(seconds=10)


def test_text_binary_and_empty_messages_are_events(tmp_path: Any) -> None:
    """sidekick takes an empty text message for the end."""

    def serve(connection: ServerConnection) -> None:
        for message in ("", b"", "text", b"\x00\xff"):
            connection.send(message)
        connection.recv()

    with websockets_serve(serve) as port, Watched(f"ws://127.0.0.1:{port}/") as stream:
        until(lambda: len(stream.events) == 4, "four events")
        assert stream.messages == ["", b"", "text", b"\x00\xff"]


def test_starting_again_while_it_runs_changes_nothing(hub: Hub) -> None:
    with Watched(hub.url) as stream:
        stream.wait_connected(10)
        assert stream.start() is stream
        assert stream.statuses == FRESH
        hub.wait_for(1)


def test_stopped_it_can_be_started_again(any_hub: Hub) -> None:
    stream = Watched(any_hub.url)
    for _ in range(3):
        stream.start().wait_connected(10)
        assert stream.stop()
        assert stream.stop()
    assert stream.statuses == [*FRESH, Status.DISCONNECTED] * 3


def test_stopping_what_was_not_started_is_no_mistake() -> None:
    stream = EventStream("ws://127.0.0.1:9/")
    assert stream.stop()
    assert stream.status is Status.NOT_STARTED


@pytest.mark.parametrize(
    "options",
    [{"sync_quiet": -1}, {"sync_max": float("inf")}, {"stale_after": 0}, {"renew_every": -5}],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EventStream("ws://127.0.0.1:9/", **options)  # type: ignore[arg-type]


# ---- callbacks


def test_a_callback_that_raises_is_logged_and_hurts_nothing(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*arguments: Any) -> None:
        raise LookupError("mine")

    stream = Watched(hub.url)
    for add in (stream.on_event, stream.on_status, stream.on_connect, stream.on_disconnect, stream.on_close):
        add(broken)
    heard: list[Any] = []
    stream.on_event(heard.append)
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.publish("live")
        until(lambda: heard, "the event")
    assert stream.statuses == [*FRESH, Status.DISCONNECTED]
    logged = [record for record in caplog.records if record.exc_info and record.exc_info[0] is LookupError]
    assert len(logged) == 8  # an event, four statuses, connect, disconnect and close


def test_adding_returns_what_removes(hub: Hub) -> None:
    stream = Watched(hub.url)
    heard: list[Any] = []
    remove = stream.on_event(heard.append)
    stream.on_event(heard.append)
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.publish("one")
        until(lambda: len(stream.events) == 1, "the event")
        remove()
        remove()
        hub.publish("two")
        until(lambda: len(stream.events) == 2, "the event")
    assert [event.data for event in heard] == ["one"]


def test_callbacks_run_one_at_a_time_and_in_order(hub: Hub) -> None:
    """Those of pyControl4 overlap and end in another order when some of them are slow."""
    running = threading.Lock()
    overlaps, heard = [], []

    def slow(event: Event) -> None:
        if not running.acquire(blocking=False):
            overlaps.append(event)
            return
        time.sleep(0.05 if event.data == "0" else 0)
        heard.append(event.data)
        running.release()

    stream = Watched(hub.url)
    stream.on_event(slow)
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        for number in range(20):
            hub.publish(str(number))
        until(lambda: len(heard) == 20, "all events")
    assert heard == [str(number) for number in range(20)]
    assert not overlaps


def test_no_event_is_lost_behind_a_slow_callback(hub: Hub) -> None:
    """More messages than the inbox holds: the connection is not read meanwhile."""
    go_on = threading.Event()
    stream = Watched(hub.url)
    stream.on_event(lambda event: go_on.wait(10))
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        publisher = Task(lambda: [hub.publish(f"{number:06}" + "x" * 1000) for number in range(4000)])
        until(lambda: len(stream.events) == 1, "the first event")
        assert stream.connected
        go_on.set()
        publisher.result(30)
        until(lambda: len(stream.events) == 4000, "all events")
    assert [int(message[:6]) for message in stream.messages] == list(range(4000))


def test_a_slow_callback_keeps_nobody_from_sending(hub: Hub) -> None:
    """sidekick's callbacks run under the lock that sending needs."""
    go_on, inside = threading.Event(), threading.Event()
    stream = Watched(hub.url)
    stream.on_event(lambda event: inside.set() or go_on.wait(10))  # type: ignore[func-returns-value]
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.publish("slow")
        assert inside.wait(10)
        Task(lambda: stream.send("fast")).result(9)  # before the callback has had enough
        until(lambda: hub.received == ["fast"], "the message")
        go_on.set()


def test_a_callback_may_send_and_stop(any_hub: Hub) -> None:
    stream = Watched(any_hub.url)

    def answer(event: Event) -> None:
        stream.send("answer")
        assert not stream.stop()

    stream.on_event(answer)
    with stream:
        stream.wait_connected(10)
        any_hub.wait_joined()
        any_hub.publish("question")
        stream.until(Status.DISCONNECTED)
    until(lambda: any_hub.received == ["answer"], "the answer")


def test_a_callback_that_would_wait_for_itself_is_told(hub: Hub) -> None:
    stream = Watched(hub.url)
    told: list[Exception] = []

    def wait(status: Status) -> None:
        for method in (stream.wait_connected, stream.run_forever):
            try:
                method()
            except RuntimeError as error:
                told.append(error)

    stream.on_status(wait)
    with stream:
        stream.wait_connected(10)
    assert len(told) == 8


def test_starting_from_the_last_callback_is_refused(hub: Hub) -> None:
    stream = Watched(hub.url)
    told: list[Exception] = []

    def start(status: Status) -> None:
        if status is Status.DISCONNECTED:
            try:
                stream.start()
            except RuntimeError as error:
                told.append(error)

    stream.on_status(start)
    with stream:
        stream.wait_connected(10)
    assert len(told) == 1


def test_connect_and_disconnect_callbacks(hub: Hub) -> None:
    stream = Watched(hub.url)
    seen: list[str] = []
    stream.on_connect(lambda: seen.append("connect"))
    stream.on_disconnect(lambda: seen.append("disconnect"))
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.kick()
        stream.came_back()
    assert seen == ["connect", "disconnect"] * 2


def test_a_new_connection_is_greeted_before_its_messages_are_taken(any_hub: Hub) -> None:
    any_hub.replay = ["hello", "state"]
    stream = Watched(any_hub.url)

    def greet(link: Link) -> None:
        assert link.recv(10) == "hello"
        link.send("subscribe")

    stream.on_open(greet)
    with stream:
        stream.wait_connected(10)
        any_hub.kick()
        stream.came_back()
        until(lambda: len(stream.messages) == 2, "two states")
    until(lambda: any_hub.received == ["subscribe"] * 2, "two greetings")
    assert stream.messages == ["state"] * 2


def test_a_greeting_that_fails_fails_the_attempt(hub: Hub) -> None:
    stream = Watched(hub.url)
    tries: list[int] = []

    def greet(link: Link) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise LookupError("mine")

    stream.on_open(greet)
    with stream:
        stream.wait_connected(10)
        assert isinstance(stream.error, ConnectionUnavailableError)
        assert isinstance(stream.error.__cause__, LookupError)
    assert stream.statuses == [Status.INITIALIZING, Status.RECONNECTING, *FRESH[1:], Status.DISCONNECTED]


def test_a_greeting_that_exits_fails_the_attempt(hub: Hub) -> None:
    stream = Watched(hub.url)
    stream.on_open(lambda link: sys.exit(1) if len(hub.seen) < 3 else None)
    with stream:
        stream.wait_connected(10)
        assert isinstance(stream.error, ConnectionUnavailableError)
        assert isinstance(stream.error.__cause__, SystemExit)


def test_the_time_to_open_does_not_count_as_stable(hub: Hub) -> None:
    # A busy machine must not make it stable either: the kick has 3.5 s.
    stream = Watched(hub.url, backoff=Backoff((0.01, 60), stable_after=3.5))
    stream.on_open(lambda link: time.sleep(3.6 if len(hub.seen) == 2 else 0))
    with stream:
        for count in (1, 2):
            until(lambda count=count: stream.statuses.count(Status.SYNCING) == count, "a connection")
            hub.wait_joined(count)
            hub.kick()
            until(lambda count=count: stream.statuses.count(Status.RECONNECTING) == count, "its loss")
        time.sleep(0.3)
        assert len(hub.seen) == 2


def test_a_greeting_that_hangs_is_given_up(hub: Hub) -> None:
    stream = Watched(hub.url, {"open_timeout": 0.2})
    stream.on_open(lambda link: link.recv())
    with stream:
        # A busy machine may need longer to open one; then it is tried again.
        until(lambda: "not greeted after 0.4 s" in str(stream.error), f"giving up; it was {stream.error}")
        assert isinstance(stream.error, ConnectionUnavailableError)


def test_last_words(any_hub: Hub) -> None:
    stream = Watched(any_hub.url)
    stream.on_close(lambda link: link.send("goodbye"))
    with stream:
        stream.wait_connected(10)
    until(lambda: any_hub.received == ["goodbye"], "the last words")


# ---- faults


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_lost_connection_comes_back(hub: Hub, faults: Proxy, fault: str, replay_of: Callable[[int], None]) -> None:
    replay_of(1)
    hub.replay = ["state"]
    with Watched(faults.url("/events")) as stream:
        stream.wait_connected(10)
        getattr(faults, fault)()
        stream.came_back()
        assert stream.statuses == FRESH + AGAIN
        assert [event.replayed for event in stream.events] == [True, True]
        assert isinstance(stream.error, ConnectionClosedError)
        assert stream.error.code == 1006


def test_a_close_of_the_server_is_a_loss(any_hub: Hub) -> None:
    with Watched(any_hub.url) as stream:
        stream.wait_connected(10)
        any_hub.wait_joined()
        any_hub.kick(1001, "restart")
        stream.came_back()
        assert stream.statuses == FRESH + AGAIN
        assert isinstance(stream.error, ConnectionClosedError)
        assert (stream.error.code, stream.error.reason) == (1001, "restart")


@pytest.mark.parametrize("fault", ["stall", "half_open"])
def test_a_dead_link_is_noticed_by_its_pings(faults: Proxy, fault: str) -> None:
    """pyisyox never notices; pyControl4 after two intervals and 10 s. Ours after one interval and one time-out."""
    with Watched(faults.url("/events"), FAST_PINGS) as stream:
        stream.wait_connected(10)
        started = time.monotonic()
        getattr(faults, fault)()
        stream.until_lost()
        assert time.monotonic() - started < 9  # the usual pings take 40 s
        faults.cut()
        faults.resume()
        stream.came_back()


def test_a_missing_heartbeat_counts_as_lost(any_hub: Hub) -> None:
    """The link is fine and answers pings, but the server says nothing any more."""
    started = datetime.now(timezone.utc)
    with Watched(any_hub.url, stale_after=1.0) as stream:
        stream.wait_connected(10)
        any_hub.wait_joined()
        for _ in range(15):
            any_hub.publish("beat")
            time.sleep(0.1)
        statuses = list(stream.statuses)
        beats = [started, *(event.received_at for event in list(stream.events)), datetime.now(timezone.utc)]
        longest = max(later - earlier for earlier, later in pairwise(beats))
        assert statuses == FRESH or longest > timedelta(seconds=0.9), "the machine let the beats come in time"
        stream.until_lost()
        assert isinstance(stream.error, PeerTimeoutError)
        stream.came_back()


def test_one_byte_at_a_time(hub: Hub, faults: Proxy) -> None:
    hub.replay = ["state"]
    faults.slow(1)
    with Watched(faults.url("/events"), sync_quiet=0.5) as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        for number in range(20):
            hub.publish(f"event {number}")
        until(lambda: len(stream.events) == 21, "all events")
        assert stream.messages == ["state", *(f"event {number}" for number in range(20))]


def test_refused_until_the_server_is_there(hub: Hub, faults: Proxy) -> None:
    faults.refuse()
    with Watched(faults.url("/events")) as stream:
        stream.until(Status.RECONNECTING)
        assert isinstance(stream.error, ConnectionUnavailableError)
        faults.accept()
        stream.wait_connected(10)
    assert stream.statuses == [Status.INITIALIZING, Status.RECONNECTING, *FRESH[1:], Status.DISCONNECTED]


def test_503_and_then_fine(any_hub: Hub) -> None:
    any_hub.refusals = [503, 503, 500]
    with Watched(any_hub.url) as stream:
        stream.wait_connected(10)
        assert isinstance(stream.error, ConnectionUnavailableError)
        assert stream.error.status == 500
    assert len(any_hub.seen) == 4


def test_an_upgrade_that_is_not_answered_has_a_deadline(faults: Proxy) -> None:
    """That of pyisyox stays INITIALIZING for ever."""
    faults.stall()
    with Watched(faults.url("/events"), {"open_timeout": 0.3}) as stream:
        stream.until(Status.RECONNECTING)
        # The stream's own deadline is twice as long, and may be first on a busy machine; then it is tried again.
        until(lambda: "not open after 0.3 s" in str(stream.error), f"the deadline; it was {stream.error}")
        faults.cut()
        faults.resume()
        stream.wait_connected(10)


def test_delays_grow_until_a_connection_was_stable(hub: Hub) -> None:
    asked: list[int] = []

    class Asked(Backoff):
        def delay(self, failures: int, error: ClientError) -> float | None:
            asked.append(failures)
            return super().delay(failures, error)

    backoff = Asked((0.01,), stable_after=600)
    with Watched(hub.url, backoff=backoff) as stream:
        for times in range(3):
            stream.came_back(times)
            hub.wait_joined(times + 1)
            hub.kick()
        stream.came_back(3)
        hub.wait_joined(4)
        object.__setattr__(backoff, "stable_after", 0.3)  # now: before, a kick may have needed as long
        time.sleep(0.4)  # is what makes it stable
        hub.kick()
        stream.came_back(4)
    assert asked == [0, 1, 2, 0]


def test_over_tls_it_comes_back_and_goes_on_to_check_the_certificate(tmp_path: Path, leaves_nothing: None) -> None:
    """pyControl4 may never come back when the caller's session verifies certificates."""
    certificate = make_certificate(tmp_path, "first")
    other = make_certificate(tmp_path, "second")
    (tmp_path / "site").mkdir()
    with krait_hub(tmp_path / "site", **certificate.settings) as hub, Proxy(hub.port) as faults:
        url = faults.url("/events", "wss")
        with Watched(url, {"ssl": certificate.context()}) as stream:
            stream.wait_connected(10)
            faults.cut()
            stream.came_back()
        with Watched(url, {"ssl": certificate.context()}, renew_every=0.2, sync_max=1.0) as stream:
            until(lambda: len(hub.seen) >= 5, "two renewals")
            # Again and again, for the fresh connection may not have joined yet.
            until(lambda: hub.publish("live") or "live" in stream.messages, "the event")  # type: ignore[func-returns-value]
        wrong = {"ssl": other.context(), "headers": {"Authorization": "in the wrong hands"}}
        with Watched(url, wrong) as stream:
            stream.until(Status.RECONNECTING)
            assert "certificate verify failed" in str(stream.error)
        assert "in the wrong hands" not in hub.seen


# ---- giving up


def test_what_the_application_closes_with_ends_it(any_hub: Hub) -> None:
    with Watched(any_hub.url) as stream:
        stream.wait_connected(10)
        any_hub.wait_joined()
        any_hub.kick(4001, "your account is gone")
        with pytest.raises(ConnectionClosedError, match="your account is gone"):
            stream.run_forever()
        assert stream.status is Status.RECONNECT_FAILED
    assert stream.statuses == [*FRESH, Status.LOST_CONNECTION, Status.RECONNECT_FAILED]


def test_a_rule_of_the_user_may_go_on(hub: Hub) -> None:
    rule = Backoff((0.02,), retry=lambda error: isinstance(error, ConnectionClosedError) and error.code != 4002)
    with Watched(hub.url, backoff=rule) as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.kick(4001, "come back")
        stream.came_back()
        hub.wait_joined(2)
        hub.kick(4002, "do not")
        stream.until(Status.RECONNECT_FAILED)


def test_a_rule_that_raises_is_logged_and_the_usual_one_is_taken(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: ClientError) -> bool:
        raise LookupError("mine")

    with Watched(hub.url, backoff=Backoff((0.02,), retry=broken)) as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.kick()
        stream.came_back()
    assert "the rule for new attempts raised" in caplog.text


def test_attempts_that_are_used_up_end_it(hub: Hub, faults: Proxy) -> None:
    with Watched(faults.url("/events"), backoff=Backoff((0.01,), attempts=3)) as stream:
        stream.wait_connected(10)
        faults.refuse()
        faults.cut()
        with pytest.raises(ConnectionUnavailableError):
            stream.run_forever()
        assert stream.statuses.count(Status.RECONNECTING) == 1
        with pytest.raises(ConnectionUnavailableError):
            stream.wait_connected(10)
        faults.accept()
        stream.start().wait_connected(10)


def test_without_attempts_it_never_comes_back_and_sends_nothing(hub: Hub) -> None:
    """sidekick says so of itself, and then opens a new connection silently with the next command."""
    with Watched(hub.url, backoff=Backoff(attempts=0)) as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.kick()
        stream.until(Status.RECONNECT_FAILED)
        with pytest.raises(ConnectionUnavailableError, match="reconnect failed"):
            stream.send("anybody there?")
        with pytest.raises(ConnectionClosedError):
            stream.run_forever()
    assert len(hub.seen) == 1


def test_sending_without_a_connection_is_refused(hub: Hub) -> None:
    stream = Watched(hub.url)
    with pytest.raises(ConnectionUnavailableError, match="not started"):
        stream.send("too early")
    with stream:
        stream.wait_connected(10)
    with pytest.raises(ConnectionUnavailableError, match="disconnected"):
        stream.send("too late")


# ---- stopping


def test_stop_from_any_state_is_quick(hub: Hub, faults: Proxy) -> None:
    faults.stall()
    with Watched(faults.url("/events"), {"open_timeout": 60}) as dialling:
        until(lambda: faults.accepted == 1, "the connection")
        started = time.monotonic()
        assert dialling.stop()
    faults.cut()
    faults.resume()
    with Watched(faults.url("/events"), backoff=Backoff((60,))) as sleeping:
        sleeping.wait_connected(10)
        hub.wait_joined()
        hub.kick()
        sleeping.until(Status.RECONNECTING)
        assert sleeping.stop()
    with Watched(faults.url("/events"), sync_quiet=60, sync_max=60) as syncing:
        syncing.until(Status.SYNCING)
        assert syncing.stop()
    assert time.monotonic() - started < 30
    assert {stream.status for stream in (dialling, sleeping, syncing)} == {Status.DISCONNECTED}


def test_stop_has_a_deadline_when_the_server_does_not_answer(faults: Proxy) -> None:
    with Watched(faults.url("/events"), {"close_timeout": 0.5}) as stream:
        stream.wait_connected(10)
        faults.stall()
        started = time.monotonic()
        assert stream.stop(60)
        assert time.monotonic() - started < 9  # the package would take ten seconds
    faults.resume()


def test_stop_has_a_deadline_when_a_callback_does_not_return(hub: Hub) -> None:
    go_on = threading.Event()
    stream = Watched(hub.url)
    stream.on_event(lambda event: go_on.wait(30))
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.publish("stuck")
        until(lambda: stream.events, "the event")
        assert not stream.stop(0.2)
        go_on.set()
        assert stream.stop()


def test_many_may_stop_at_once(hub: Hub) -> None:
    for _ in range(20):
        stream = Watched(hub.url).start()
        tasks = [Task(stream.stop) for _ in range(8)]
        assert all(task.result() for task in tasks)


def test_run_forever_returns_when_another_thread_stops(hub: Hub) -> None:
    stream = Watched(hub.url)
    running = Task(stream.run_forever)
    stream.until(Status.CONNECTED)
    assert stream.stop()
    running.result()


def test_wait_connected_says_what_it_waits_for(faults: Proxy) -> None:
    faults.stall()
    with Watched(faults.url("/events")) as stream, pytest.raises(TimeoutError, match=r"after 0\.1 s: initializing"):
        stream.wait_connected(0.1)
    faults.cut()
    faults.resume()
    faults.refuse()
    with Watched(faults.url("/events")) as stream:
        until(lambda: stream.error, "the first refusal")
        with pytest.raises(TimeoutError, match=r"(?s)after 0 s: reconnecting .*refused"):
            stream.wait_connected(0)


def test_a_thousand_starts_and_stops_leave_nothing(hub: Hub) -> None:
    """Threads and descriptors are looked at by the fixture; no thread dies of an exception."""
    stream = Watched(hub.url, sync_quiet=0)
    for number in range(1000):
        stream.start()
        if number % 2:
            stream.wait_connected(10)
        assert stream.stop()
        if number == 100:
            threads, descriptors = len(native_threads()), len(open_descriptors())
    hub.wait_for(0)
    until(lambda: len(native_threads()) <= threads + 2, "no more threads than after 100")
    until(lambda: len(open_descriptors()) <= descriptors + 2, "no more descriptors than after 100")


# ---- processes


SCRIPT = """
{patch}
import logging, sys, threading
from krait_ws.client import Backoff, EventStream, Status

logging.getLogger("krait_ws.client").setLevel("ERROR")  # that a loss hit a renewal too is a warning
stream = EventStream(sys.argv[1], sync_quiet=0.1, backoff=Backoff((0.05,)), renew_every={renew_every})
heard = []
done = threading.Event()
stream.on_event(lambda event: (heard.append(event.data), stream.send("heard " + event.data)))
stream.on_event(lambda event: event.data == "end" and done.set())
stream.on_close(lambda link: link.send("goodbye"))
stream.start()
stream.wait_connected(10)
stream.send("ready")
assert done.wait(20)
{ending}
"""
PATCH = "from gevent import monkey; monkey.patch_all()"


@pytest.mark.parametrize("patch", ["", PATCH], ids=["plain", "gevent"])
@pytest.mark.parametrize("ending", ["", "stream.stop()", "raise SystemExit(0)"], ids=["falls off", "stops", "exits"])
def test_a_process_says_goodbye_at_its_end(hub: Hub, patch: str, ending: str) -> None:
    """A stream that runs when the interpreter exits is stopped, and keeps nobody from exiting."""
    with process(SCRIPT.format(patch=patch, ending=ending, renew_every=0.5), hub.url) as running:
        until(lambda: "ready" in hub.received, "the stream")
        hub.wait_joined(len(hub.seen))  # of a renewal too, if there was one
        hub.publish("first")
        until(lambda: "heard first" in hub.received, "the event")
        hub.kick()
        until(lambda: hub.count == 0 or len(hub.seen) > 1, "the loss")
        until(lambda: len(hub.seen) >= 3, "a renewal")
        until(lambda: hub.publish("end") or "heard end" in hub.received, "the end")  # type: ignore[func-returns-value]
        assert running.wait(20) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""
    until(lambda: "goodbye" in hub.received, "the last words")  # what an older connection brought may be told later
    hub.wait_for(0)


MANY = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from krait_ws.client import EventStream, Transport

transport = Transport(sys.argv[1], proxy=None, close_timeout=1.5)
streams = [EventStream(transport, sync_quiet=0.1).start() for _ in range(10)]
for stream in streams:
    stream.wait_connected(20)
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
"""


def test_many_streams_keep_a_program_no_longer_from_ending_than_one(faults: Proxy) -> None:
    with process(MANY, faults.url("/events")) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        faults.stall()
        began = time.monotonic()
        running.send_signal(signal.SIGUSR1)
        assert running.wait(30) == 0
        assert time.monotonic() - began < 10
    faults.cut()
    faults.resume()


@pytest.mark.parametrize("patch", ["", PATCH], ids=["plain", "gevent"])
def test_ctrl_c_ends_run_forever(hub: Hub, patch: str) -> None:
    waits = (
        "wait = stream._changed.wait_for\nstream._changed.wait_for = lambda *a: (print('waits', flush=True), wait(*a))"
    )
    ending = f"{waits}\nstream.run_forever(); print(stream.status.name)"
    # No renewals: with gevent Ctrl-C comes to whichever greenlet runs, and a renewal would take it for its failure.
    with process(SCRIPT.format(patch=patch, ending=ending, renew_every=None), hub.url) as running:
        until(lambda: "ready" in hub.received, "the stream")
        hub.publish("end")
        until(lambda: "heard end" in hub.received, "the end")
        assert running.stdout is not None
        assert running.stdout.readline() == "waits\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert running.stdout.read().split() == ["DISCONNECTED"]


class process:  # noqa: N801
    """A Python program in a process of its own, which is killed in the end."""

    def __init__(self, program: str, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> subprocess.Popen[str]:
        return self._popen.__enter__()

    def __exit__(self, *error: Any) -> None:
        with suppress(OSError):
            self._popen.kill()
        self._popen.__exit__(*error)
