"""The network loop: calls from other threads, timers, and ready sockets, all in callbacks of one gevent hub.

Comes in: ready sockets from the poller, calls from any thread. Goes out: calls of what they belong to, in the thread
of the hub. Nothing here may wait, and no exception of one call reaches another.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent.hub import get_hub

from krait_ws.core import LoopCore
from krait_ws.network.poller import Ready, new_poller
from krait_ws.waiting import get_hub_if_exists, monotonic, new_lock, serve

if TYPE_CHECKING:
    from krait_ws.session import Session

logger = logging.getLogger("krait_ws.network")

BUFFER_SIZE = 256 * 1024
"""Bytes of the receive buffer that all connections share: the most that one read takes."""

_TICK = 0.02
"""Seconds that a handler may be busy before the loop reads its socket again."""


class Timer:
    """A call to come. Owned by the loop."""

    __slots__ = ("due", "function")

    def __init__(self, due: float, function: Callable[[], Any]) -> None:
        self.due = due
        self.function: Callable[[], Any] | None = function

    def cancel(self) -> None:
        self.function = None

    def fire(self) -> None:
        """Called by: the loop, when it is due."""
        function, self.function = self.function, None
        if function is not None:
            function()


class Loop(LoopCore):
    """Belongs to the hub of the thread that makes it.

    Args:
        poller: Which poller to take, see ``new_poller``.
        linger: Microseconds to look on before a sleep, where that has paid lately.
    """

    def __init__(self, poller: str = "auto", linger: int = 0) -> None:
        super().__init__(BUFFER_SIZE)
        self.linger = linger
        self.hub: Any = get_hub()
        self._poller = new_poller(poller, self.hub, self)  # first: the system may have no descriptor for it
        serve(self.hub, is_served=True)
        self.buffer_view = memoryview(self.buffer)
        self.now = monotonic()  # when the sockets being served became ready; owned by the loop
        self.in_hook: Session | None = None  # whose hook runs at the moment; written by the loop
        self._lock = new_lock()
        self._calls: list[Callable[[], Any]] = []  # of other threads; guarded by _lock
        self._woken = False  # guarded by _lock: a run of the calls is on its way
        self._closed = False  # guarded by _lock
        self._soon: list[Callable[[], Any]] = []  # of the loop's own thread, which needs no lock; owned by the loop
        self._scheduled = False  # owned by the loop: a run of these is on its way
        self._timers: list[tuple[float, int, Timer]] = []  # a heap; owned by the loop
        self._timer_number = itertools.count()
        self._timer: Any = None  # of the hub, for the first of them
        # Unlike a callback, an async watcher can be triggered from any thread, and many triggers are one wake-up.
        self._async = self.hub.loop.async_()
        self._async.start(self._run_calls)
        self.watch = self._poller.watch
        self.forget = self._poller.forget

    def call(self, function: Callable[[], Any]) -> None:
        """Runs ``function`` on the loop soon, in the order of the calls from one thread. Thread: any; never waits.

        After ``close`` it does nothing.
        """
        if get_hub_if_exists() is self.hub:
            if self._closed:
                return
            self._soon.append(function)
            if not self._scheduled:
                self._schedule()
            return
        with self._lock:
            if self._closed:
                return
            self._calls.append(function)
            if not self._woken:
                self._woken = True
                # Under the lock, so that close() cannot take the watcher away between the decision and the wake-up.
                self._async.send()

    def call_later(self, seconds: float, function: Callable[[], Any]) -> Timer:
        """Runs ``function`` after ``seconds``. Thread: the loop's."""
        timer = Timer(monotonic() + seconds, function)
        heapq.heappush(self._timers, (timer.due, next(self._timer_number), timer))
        if self._timers[0][2] is timer:
            self._start_timer()
        return timer

    def close(self) -> None:
        """Lets go of the hub. Thread: the loop's."""
        with self._lock:
            self._closed = True
            self._calls.clear()
            self._soon.clear()
        serve(self.hub, is_served=False)
        self._async.stop()
        self._async.close()
        self._stop_timer()
        self._timers.clear()
        self._poller.close()

    def serve(self, owner: Ready, events: int) -> None:
        """Serves one ready socket, then what that set off. Called by: a poller that knows of one at a time."""
        self._scheduled = True  # calls made meanwhile are run below
        self.now = monotonic()
        try:
            owner.on_ready(events)
        except Exception:
            self._failed(owner)
        self._run_soon()

    def _failed(self, owner: Ready) -> None:
        """Called while an exception of it is handled."""
        logger.exception("a connection failed; it is an error of krait-ws")
        owner.abort()

    def _schedule(self) -> None:
        self._scheduled = True
        if not self._closed:
            self.hub.loop.run_callback(self._run_soon)

    def _run_soon(self) -> None:
        """Runs the loop's own calls, when all sockets of a turn have been read: peers wake to find their answers
        together. Those that come meanwhile have the next turn, after the sockets: gevent would run dozens of its
        callbacks, each called by the one before, until it looked at a socket again."""
        calls, self._soon = self._soon, []
        self._scheduled = True
        try:
            self.flush_dirty()
            self._run(calls)
        finally:  # also when Ctrl-C comes in the middle
            self._scheduled = self._has_more()
            if self._scheduled and not self._closed:
                self._async.send()

    def _has_more(self) -> bool:
        return bool(self._soon) or self.is_dirty

    def _start_ticking(self) -> None:
        """Called from a thread that a connection was lent to."""
        self.call_later(_TICK, self._tick)

    def _tick(self) -> None:
        if self.tick():
            self.call_later(_TICK, self._tick)

    def _run_calls(self) -> None:
        """Runs the calls of other threads; those that come meanwhile have the next turn, after the sockets."""
        with self._lock:
            calls, self._calls = self._calls, []
            self._woken = False
        self._run(calls)
        if self._has_more():
            self._run_soon()

    def _run(self, calls: list[Callable[[], Any]]) -> None:
        for function in calls:
            try:
                function()
            except Exception:
                logger.exception("a call on the network loop failed; it is an error of krait-ws")

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.hub.loop.timer(max(0.0, self._timers[0][0] - monotonic()))
        self._timer.start(self._run_timers)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _run_timers(self) -> None:
        now = monotonic()
        due: list[Callable[[], Any]] = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2].fire)
        # After the sockets that are ready: what a timer misses may be there, if the loop stood still.
        self.hub.loop.run_callback(self._run_due, due)
        self._stop_timer()
        if self._timers:
            self._start_timer()

    def _run_due(self, due: list[Callable[[], Any]]) -> None:
        if not self._closed:
            self._run(due)
