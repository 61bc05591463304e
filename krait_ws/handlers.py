"""Starts, watches and joins what runs user code: an OS thread or a greenlet of the network loop's hub.

Comes in: a body and the context to run it in. A handler signals ``done`` when its body has ended; nothing can end it
from outside, only ask it to.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from krait_ws.waiting import Signal, get_hub_if_exists

Body: TypeAlias = Callable[[], None]

_CALLERS = (threading.__file__, str(Path(__file__).parent))


class Handler(Protocol):
    """One running body. ``done`` is set when it has ended, in whatever way."""

    done: Signal

    def start(self) -> None:
        """Starts the body. Thread: any; once.

        Raises:
            RuntimeError: The system gives no more threads.
        """

    def is_current(self) -> bool:
        """Whether the caller runs in it."""

    def stack(self) -> str:
        """Where its body is now, as a traceback without its head line. For logs."""


class ThreadHandler:
    """A daemon thread: the process can exit though the body never ends."""

    __slots__ = ("_thread", "done")

    def __init__(self, body: Body, context: contextvars.Context, on_done: Body, name: str) -> None:
        self.done = Signal()
        done = self.done

        def run() -> None:
            try:
                context.run(body)
            finally:
                done.set()
                on_done()

        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def stack(self) -> str:
        return _format(sys._current_frames().get(self._thread.ident or 0))


class GreenletHandler:
    """A greenlet of ``hub``. It shares a thread with the network loop, so it must block in cooperative calls only."""

    __slots__ = ("_greenlet", "_hub", "_spawn", "done")

    def __init__(self, body: Body, context: contextvars.Context, on_done: Body, hub: Any) -> None:
        self.done = Signal()
        self._hub = hub
        self._greenlet: Any = None

        def run() -> None:
            try:
                body()
            finally:
                self.done.set()
                on_done()

        def spawn() -> None:
            # A greenlet belongs to the thread that makes it.
            self._greenlet = greenlet(run, parent=hub)
            self._greenlet.gr_context = context
            self._greenlet.switch()

        self._spawn = spawn

    def start(self) -> None:
        if get_hub_if_exists() is self._hub:
            self._hub.loop.run_callback(self._spawn)
        else:
            self._hub.loop.run_callback_threadsafe(self._spawn)

    def is_current(self) -> bool:
        return getcurrent() is self._greenlet

    def stack(self) -> str:
        return _format(None if self._greenlet is None else self._greenlet.gr_frame)


def new_handler(kind: str, body: Body, context: contextvars.Context, on_done: Body, name: str, hub: Any) -> Handler:
    """What will run ``body`` as ``runs_on`` says, to be started.

    Args:
        body: What to run. It catches its own exceptions.
        context: The context variables it sees.
        on_done: Called in the handler, after ``done`` is set.
        name: Of the thread.
        hub: The network loop's hub, or ``None`` for the caller's own.

    Thread: any.
    """
    if kind == "greenlet":
        return GreenletHandler(body, context, on_done, get_hub() if hub is None else hub)  # an unused hub is false
    return ThreadHandler(body, context, on_done, name)


def _format(frame: Any) -> str:
    """The stack without what called the user's code, which is the same for every handler."""
    if frame is None:
        return "  (not running)\n"
    stack = traceback.extract_stack(frame)
    users = (number for number, entry in enumerate(stack) if not entry.filename.startswith(_CALLERS))
    return "".join(traceback.format_list(stack[next(users, 0) :]))
