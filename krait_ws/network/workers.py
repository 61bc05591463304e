"""The threads that run route scripts, which may block: never the network loop.

Comes in: functions. Goes out: their outcomes, on the loop; many of them are one wake-up of it.

What one turn of the loop brings is handed out together, and as long as something waits there is one worker on its way:
called, but yet to look, and it calls the next one when there is more than it can take. So nothing waits behind a script
that blocks while there are threads left, and yet short scripts are run by one thread in a row: each time the loop and a
thread take the interpreter from each other costs as much as a script.

Where the standard library is patched, its locks and queues do not work between threads: workers are greenlets there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import gevent

from krait_ws.errors import ScriptTimeoutError
from krait_ws.handlers import start_native_thread
from krait_ws.network.deadlines import Deadlines
from krait_ws.network.loop import Loop
from krait_ws.patching import is_patched
from krait_ws.waiting import Waiter, Waiters, new_lock, wake_all

Outcome: TypeAlias = tuple[Any, BaseException | None]
"""What a function returned, or raised."""

logger = logging.getLogger("krait_ws.server")


def value_of(outcome: Outcome) -> Any:
    """What was returned; raises what was raised."""
    value, error = outcome
    if error is not None:
        raise error
    return value


class _Task:
    __slots__ = ("done", "function", "late")

    def __init__(
        self,
        function: Callable[[], Any],
        done: Callable[[Outcome], None],
        late: Callable[[Outcome], None] | None,
    ) -> None:
        self.function = function
        self.done: Callable[[Outcome], None] | None = done
        self.late = late


class Workers:
    """See the module.

    Args:
        loop: Where outcomes go.
        most: Threads at most. They stay until ``close``.
        seconds: Time that a function has, unless it has as much as it likes.
    """

    def __init__(self, loop: Loop, most: int, seconds: float) -> None:
        self._loop = loop
        self._most = most
        self._seconds = seconds
        self._deadlines: Deadlines[_Task] = Deadlines(loop, seconds, self._expire)
        self._start_one: Callable[[Callable[[], None]], Any] = gevent.spawn if is_patched() else start_native_thread
        self._lock = new_lock()
        self._new: list[_Task] = []  # of this turn; owned by the loop
        self._tasks: deque[_Task] = deque()  # guarded by _lock, as is what follows
        self._idle = Waiters()
        self._is_one_called = False  # a worker that has not looked yet
        self._closed = False
        self.size = 0  # workers, busy and idle
        self._running = 0

    def start(self) -> None:
        """Starts the first worker: there is always one.

        Raises:
            RuntimeError: The system gives no thread.
        """
        with self._lock:
            self.size = 1
            self._is_one_called = True
            self._start_one(self._work)

    @property
    def is_busy(self) -> bool:
        """Whether a function waits or runs. Thread: any."""
        with self._lock:
            return bool(self._tasks) or self._running > 0

    def submit(
        self,
        function: Callable[[], Any],
        done: Callable[[Outcome], None],
        *,
        late: Callable[[Outcome], None] | None = None,
        is_limited: bool = True,
    ) -> None:
        """Runs ``function`` in a worker. Thread: the loop's; never waits.

        A thread cannot be ended: a function whose time is over goes on, and ``done`` gets a ``ScriptTimeoutError``.

        Args:
            done: Called on the loop with the outcome; once, but not after the loop's end.
            late: Called on the loop with an outcome that came after its time.
            is_limited: Whether the function has a limited time.
        """
        task = _Task(function, done, late)
        if not self._new:
            self._loop.call(self._hand_out)
        self._new.append(task)
        if is_limited:
            self._deadlines.add(task)

    def _hand_out(self) -> None:
        """At the end of a turn."""
        tasks, self._new = self._new, []
        with self._lock:
            self._tasks.extend(tasks)
            called = self._call_one_locked()
        wake_all(called)

    def close(self, timeout: float) -> None:
        """Ends the threads; those that a script still holds after ``timeout`` seconds go on alone. Waits, in a
        greenlet."""
        with self._lock:
            self._closed = True
            self._tasks.clear()
            idle = self._idle.take_all_locked()
        wake_all(idle)
        with gevent.Timeout(timeout, False):
            while self.size:
                gevent.sleep(0.001)

    def _call_one_locked(self) -> list[Waiter] | tuple[()]:
        """Sees to it that a worker is on its way, if there may be one more. Returns whom to wake without the lock."""
        if self._is_one_called or self._closed:
            return ()
        if self._idle:
            self._is_one_called = True
            return self._idle.take_locked(1)
        if self.size < self._most:
            self.size += 1
            try:
                self._start_one(self._work)
                self._is_one_called = True
            except RuntimeError:  # the system gives no more threads: those that are there will come to it
                self.size -= 1
        return ()

    def _work(self) -> None:
        """A worker's life."""
        is_called = True
        while True:
            waiter = task = None
            called: list[Waiter] | tuple[()] = ()
            with self._lock:
                if is_called:
                    self._is_one_called = is_called = False
                if self._tasks:
                    task = self._tasks.popleft()
                    self._running += 1
                    if self._tasks:
                        called = self._call_one_locked()
                elif self._closed:
                    self.size -= 1
                    return
                else:
                    waiter = self._idle.add_locked()
            wake_all(called)
            if waiter is not None:
                waiter.wait(None)
                is_called = True
            elif task is not None:
                self._run(task)

    def _run(self, task: _Task) -> None:
        try:
            outcome: Outcome = (task.function(), None)
        except BaseException as error:  # it is raised again on the loop
            outcome = (None, error)
        with self._lock:
            self._running -= 1
        self._loop.call(lambda: self._ended(task, outcome))

    def _ended(self, task: _Task, outcome: Outcome) -> None:
        self._deadlines.discard(task)
        if task.done is not None:
            task.done(outcome)
        elif task.late is not None:
            task.late(outcome)

    def _expire(self, task: _Task) -> None:
        logger.error("a route script did not answer within %g s; its client got 503", self._seconds)
        done, task.done = task.done, None
        assert done is not None
        done((None, ScriptTimeoutError("the route script did not answer in time")))
