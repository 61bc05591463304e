"""The rule of a token bucket, and a session with a rate on a loop that the test turns by hand."""

from __future__ import annotations

from typing import Any

import pytest

from krait_ws import rate as module
from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.protocol.messages import Piece
from krait_ws.rate import LimitedSession, Rate
from krait_ws.session import Session
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import HandLoop, RecordingTransport, upgrade_request


class Queue(WebsocketsCtrlBase):
    """Neither handler nor hook: the test pops."""

    rate_limit = (3, 1.0)


class Strict(Queue):
    rate_policy = "close"


class OnLoop(WebsocketsCtrlBase):
    runs_on = "loop"
    rate_limit = (3, 1.0)

    def __init__(self) -> None:
        super().__init__(use_in_message_queue=False)
        self.taken: list[Any] = []

    def on_in_message(self, message: Any) -> None:
        self.taken.append(message)


class Transport(RecordingTransport):
    limit = 0

    def limit_turn(self, frames: int) -> None:
        self.limit = frames


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def connected(controller: WebsocketsCtrlBase) -> tuple[Any, Transport, HandLoop]:
    loop = HandLoop()
    session = controller._krait
    session.accept(loop, Config(), upgrade_request(), None, lambda _: None)
    transport = Transport(session)
    session.attach(transport)
    return session, transport, loop


def popped(controller: WebsocketsCtrlBase) -> list[Any]:
    messages = []
    while (message := controller.pop_in_message()) is not None:
        messages.append(message)
    return messages


def test_a_bucket() -> None:
    rate = Rate(5, 10)
    assert rate.available(0.0, 100.0) == 5
    full_at = rate.taken(0.0, 100.0, 5)
    assert full_at == 110.0
    assert rate.available(full_at, 100.0) == 0
    assert rate.wait(full_at, 100.0) == pytest.approx(2.0)
    assert rate.wait(full_at, 102.0) == 0.0
    assert [rate.available(full_at, 100.0 + seconds) for seconds in (1.9, 2.0, 3.9, 4.0, 9.9, 10.0, 99.0)] == [
        0, 1, 1, 2, 4, 5, 5,
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 7, 1000])
@pytest.mark.parametrize("seconds", [0.01, 1 / 3, 1.0, 3600.0])
def test_after_its_wait_there_is_a_token_whatever_the_rounding(count: int, seconds: float) -> None:
    rate = Rate(count, seconds)
    now = 12345.678
    full_at = rate.taken(0.0, now, count)
    for _ in range(500):
        assert rate.available(full_at, now) == 0
        now += rate.wait(full_at, now)
        assert rate.wait(full_at, now) == 0.0
        assert rate.available(full_at, now) == 1
        full_at = rate.taken(full_at, now, 1)


def test_a_class_without_a_rate_has_an_ordinary_session() -> None:
    assert type(WebsocketsCtrlBase()._krait) is Session
    assert type(Queue()._krait) is LimitedSession


@pytest.mark.parametrize(
    "limit", [5, (5,), (5, 0), (5, -1), (0, 1), (-1, 1), (1.5, 1), ("5", "1"), (5, 1, 1), (5, float("inf")), ()]
)
def test_a_rate_that_is_none(limit: Any) -> None:
    class Wrong(WebsocketsCtrlBase):
        rate_limit = limit

    with pytest.raises(ConfigError, match=r"Wrong: rate_limit = .* must be"):
        Wrong()


def test_a_policy_that_is_none() -> None:
    class Wrong(WebsocketsCtrlBase):
        rate_limit = (5, 1)
        rate_policy = "drop"

    with pytest.raises(ConfigError, match=r"rate_policy = 'drop' is none of wait, close"):
        Wrong()


