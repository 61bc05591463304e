"""Notices clients that are gone without a word: one timer for all connections.

A connection that was silent for ``interval`` is pinged (RFC 6455 section 5.5.2); one that stays silent for ``timeout``
after that is lost. A connection stands in the heap once, with the time at which to look at it next; bytes that arrive
only note their time, so that they cost nothing here. A peer that takes nothing of what is to be sent for ``timeout``
is lost too, though it speaks. Owned by the loop.
"""

from __future__ import annotations

import heapq
import itertools
import weakref
from typing import Protocol

from krait_ws.network.loop import Loop, Timer
from krait_ws.waiting import monotonic

_MOMENT = 0.1
"""Seconds that the loop has to read what is there."""


class Watched(Protocol):
    """A connection, as the keepalive sees it."""

    heard_at: float
    """When the last bytes came from the peer (``monotonic``)."""

    stuck_since: float | None
    """Since when the peer has taken nothing of what is to be sent; ``None`` when nothing waits."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def is_listening(self) -> bool:
        """Whether silence says something: not while its reading is paused, nor while it closes."""

    def is_draining(self) -> bool:
        """Whether the peer has taken something since the last call."""

    def has_unread(self) -> bool:
        """Whether bytes have come that are yet to be read."""

    def send_ping(self) -> None: ...

    def lose(self) -> None:
        """The peer does not answer."""


class Keepalive:
    """See the module.

    Args:
        loop: The network loop.
        interval: Seconds of silence before a ping; 0 pings nobody, and only those are lost that take nothing.
        timeout: Seconds of silence after it.
    """

    def __init__(self, loop: Loop, interval: float, timeout: float) -> None:
        self._loop = loop
        self._interval = interval or timeout
        self._pings = interval > 0
        self._timeout = timeout
        # When to look, a number that makes entries comparable, when it was pinged (0 for not), the connection: weakly,
        # so that one that has gone does not wait here for its turn to be forgotten.
        self._heap: list[tuple[float, int, float, weakref.ref[Watched]]] = []
        self._number = itertools.count()
        self._timer: Timer | None = None
        self._looks_at = 0.0  # which of them the timer is for

    def add(self, connection: Watched) -> None:
        """Watches a new connection until it is gone."""
        self._look_at(weakref.ref(connection), monotonic() + self._interval, pinged_at=0.0)
        if self._timer is None or self._looks_at > self._heap[0][0]:
            self._start_timer()

    def _look_at(self, connection: weakref.ref[Watched], due: float, *, pinged_at: float) -> None:
        heapq.heappush(self._heap, (due, next(self._number), pinged_at, connection))

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = self._heap[0][0]
        self._timer = self._loop.call_later(max(0.0, self._heap[0][0] - monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        while self._heap and self._heap[0][0] <= now:
            _, _, pinged_at, connection = heapq.heappop(self._heap)
            self._check(connection, now, pinged_at)
        if self._heap:
            self._start_timer()

    def _check(self, reference: weakref.ref[Watched], now: float, pinged_at: float) -> None:
        connection = reference()
        if connection is None or connection.is_gone:
            return
        stuck_since = connection.stuck_since
        if stuck_since is not None and stuck_since + self._timeout <= now and not connection.is_draining():
            connection.lose()
        elif stuck_since is not None or not self._pings or not connection.is_listening:
            # While something waits to be sent a ping would wait behind it; what the peer takes says enough.
            self._look_at(reference, now + self._interval, pinged_at=0.0)
        elif pinged_at and connection.heard_at < pinged_at:
            if pinged_at + self._timeout > now:
                self._look_at(reference, pinged_at + self._timeout, pinged_at=pinged_at)
            elif connection.has_unread():  # the loop, or the whole process, has stood still
                self._look_at(reference, now + _MOMENT, pinged_at=pinged_at)
            else:
                connection.lose()
        elif connection.heard_at + self._interval > now:
            self._look_at(reference, connection.heard_at + self._interval, pinged_at=0.0)
        else:
            connection.send_ping()
            self._look_at(reference, now + min(self._timeout, self._interval), pinged_at=now)
