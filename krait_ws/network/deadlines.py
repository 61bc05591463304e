"""Time limits of one length for many: what began first is due first, so that one timer serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from krait_ws.network.loop import Loop, Timer
from krait_ws.waiting import monotonic

_T = TypeVar("_T")


class Deadlines(Generic[_T]):
    """See the module. Thread: the loop's.

    Args:
        loop: The network loop.
        seconds: The limit.
        expire: Is told each item whose time is over, once.
    """

    def __init__(self, loop: Loop, seconds: float, expire: Callable[[_T], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._expire = expire
        self._due: dict[_T, float] = {}  # in the order of time
        self._timer: Timer | None = None

    def add(self, item: _T) -> None:
        """The item's time begins; it has none yet."""
        self._due[item] = monotonic() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def discard(self, item: _T) -> None:
        """The item needs its time no longer."""
        self._due.pop(item, None)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        while self._due:
            item, due = next(iter(self._due.items()))
            if due > now:
                if self._timer is None:  # else what expired has let another one begin
                    self._timer = self._loop.call_later(due - now, self._look)
                return
            del self._due[item]
            self._expire(item)
