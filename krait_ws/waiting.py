"""How a thread or a greenlet waits for another, and is woken by it.

Threads wait on a native lock, greenlets by switching to their hub. A waiter is woken at most once, from any thread.
The standard library may be patched by gevent; the locks here are the native ones in any case, because the network
loop, greenlets and OS threads meet in them. None of them is ever held while something waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from gevent._hub_local import get_hub_if_exists as get_hub_if_exists  # the function has no public home
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

new_lock = get_original("_thread", "allocate_lock")
new_reentrant_lock = get_original("_thread", "RLock")
monotonic = time.monotonic

# What gevent's own ``Hub.switch`` does, without its search for hooks that no greenlet here has.
_switch_to = greenlet.switch

_LONGEST = 1e8
"""Seconds, three years: the system's calls refuse much larger numbers."""


class Waiter(Protocol):
    """One wait of one thread or greenlet."""

    def wait(self, timeout: float | None) -> bool:
        """Waits at most ``timeout`` seconds, without end when ``None``. Returns whether it was woken."""

    def wake(self) -> None:
        """Ends the wait, or the coming wait. Thread: any. At most once.

        Called on the network loop, it runs a waiting greenlet at once: no lock may be held.
        """


def _bounded(timeout: float) -> float:
    return min(max(0.0, timeout), _LONGEST)


class _ThreadWaiter:
    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = new_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        return bool(self._lock.acquire(True, -1 if timeout is None else _bounded(timeout)))

    def wake(self) -> None:
        self._lock.release()


class _GreenletWaiter:
    __slots__ = ("_greenlet", "_hub", "_woken")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._greenlet: Any = None
        self._woken = False

    def wait(self, timeout: float | None) -> bool:
        # The greenlet is named before the flag is read: a wake from another thread after that finds it.
        self._greenlet = getcurrent()
        if self._woken:
            self._greenlet = None
            return True
        hub = self._hub
        timer = None
        if timeout is not None or not is_served(hub):
            timer = hub.loop.timer(_LONGEST if timeout is None else _bounded(timeout))
            timer.start(self._resume)
        try:
            _switch_to(hub)
        finally:
            self._greenlet = None
            if timer is not None:
                timer.close()
        return self._woken

    def wake(self) -> None:
        self._woken = True
        hub = self._hub
        if getcurrent() is hub:
            sleeper, self._greenlet = self._greenlet, None
            if sleeper is not None:
                sleeper.switch()  # on the loop itself: it runs now, until it waits again
        elif get_hub_if_exists() is hub:
            hub.loop.run_callback(self._resume)
        else:
            hub.loop.run_callback_threadsafe(self._resume)

    def _resume(self) -> None:
        sleeper, self._greenlet = self._greenlet, None
        if sleeper is not None:
            sleeper.switch()


def serve(hub: Any, *, is_served: bool) -> None:
    """Notes whether a network loop lives on ``hub``. Such a hub always has something to wait for; another one gives up
    when all its greenlets wait for other threads, and needs a timer to go on. There may be an old and a new one."""
    hub.krait_serves = getattr(hub, "krait_serves", 0) + (1 if is_served else -1)


def is_served(hub: Any) -> bool:
    """What ``serve`` noted."""
    return getattr(hub, "krait_serves", 0) > 0


def may_wait() -> bool:
    """Whether the caller may wait: everyone but the network loop itself."""
    hub = get_hub_if_exists()
    return hub is None or getcurrent() is not hub


class Waiters:
    """Those who wait for one condition, first come first woken. Guarded by the owner's lock.

    Waking takes two steps: they are taken out under the lock, and woken without it.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[Waiter] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def add_locked(self) -> Waiter:
        """Enters the caller; it must let go of the lock and call ``Waiter.wait``.

        Raises:
            RuntimeError: The caller is the network loop.
        """
        hub = get_hub_if_exists()
        if hub is not None and getcurrent() is hub:
            raise RuntimeError("this call would wait on the network loop and stall every connection; use timeout=0")
        waiter: Waiter = _ThreadWaiter() if hub is None else _GreenletWaiter(hub)
        if self._waiters:
            self._waiters.append(waiter)
        else:
            self._waiters = [waiter]
        return waiter

    def remove_locked(self, waiter: Waiter) -> bool:
        """Takes a waiter out; ``False`` when it has been woken already."""
        if self._waiters is None or waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        return True

    def move_all_locked(self, other: Waiters) -> None:
        """Those who wait here wait in ``other`` from now on."""
        if self._waiters:
            other._waiters = [*(other._waiters or ()), *self._waiters]
            self._waiters = None

    def take_locked(self, most: int) -> list[Waiter] | tuple[()]:
        """The next in line, up to ``most``, to be woken when the lock is let go."""
        waiters = self._waiters
        if not waiters:
            return ()
        if len(waiters) <= most:
            self._waiters = None
            return waiters
        self._waiters = waiters[most:]
        return waiters[:most]

    def take_all_locked(self) -> list[Waiter] | tuple[()]:
        """All of them, to be woken when the lock is let go."""
        if not self._waiters:
            return ()
        waiters, self._waiters = self._waiters, None
        return waiters


def wake_all(waiters: Iterable[Waiter]) -> None:
    """Wakes those that were taken out; no lock may be held."""
    for waiter in waiters:
        waiter.wake()


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
