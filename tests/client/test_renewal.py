"""Fresh credentials in time: a fresh connection takes over and no event is lost or comes twice."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.client import Backoff, Bearer, EventStream, Status, Transport
from tests.client.hub import Hub
from tests.client.proxy import Proxy
from tests.helpers import until


class Tokens:
    """Counts up: each is good as soon as it was given out, and the older ones as well until they are revoked."""

    def __init__(self, hub: Hub) -> None:
        self.given = 0
        self._hub = hub
        hub.token = "0"

    def __call__(self) -> str:
        self.given += 1
        self._hub.token = str(self.given)
        return str(self.given)


class Recorder:
    """What a stream delivered and how its status changed."""

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self.events: list[str] = []
        self.replayed: list[str] = []
        self.statuses: list[Status] = []
        stream.on_event(lambda event: (self.replayed if event.replayed else self.events).append(event.data))
        stream.on_status(self.statuses.append)


def renewing(hub: Hub, url: str = "", **options: Any) -> Recorder:
    # That an event comes once is said of connections that are at most sync_max apart, also on a busy machine.
    given = {"sync_quiet": 0.1, "sync_max": 3.5, "renew_every": 0.4, "backoff": Backoff((0.02,)), **options}
    auth = given.pop("auth", None) or Bearer(Tokens(hub))
    transport = Transport(url or hub.url, auth=auth, proxy=None, open_timeout=5, close_timeout=2)
    return Recorder(EventStream(transport, **given))


def publish(hub: Hub, count: int, rate: float, first: int = 0) -> None:
    """Numbered events at a rate; the last one is the state that newcomers get."""
    started = time.monotonic()
    for number in range(count):
        hub.publish(f"e{first + number}")
        hub.replay = ["another state", f"e{first + number}"]
        if (early := started + number / rate - time.monotonic()) > 0:
            time.sleep(early)


CALM = [Status.INITIALIZING, Status.SYNCING, Status.CONNECTED]


def all_come_once(hub: Hub, count: int, **options: float) -> None:
    """Numbered events, a thousand a second, on a stream that renews its token all the time."""
    hub.replay = ["a state", "another state"]
    recorder = renewing(hub, **options)
    with recorder.stream as stream:
        stream.wait_connected(10)
        publish(hub, count, 1000)
        until(lambda: len(recorder.events) >= count, "all events")
        until(lambda: len(hub.seen) >= 3, "there were renewals")
        assert recorder.statuses == CALM
        hub.wait_for(1)
    assert recorder.events == [f"e{number}" for number in range(count)]
    assert hub.seen == [f"Bearer {number + 1}" for number in range(len(hub.seen))]


def test_fifteen_thousand_events_at_a_thousand_a_second(hub: Hub, replay_of: Callable[[int], None]) -> None:
    replay_of(2)
    all_come_once(hub, 15_000, sync_quiet=0.8, renew_every=0.5)


def test_every_event_comes_once_from_any_server(any_hub: Hub, replay_of: Callable[[int], None]) -> None:
    replay_of(2)
    all_come_once(any_hub, 9_000, sync_quiet=0.8, renew_every=0.1)


def test_a_quiet_stream_is_renewed_too_and_its_replay_stays_unseen(
    any_hub: Hub, replay_of: Callable[[int], None]
) -> None:
    replay_of(1)
    any_hub.replay = ["a state"]
    recorder = renewing(any_hub)
    with recorder.stream as stream:
        stream.wait_connected(10)
        until(lambda: len(any_hub.seen) >= 3, "two renewals")
        any_hub.publish("live")
        until(lambda: recorder.events, "the event")
        assert stream.connected
    assert recorder.replayed == ["a state"]
    assert recorder.events == ["live"]
    assert recorder.statuses == [*CALM, Status.DISCONNECTED]


def test_an_identity_that_cannot_be_compared_is_logged(
    hub: Hub, caplog: pytest.LogCaptureFixture, replay_of: Callable[[int], None]
) -> None:
    """It would end the stream at its first renewal, perhaps after a day."""
    replay_of(2)
    hub.replay = ["a state", "another state"]
    recorder = renewing(hub, identity=lambda message: [message])
    with recorder.stream as stream:
        stream.wait_connected(10)
        publish(hub, 100, 100)
        until(lambda: len(recorder.events) >= 100, "all events")
        until(lambda: len(hub.seen) >= 2, "a renewal")
        assert recorder.statuses == CALM
    assert "the identity of an event cannot be told" in caplog.text
    caplog.clear()


def test_a_renewal_that_fails_leaves_the_old_connection(
    hub: Hub, faults: Proxy, caplog: pytest.LogCaptureFixture, replay_of: Callable[[int], None]
) -> None:
    replay_of(2)
    hub.replay = ["a state", "another state"]
    recorder = renewing(hub, faults.url("/events"))
    # In the stream's thread, for there it comes before the first renewal.
    recorder.stream.on_connect(lambda: faults.answer("503 Service Unavailable", times=2))
    with recorder.stream as stream, caplog.at_level(logging.WARNING, "krait_ws.client"):
        stream.wait_connected(10)
        publish(hub, 100, 100)
        until(lambda: len(recorder.events) >= 100, "all events")
        until(lambda: len(hub.seen) >= 2, "a renewal that succeeds")
        assert recorder.statuses == CALM
    assert sum("no fresh connection" in record.message for record in caplog.records) == 2


def test_a_refused_token_leaves_the_old_connection_until_one_is_good(hub: Hub) -> None:
    good = True

    def token() -> str:
        return "good" if good else "bad"

    def spoil() -> None:
        nonlocal good
        good = False

    hub.token = "good"
    recorder = renewing(hub, auth=Bearer(token))
    recorder.stream.on_connect(spoil)  # in the stream's thread, for there it comes before the first renewal
    with recorder.stream as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        until(lambda: hub.seen.count("Bearer bad") >= 3, "attempts")
        hub.publish("while refused")
        until(lambda: recorder.events == ["while refused"], "the event")
        good = True
        until(lambda: hub.seen.count("Bearer good") >= 2, "a renewal that succeeds")
        assert recorder.statuses == CALM


def test_a_server_that_ends_the_old_connection_when_a_new_one_comes(hub: Hub, replay_of: Callable[[int], None]) -> None:
    """The fresh one goes on at once, with its replay: no delay, and no rule for close codes."""
    replay_of(1)
    hub.only_one = True
    hub.replay = ["a state"]
    recorder = renewing(hub, renew_every=0.05, sync_quiet=0.05, sync_max=0.3, backoff=Backoff((60,)))
    with recorder.stream as stream:
        stream.wait_connected(10)
        for times in (4, 7, 10):  # ten at once may take a busy machine too long
            until(lambda times=times: recorder.statuses.count(Status.CONNECTED) >= times, f"{times} takeovers")
        # Again and again, for the one that hears it may be on its way out.
        until(
            lambda: hub.publish("live") or "live" in recorder.events + recorder.replayed,  # type: ignore[func-returns-value]
            "an event",
        )
    assert set(recorder.replayed) - {"live"} == {"a state"}


def test_the_old_connection_is_lost_while_the_fresh_one_is_being_opened(hub: Hub, faults: Proxy) -> None:
    recorder = renewing(hub, faults.url("/events"), sync_max=0.3)
    stall_no_more = recorder.stream.on_connect(faults.stall)  # in the stream's thread: before the first renewal
    with recorder.stream as stream:
        stream.wait_connected(10)
        hub.wait_joined()
        until(lambda: faults.accepted >= 2, "the fresh connection")
        hub.kick()
        stall_no_more()
        faults.resume()
        until(lambda: recorder.statuses.count(Status.CONNECTED) >= 2, "the fresh one")
        faults.stall()
        until(lambda: faults.accepted >= 3, "the next one")
        faults.cut()
        faults.resume()
        until(lambda: recorder.statuses.count(Status.CONNECTED) >= 3, "a new one, since both were lost")


def test_stopping_in_the_middle_of_a_takeover(hub: Hub) -> None:
    for moment in range(8):
        recorder = renewing(hub, renew_every=0.05, sync_max=0.3)
        with recorder.stream as stream:
            stream.wait_connected(10)
            threading.Event().wait(0.03 * moment)
        assert stream.status is Status.DISCONNECTED
    hub.wait_for(0)


def test_sending_goes_on_across_a_takeover(any_hub: Hub) -> None:
    recorder = renewing(any_hub, renew_every=0.1, sync_quiet=0.02, sync_max=0.05)
    with recorder.stream as stream:
        stream.wait_connected(10)
        sent = 0
        while sent < 600 or (len(any_hub.seen) <= 3 and sent < 20_000):
            stream.send(str(sent))
            sent += 1
            time.sleep(0.001)
        until(lambda: len(any_hub.received) == sent, f"{sent} messages")
        assert len(any_hub.seen) > 3
    assert sorted(map(int, any_hub.received)) == list(range(sent))
