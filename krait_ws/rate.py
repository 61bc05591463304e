"""How often something may happen, and the session whose client may send only so many messages in a time.

Comes in: messages from the connection, as for any session. Goes out: those that keep to the rate; the others wait, in
the socket but for the first, or end the connection. A class without ``rate_limit`` has an ordinary session and knows
nothing of this.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from krait_ws.errors import ConfigError
from krait_ws.overrides import Overrides
from krait_ws.protocol.frames import POLICY_VIOLATION
from krait_ws.protocol.messages import MAX_WORK_A_TURN, Item, Piece
from krait_ws.roles import Hooks, Transport
from krait_ws.session import Session
from krait_ws.waiting import monotonic

POLICIES = ("wait", "close")

_ROUNDING = 1e-6  # of a token: sums of times are not exact


class Rate:
    """So many tokens in a time, and as many at once: the rule of a token bucket.

    Of a bucket only one number is kept, by whoever uses the rule: when it will be full. A time that has passed means a
    full one. Thread: any.

    Args:
        count: Tokens that a full bucket holds; at least 1.
        seconds: In which an empty one becomes full.
    """

    __slots__ = ("_capacity", "_interval")

    def __init__(self, count: float, seconds: float) -> None:
        self._interval = seconds / count
        self._capacity = max(1.0, count) * self._interval

    def available(self, full_at: float, now: float) -> int:
        """How many tokens there are."""
        return int((self._capacity - max(0.0, full_at - now)) / self._interval + _ROUNDING)

    def taken(self, full_at: float, now: float, count: int) -> float:
        """When the bucket will be full, after ``count`` tokens have been taken."""
        return max(full_at, now) + count * self._interval

    def wait(self, full_at: float, now: float) -> float:
        """Seconds until there is a token; 0.0 when there is one."""
        wait = full_at - now + self._interval - self._capacity
        return wait if wait > self._interval * _ROUNDING else 0.0


class LimitedSession(Session):
    """A session whose client may send so many messages in a time, and as many at once.

    What is more waits where TCP makes the client wait: the socket is not read until the next message may pass. So
    that a client that keeps to the rate is never paused, and its pings and its close are heard, reading stops only when
    there is a message too many, which is held here. A stream counts as one message, when it begins.

    Raises:
        ConfigError: ``rate_limit`` or ``rate_policy`` of the class cannot be used.
    """

    __slots__ = ("_full_at", "_held", "_rate", "_timer")

    counts = True

    def __init__(self, controller: Hooks, overrides: Overrides, *, use_queue: bool) -> None:
        super().__init__(controller, overrides, use_queue=use_queue)
        self._rate = _rate_of(controller)
        self._full_at = 0.0  # owned by the loop, as are the next two
        self._held: list[Item] = []  # at most two: one that was complete at last, and one more
        self._timer: Any = None

    def attach(self, transport: Transport) -> None:
        super().attach(transport)
        assert self._runtime is not None
        if self.arrivals is not None:
            self.arrivals.on_room = partial(self._runtime.call, self._go_on)
        if self.close_code is None:
            transport.limit_turn(self._rate.available(self._full_at, monotonic()))

    def receive(self, messages: list[Item]) -> bool:
        if self._ended or self._runtime is None:  # without a loop, in a test of the controller alone, nothing can wait
            return super().receive(messages)
        now = monotonic()
        held = [*self._held, *messages]
        available = self._rate.available(self._full_at, now)
        passing, count = _split(held, available)
        self._full_at = self._rate.taken(self._full_at, now, count)
        self._held = held[passing:]
        may_go_on = super().receive(held[:passing])
        if not self._held:
            self._limit_turn(max(1, available - count))
            return may_go_on
        if self._is_strict:
            self._held.clear()
            self.end(POLICY_VIOLATION, "too many messages in a short time")
            return True
        if self._timer is None:
            self._timer = self._runtime.call_later(self._rate.wait(self._full_at, now), self._on_time)
        return False

    def transport_gone(self, code: int, reason: str = "") -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().transport_gone(code, reason)

    def _close_transport(self) -> None:
        self._limit_turn(MAX_WORK_A_TURN)  # what still comes is read away
        super()._close_transport()

    @property
    def _is_strict(self) -> bool:
        return getattr(self.controller, "rate_policy", POLICIES[0]) == "close"

    def _on_time(self) -> None:
        self._timer = None
        self._go_on()

    def _go_on(self) -> None:
        """There may be a token, or room for messages."""
        if self.receive([]) and self._transport is not None:
            self._transport.resume_reading()

    def _limit_turn(self, frames: int) -> None:
        """Each frame is a message at most, so this many are no more than may pass."""
        if self._transport is not None:
            self._transport.limit_turn(frames)


def _split(items: list[Item], available: int) -> tuple[int, int]:
    """How many items may pass, and how many tokens they take."""
    count = 0
    for number, item in enumerate(items):
        if isinstance(item, Piece) and not item.is_first:
            continue
        if count == available:
            return number, count
        count += 1
    return len(items), count


def _rate_of(controller: Any) -> Rate:
    name = type(controller).__qualname__
    policy = controller.rate_policy
    if policy not in POLICIES:
        raise ConfigError(f"{name}: rate_policy = {policy!r} is none of {', '.join(POLICIES)}")
    match controller.rate_limit:
        case (int(count), int() | float() as seconds) if count >= 1 and 0 < seconds < math.inf:
            return Rate(count, seconds)
    raise ConfigError(
        f"{name}: rate_limit = {controller.rate_limit!r} must be (messages, seconds), for example (20, 1.0)"
    )
