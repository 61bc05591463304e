"""Callbacks by key: who listens to which item or topic of a stream.

Comes in: events, from ``EventStream.on_event(subscriptions)``. Goes out: for each item of a message, one event to each
callback of its key. Owns no thread; it runs in that of the stream.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Any, Final

from krait_ws.client.listeners import call_logged, log
from krait_ws.client.status import Event

EventCallback = Callable[[Event], object]


class _Everything:
    def __repr__(self) -> str:
        return "EVERYTHING"


EVERYTHING: Final = _Everything()
"""The key of callbacks that get every item, also one without a key. They come after those of the item's key."""


class Subscriptions:
    """Callbacks by key. It is a callback of a stream itself: ``stream.on_event(subscriptions)``.

    A message may be a list: then each entry is an item of its own. An item for which nobody listens is dropped. A
    callback gets an ``Event`` whose ``data`` is the item. One that raises is logged and the others are called.

    Args:
        key: Tells an item's key; ``None`` when it has none.
        decode: Makes an object of a message: JSON by default. A message that it raises for is logged and dropped.
        skip: Tells items that go to nobody, such as messages about the connection's own state. By default none: an item
            is never taken for something else because of a name in it.
    """

    def __init__(
        self,
        key: Callable[[Any], Hashable | None],
        *,
        decode: Callable[[Any], Any] = json.loads,
        skip: Callable[[Any], object] | None = None,
    ) -> None:
        self._key = key
        self._decode = decode
        self._skip = skip
        self._callbacks: Mapping[Hashable, tuple[EventCallback, ...]] = {}  # replaced as a whole, guarded by _lock
        self._lock = threading.Lock()

    @property
    def callbacks(self) -> Mapping[Hashable, tuple[EventCallback, ...]]:
        """Who listens to what now; later changes do not show in it. Thread: any."""
        return MappingProxyType(self._callbacks)

    def add(self, key: Hashable, callback: EventCallback) -> Callable[[], None]:
        """Listens to a key; again with the same callback it changes nothing. Returns what removes it. Thread: any."""
        with self._lock:
            those = self._callbacks.get(key, ())
            if callback not in those:
                self._callbacks = {**self._callbacks, key: (*those, callback)}
        return lambda: self.remove(key, callback)

    def remove(self, key: Hashable, callback: EventCallback | None = None) -> None:
        """Removes one callback of a key, or all of them; what is not there is no mistake. Thread: any."""
        with self._lock:
            left = () if callback is None else tuple(one for one in self._callbacks.get(key, ()) if one != callback)
            others = {other: those for other, those in self._callbacks.items() if other != key}
            self._callbacks = {**others, key: left} if left else others

    def __call__(self, event: Event) -> None:
        """Hands an event to those who listen. Called by: the stream's thread."""
        try:
            decoded = self._decode(event.data)
        except Exception:
            log.exception("a message of %d characters cannot be decoded", len(event.data))
            return
        for item in decoded if isinstance(decoded, list) else [decoded]:
            self._dispatch(item, event)

    def _dispatch(self, item: Any, event: Event) -> None:
        try:
            if self._skip is not None and self._skip(item):
                return
            key = self._key(item)
            callbacks = () if key is None else self._callbacks.get(key, ())
        except Exception:
            log.exception("the key of an item cannot be told")
            callbacks = ()
        one = dataclasses.replace(event, data=item)
        for callback in (*callbacks, *self._callbacks.get(EVERYTHING, ())):
            call_logged(callback, one)