def test_what_is_too_much_waits_for_its_time(clock: Clock) -> None:
    controller = Queue()
    session, transport, loop = connected(controller)
    assert transport.limit == 3
    assert session.receive(["1", "2"])
    assert transport.limit == 1
    assert session.receive(["3"])
    assert transport.limit == 1, "the next may come, to be held: a ping or a close before it is heard"
    assert not session.receive(["4", "5"])
    assert popped(controller) == ["1", "2", "3"]
    assert [seconds for seconds, _ in loop.timers] == [pytest.approx(1 / 3)]
    clock.now += 0.2
    loop.fire_timers()
    assert popped(controller) == [], "too early"
    assert [seconds for seconds, _ in loop.timers] == [pytest.approx(1 / 3 - 0.2)]
    clock.now += 0.14
    loop.fire_timers()
    assert popped(controller) == ["4"]
    assert transport.resumed == 0
    clock.now += 1 / 3
    loop.fire_timers()
    assert popped(controller) == ["5"]
    assert transport.resumed == 1
    assert loop.timers == []
    clock.now += 60
    assert session.receive(["6", "7", "8"])
    assert popped(controller) == ["6", "7", "8"]
    assert not session.receive(["9"])


def test_room_in_the_mailbox_is_no_token(clock: Clock) -> None:
    class Small(Queue):
        max_in_messages = 2

    controller = Small()
    session, transport, loop = connected(controller)
    assert not session.receive(["1", "2", "3", "4"])
    assert popped(controller) == ["1", "2", "3"]
    loop.run()
    assert transport.resumed == 0
    clock.now += 1
    loop.fire_timers()
    assert transport.resumed == 1
    assert popped(controller) == ["4"]


def test_a_full_mailbox_holds_up_whoever_keeps_to_the_rate(clock: Clock) -> None:
    class Small(Queue):
        max_in_messages = 2

    controller = Small()
    session, transport, loop = connected(controller)
    assert not session.receive(["1", "2"])
    assert loop.timers == []
    assert popped(controller) == ["1", "2"]
    loop.run()
    assert transport.resumed == 1


def test_a_strict_one_closes_at_the_first_that_is_too_much(clock: Clock) -> None:
    controller = Strict()
    session, transport, loop = connected(controller)
    assert session.receive(["1", "2", "3"])
    clock.now += 1 / 3
    assert session.receive(["4"])
    session.receive(["5", "6"])
    loop.run()
    assert transport.closed == [(1008, "too many messages in a short time")]
    assert popped(controller) == ["1", "2", "3", "4"], "what came before can be popped"
    assert loop.timers == []
    assert transport.limit == 256, "what still comes is read away"


def test_a_hook_on_the_loop(clock: Clock) -> None:
    controller = OnLoop()
    session, _transport, loop = connected(controller)
    assert not session.receive(["1", "2", "3", "4"])
    assert controller.taken == ["1", "2", "3"]
    clock.now += 1
    loop.fire_timers()
    assert controller.taken == ["1", "2", "3", "4"]


def test_a_message_in_pieces_counts_once(clock: Clock) -> None:
    class Streams(Queue):
        stream_messages = True

    session, transport, loop = connected(Streams())
    first, middle, last = Piece(b"a", True, False), Piece(b"b", False, False), Piece(b"c", False, True)
    whole = Piece(b"w", True, True)
    assert session.receive([first, middle, middle, last, whole])
    assert session.receive([first, *[middle] * 50])
    assert not session.receive([last, whole, first])
    assert len(session.arrivals) == 5 + 51 + 1
    clock.now += 1 / 3
    loop.fire_timers()
    assert len(session.arrivals) == 5 + 51 + 2
    assert transport.resumed == 0


def test_the_end_leaves_no_timer(clock: Clock) -> None:
    for gone in (True, False):
        controller = Queue()
        session, transport, loop = connected(controller)
        assert not session.receive(["1", "2", "3", "4"])
        if gone:
            session.transport_gone(1006)
        else:
            controller.close()
            loop.run()
            assert transport.limit == 256
            session.transport_gone(1000)
        assert loop.timers == []
        assert popped(controller) == ["1", "2", "3"]
        assert session.receive(["5"])
