"""Callbacks of the user, added and removed from any thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger("krait_ws.client")

Callback = Callable[..., Any]


class Listeners:
    """Callbacks that are called one after the other, without a lock. One that raises is logged; the others are
    called."""

    def __init__(self) -> None:
        self._callbacks: tuple[Callback, ...] = ()  # replaced as a whole, guarded by _lock
        self._lock = threading.Lock()

    def add(self, callback: Callback) -> Callable[[], None]:
        """Adds a callback; again it changes nothing. Returns what removes it."""
        with self._lock:
            if callback not in self._callbacks:
                self._callbacks = (*self._callbacks, callback)
        return lambda: self.remove(callback)

    def remove(self, callback: Callback) -> None:
        """Removes a callback, if it is there."""
        with self._lock:
            self._callbacks = tuple(other for other in self._callbacks if other != callback)

    def all(self) -> tuple[Callback, ...]:
        """Those that are there now, in the order in which they were added."""
        return self._callbacks

    def call(self, *arguments: Any) -> None:
        """Calls those that are there now."""
        for callback in self._callbacks:
            call_logged(callback, *arguments)


def call_logged(callback: Callback, *arguments: Any) -> None:
    """Calls the user's code; what it raises is logged with its traceback, ``SystemExit`` too."""
    try:
        callback(*arguments)
    except BaseException:
        log.exception("the callback %r raised", callback)
