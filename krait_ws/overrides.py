"""Which hooks a controller class has of its own."""

from __future__ import annotations

import inspect
import weakref

_HOOKS = ("on_start", "on_thread_start", "on_in_message", "on_in_message_internal", "on_stop")


class Overrides:
    """Which hooks a controller class has of its own. Decided once for a class (``overrides_of``).

    Raises:
        TypeError: A hook is ``async`` or a generator.
    """

    __slots__ = ("delivers", "handles", "hook", "stops")

    def __init__(self, controller_class: type, base: type) -> None:
        def own(name: str) -> bool:
            return getattr(controller_class, name) is not getattr(base, name)

        for name in _HOOKS:
            hook = getattr(controller_class, name)
            if (
                inspect.iscoroutinefunction(hook)
                or inspect.isasyncgenfunction(hook)
                or inspect.isgeneratorfunction(hook)
            ):
                raise TypeError(f"{controller_class.__qualname__}.{name} must be a plain function: it may block")
        self.handles = own("on_thread_start")
        self.delivers = own("on_in_message") or own("on_in_message_internal")
        self.hook = "on_in_message_internal" if own("on_in_message_internal") else "on_in_message"
        self.stops = own("on_stop")


_overrides: weakref.WeakKeyDictionary[type, Overrides] = weakref.WeakKeyDictionary()


def overrides_of(controller_class: type, base: type) -> Overrides:
    """What a class overrides. Thread: any; at worst two threads find out the same."""
    found = _overrides.get(controller_class)
    if found is None:
        found = _overrides[controller_class] = Overrides(controller_class, base)
    return found
