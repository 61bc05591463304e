"""How long something that is ready waits for the network loop: a timer that measures its own lateness.

The timer comes ten times a second. When it is late by more than its interval, the timers that would have come meanwhile
would have waited too; they are counted with what they would have waited, else a loop that stands still for a second
would show as one bad value among ten good ones. Owned by the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from krait_ws.observe.numbers import Buckets
from krait_ws.waiting import monotonic

INTERVAL = 0.1
"""Seconds between two measurements."""

_KEPT = 600  # measurements, a minute's, of which the percentiles are
_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds


class Timers(Protocol):
    """The network loop."""

    def call_later(self, seconds: float, function: Callable[[], Any]) -> Any: ...


class LoopDelay:
    """See the module; it begins at once."""

    def __init__(self, loop: Timers) -> None:
        self.buckets = Buckets(_BOUNDS)
        self._loop = loop
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._timer: Any = None
        self._start()

    def close(self) -> None:
        self._timer.cancel()

    def percentiles(self) -> dict[str, float]:
        """``p50``, ``p99`` and ``max`` of the last minute, in seconds; zeros before the first measurement."""
        delays = sorted(self._recent) or [0.0]
        last = len(delays) - 1
        return {"p50": delays[last // 2], "p99": delays[last - last // 100], "max": delays[last]}

    def note(self, late: float) -> None:
        """A measurement: the timer came ``late`` seconds late."""
        late = max(0.0, late)
        for _ in range(_KEPT):
            self.buckets.observe(late)
            self._recent.append(late)
            late -= INTERVAL
            if late < 0:
                return

    def _start(self) -> None:
        self._due = monotonic() + INTERVAL
        self._timer = self._loop.call_later(INTERVAL, self._measure)

    def _measure(self) -> None:
        self.note(monotonic() - self._due)
        self._start()
