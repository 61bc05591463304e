"""Pings that user code has asked for, and those who wait for their answers.

One ping is on its way at a time, and its pong answers all who asked before it was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krait_ws.waiting import Waiters, wake_all


class Pings:
    """Of one session. Thread: any.

    Args:
        lock: The session's; no caller may hold it.
    """

    __slots__ = ("_closed", "_lock", "_sent", "_waiting", "_wanted")

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._closed = False  # guarded by _lock, as is all below
        self._wanted = False
        self._waiting = Waiters()  # for a ping that has not been sent
        self._sent = Waiters()  # for the answer to one that has

    def ping(self, timeout: float | None, ask: Callable[[], None]) -> bool:
        """Wants a ping, calls ``ask`` to have it sent, and waits up to ``timeout`` seconds. Returns whether it was
        answered; with a ``timeout`` of 0 it does not wait."""
        with self._lock:
            if self._closed:
                return False
            waiter = None if timeout == 0 else self._waiting.add_locked()
            self._wanted = True
        ask()
        if waiter is None:
            return False
        answered = False
        try:
            answered = waiter.wait(timeout)
        finally:
            if not answered:
                with self._lock:
                    _ = self._waiting.remove_locked(waiter) or self._sent.remove_locked(waiter)
        return answered and not self._closed

    def take_wanted(self) -> bool:
        """Whether a ping is to be sent now."""
        with self._lock:
            wanted, self._wanted = self._wanted, False
            self._waiting.move_all_locked(self._sent)
        return wanted

    def answered(self) -> None:
        """The pong has come."""
        with self._lock:
            waiters = self._sent.take_all_locked()
        wake_all(waiters)

    def close(self) -> None:
        """Nothing is answered any more: wakes everyone."""
        with self._lock:
            self._closed = True
            waiters = [*self._waiting.take_all_locked(), *self._sent.take_all_locked()]
        wake_all(waiters)
