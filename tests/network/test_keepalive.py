"""The keepalive with a clock that a test turns and connections that do as they are told."""

from __future__ import annotations

import gc
import heapq
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.network import keepalive
from krait_ws.network.keepalive import Keepalive
from tests.helpers import own_thread
from tests.network.support import new_loop

INTERVAL, TIMEOUT = 20.0, 8.0


class FakeTimer:
    def __init__(self, due: float, function: Callable[[], Any]) -> None:
        self.due = due
        self.function: Callable[[], Any] | None = function

    def cancel(self) -> None:
        self.function = None


class FakeLoop:
    """Timers that run when the test turns the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._number = itertools.count()

    def call_later(self, seconds: float, function: Callable[[], Any]) -> FakeTimer:
        assert seconds >= 0
        timer = FakeTimer(self.now + seconds, function)
        heapq.heappush(self._timers, (timer.due, next(self._number), timer))
        return timer

    @property
    def timers(self) -> list[FakeTimer]:
        """Those that will run."""
        return [timer for _, _, timer in self._timers if timer.function is not None]

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            due, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if timer.function is not None:
                timer.function()
        self.now = until


class FakeConnection:
    def __init__(self, loop: FakeLoop) -> None:
        self._loop = loop
        self.heard_at = loop.now
        self.stuck_since: float | None = None
        self.drains = False
        self.is_gone = False
        self.is_listening = True
        self.unread = False
        self.pings: list[float] = []
        self.lost_at: float | None = None

    def is_draining(self) -> bool:
        return self.drains

    def has_unread(self) -> bool:
        return self.unread

    def send_ping(self) -> None:
        assert not self.is_gone
        self.pings.append(self._loop.now)

    def lose(self) -> None:
        assert not self.is_gone
        self.is_gone = True
        self.lost_at = self._loop.now

    def hear(self) -> None:
        self.heard_at = self._loop.now


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    loop = FakeLoop()
    monkeypatch.setattr(keepalive, "monotonic", lambda: loop.now)
    return loop


@pytest.fixture
def watch(loop: FakeLoop) -> Keepalive:
    return Keepalive(loop, INTERVAL, TIMEOUT)  # type: ignore[arg-type]


def test_a_ping_after_the_interval_of_silence(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(INTERVAL - 0.1)
    assert connection.pings == []
    loop.advance(0.2)
    assert connection.pings == [1000 + INTERVAL]
    assert connection.lost_at is None


def test_no_answer_within_the_timeout_is_a_loss(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(INTERVAL + TIMEOUT - 0.1)
    assert connection.lost_at is None
    loop.advance(0.2)
    assert connection.lost_at == 1000 + INTERVAL + TIMEOUT
    assert len(connection.pings) == 1
    assert not loop.timers, "nothing is left to look at"


def test_an_answer_that_the_loop_has_yet_to_read_is_waited_for(loop: FakeLoop, watch: Keepalive) -> None:
    """Failed: after the loop had stood still for longer than the timeout, hundreds were lost whose pongs were there."""
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(INTERVAL)
    connection.unread = True
    loop.advance(TIMEOUT + 0.05)
    assert connection.lost_at is None
    connection.unread = False
    connection.hear()
    loop.advance(INTERVAL - 0.1)
    assert (connection.lost_at, len(connection.pings)) == (None, 1)
    loop.advance(0.2)
    assert len(connection.pings) == 2
    loop.advance(TIMEOUT)
    assert connection.lost_at is not None


def test_a_peer_that_answers_is_pinged_again_and_never_lost(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    for _ in range(10):
        before = len(connection.pings)
        while len(connection.pings) == before:
            loop.advance(0.5)
        loop.advance(TIMEOUT / 2)
        connection.hear()
    assert connection.lost_at is None
    gaps = [later - earlier for earlier, later in itertools.pairwise(connection.pings)]
    assert gaps == [pytest.approx(INTERVAL + TIMEOUT / 2, abs=0.6)] * 9


def test_a_peer_that_speaks_is_not_pinged(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    for _ in range(20):
        loop.advance(INTERVAL * 0.9)
        connection.hear()
    assert connection.pings == []
    connection_heard = connection.heard_at
    loop.advance(INTERVAL + 0.1)
    assert connection.pings == [connection_heard + INTERVAL]


def test_any_bytes_after_the_ping_are_an_answer(loop: FakeLoop, watch: Keepalive) -> None:
    """A peer that ignores pings but speaks is alive."""
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(INTERVAL)
    assert connection.pings
    connection.hear()  # in the same moment as the ping
    loop.advance(TIMEOUT)
    assert connection.lost_at is None


def test_paused_reading_is_no_silence(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    connection.is_listening = False
    watch.add(connection)
    loop.advance(50 * INTERVAL)
    assert connection.pings == []
    assert connection.lost_at is None
    connection.is_listening = True
    loop.advance(INTERVAL)
    assert len(connection.pings) == 1, "watched again"
    loop.advance(TIMEOUT)
    assert connection.lost_at is not None


def test_reading_that_is_paused_after_the_ping_forgives_the_missing_answer(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(INTERVAL)
    assert connection.pings
    connection.is_listening = False
    loop.advance(10 * INTERVAL)
    assert connection.lost_at is None
    connection.is_listening = True
    connection.hear()
    loop.advance(INTERVAL - 1)
    assert connection.lost_at is None


@pytest.mark.parametrize("is_listening", [True, False], ids=["reading", "reading paused"])
def test_a_peer_that_takes_nothing_is_lost_though_it_speaks(
    loop: FakeLoop, watch: Keepalive, is_listening: bool
) -> None:
    connection = FakeConnection(loop)
    connection.is_listening = is_listening
    watch.add(connection)
    loop.advance(INTERVAL / 2)
    connection.stuck_since = loop.now
    stuck = loop.now
    while connection.lost_at is None:
        loop.advance(1)
        connection.hear()
        assert loop.now < stuck + TIMEOUT + 2 * INTERVAL
    assert connection.lost_at >= stuck + TIMEOUT


def test_a_peer_that_takes_little_by_little_is_not_lost(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    for _ in range(100):
        connection.stuck_since = loop.now
        loop.advance(TIMEOUT * 0.9)
        connection.hear()
    assert connection.lost_at is None
    connection.stuck_since = None
    loop.advance(INTERVAL - 1)
    assert connection.lost_at is None


def test_one_timer_for_all_connections(loop: FakeLoop, watch: Keepalive) -> None:
    connections = [FakeConnection(loop) for _ in range(1000)]
    for number, connection in enumerate(connections):
        watch.add(connection)
        if number % 100 == 0:
            loop.advance(0.01)
    assert len(loop.timers) == 1
    loop.advance(INTERVAL)
    assert all(len(connection.pings) == 1 for connection in connections)
    assert len(loop.timers) == 1
    loop.advance(TIMEOUT)
    assert all(connection.lost_at is not None for connection in connections)
    assert not loop.timers


def test_each_connection_has_its_own_time(loop: FakeLoop, watch: Keepalive) -> None:
    early = FakeConnection(loop)
    watch.add(early)
    loop.advance(5)
    late = FakeConnection(loop)
    watch.add(late)
    loop.advance(INTERVAL + TIMEOUT)
    assert early.lost_at == 1000 + INTERVAL + TIMEOUT
    assert late.pings == [1005 + INTERVAL]
    assert late.lost_at == 1005 + INTERVAL + TIMEOUT


def test_a_connection_that_is_gone_is_forgotten(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    connection.is_gone = True
    loop.advance(10 * INTERVAL)
    assert connection.pings == []
    assert connection.lost_at is None
    assert not loop.timers


def test_a_connection_is_not_kept_alive_by_its_keepalive(loop: FakeLoop, watch: Keepalive) -> None:
    connection = FakeConnection(loop)
    watch.add(connection)
    reference = weakref.ref(connection)
    del connection
    gc.collect()
    assert reference() is None
    loop.advance(10 * INTERVAL)
    assert not loop.timers


def test_an_interval_of_zero_pings_nobody(loop: FakeLoop) -> None:
    watch = Keepalive(loop, 0, TIMEOUT)  # type: ignore[arg-type]
    connection = FakeConnection(loop)
    watch.add(connection)
    loop.advance(1000 * TIMEOUT)
    assert connection.pings == []
    assert connection.lost_at is None


def test_a_connection_whose_ping_fails_is_not_looked_at_again(loop: FakeLoop, watch: Keepalive) -> None:
    """The socket may turn out to be dead when the ping is sent."""
    connection = FakeConnection(loop)
    connection.send_ping = connection.lose  # type: ignore[method-assign]
    other = FakeConnection(loop)
    watch.add(connection)
    watch.add(other)
    loop.advance(INTERVAL)
    assert connection.lost_at is not None
    assert other.pings
    loop.advance(TIMEOUT)
    assert other.lost_at is not None


@own_thread
def test_a_new_connection_does_not_start_the_timer_anew() -> None:
    """On the real loop, where a cancelled timer waits for its time."""
    with new_loop() as loop:
        watch = Keepalive(loop, INTERVAL, TIMEOUT)
        connections = [FakeConnection(FakeLoop()) for _ in range(100)]
        for connection in connections:
            watch.add(connection)
        assert len(loop._timers) == 1
