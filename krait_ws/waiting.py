"""How a thread or a greenlet waits for another, and is woken by it.

Threads wait on a native lock, greenlets by switching to their hub. A waiter is woken at most once, from any thread.
The standard library may be patched by gevent; the locks here are the native ones in any case, because the network
loop, greenlets and OS threads meet in them. None of them is ever held while something waits.
"""

from __future__ import annotations

from typing import Any

from gevent.monkey import get_original

from krait_ws.core import Waiter as Waiter
from krait_ws.core import Waiters as Waiters
from krait_ws.core import wake_all as wake_all
from krait_ws.core.hubs import get_hub_if_exists as get_hub_if_exists
from krait_ws.core.hubs import getcurrent
from krait_ws.core.hubs import is_served as is_served
from krait_ws.core.hubs import monotonic as monotonic
from krait_ws.core.hubs import new_lock as new_lock
from krait_ws.core.hubs import serve as serve

new_reentrant_lock = get_original("_thread", "RLock")


def may_wait() -> bool:
    """Whether the caller may wait: everyone but the network loop itself."""
    hub = get_hub_if_exists()
    return hub is None or getcurrent() is not hub


class Signal:
    """A flag that is set once and wakes everyone who waits for it. Thread: any.

    Args:
        lock: Its owner's, to share it; no caller may hold it.
    """

    __slots__ = ("_lock", "_set", "_waiters")

    def __init__(self, lock: Any = None) -> None:
        self._lock = lock or new_lock()
        self._set = False  # guarded by _lock; read without it
        self._waiters = Waiters()  # guarded by _lock

    def is_set(self) -> bool:
        return self._set

    def set(self) -> bool:
        """Returns ``False`` when it was set before."""
        with self._lock:
            if self._set:
                return False
            self._set = True
            waiters = self._waiters.take_all_locked()
        wake_all(waiters)
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Waits at most ``timeout`` seconds, without end when ``None``. Returns whether the flag is set."""
        with self._lock:
            if self._set or timeout == 0:
                return self._set
            waiter = self._waiters.add_locked()
        try:
            waiter.wait(timeout)
        finally:
            with self._lock:
                self._waiters.remove_locked(waiter)
        return self._set
