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
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

from krait_ws.waiting import Signal, get_hub_if_exists

Body: TypeAlias = Callable[[], None]

_start_new_thread = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")

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
    """A native thread, without the object that ``threading`` keeps for one: it takes 6 KB. The process can exit though
    the body never ends."""

    __slots__ = ("_body", "_context", "_ident", "_on_done", "done")

    def __init__(self, body: Body, context: contextvars.Context, on_done: Body) -> None:
        self.done = Signal()
        self._body = body
        self._context = context
        self._on_done = on_done
        self._ident = 0

    def start(self) -> None:
        _start_new_thread(self._context.run, (self._run,))

    def is_current(self) -> bool:
        # The system gives the number of a thread that has ended to the next one.
        return bool(self._ident == _get_ident()) and not self.done.is_set()

    def stack(self) -> str:
        return _format(sys._current_frames().get(self._ident))

    def _run(self) -> None:
        self._ident = _get_ident()
        _enter_thread()
        try:
            self._body()
        finally:
            _leave_thread()
            self.done.set()
            self._on_done()


class GreenletHandler:
    """A greenlet of ``hub``. It shares a thread with the network loop, so it must block in cooperative calls only."""

    __slots__ = ("_body", "_context", "_greenlet", "_hub", "_on_done", "done")

    def __init__(self, body: Body, context: contextvars.Context, on_done: Body, hub: Any) -> None:
        self.done = Signal()
        self._body = body
        self._context: contextvars.Context | None = context
        self._on_done = on_done
        self._hub = hub
        self._greenlet: Any = None

    def start(self) -> None:
        if get_hub_if_exists() is self._hub:
            self._hub.loop.run_callback(self._spawn)
        else:
            self._hub.loop.run_callback_threadsafe(self._spawn)

    def _spawn(self) -> None:
        """A greenlet belongs to the thread that makes it."""
        self._greenlet = greenlet(self._run, parent=self._hub)
        self._greenlet.gr_context, self._context = self._context, None
        self._greenlet.switch()

    def _run(self) -> None:
        try:
            self._body()
        finally:
            self.done.set()
            self._on_done()

    def is_current(self) -> bool:
        return getcurrent() is self._greenlet

    def stack(self) -> str:
        return _format(None if self._greenlet is None else self._greenlet.gr_frame)


def start_native_thread(body: Body) -> None:
    """Runs ``body`` in a native thread like a handler's.

    Raises:
        RuntimeError: The system gives no more threads.
    """

    def run() -> None:
        _enter_thread()
        try:
            body()
        finally:
            _leave_thread()

    _start_new_thread(run, ())


def _enter_thread() -> None:
    """Begins what debuggers and coverage look at, which threading would have told them."""
    if threading.gettrace() is not None:
        sys.settrace(threading.gettrace())
    if threading.getprofile() is not None:
        sys.setprofile(threading.getprofile())


def _leave_thread() -> None:
    """Whoever asked threading for the current thread, as logging does, left a stand-in there, and the next thread with
    this number would find it, with all that it was given. From 3.13 on Python does this itself."""
    vars(threading)["_active"].pop(_get_ident(), None)


def new_handler(kind: str, body: Body, context: contextvars.Context, on_done: Body, hub: Any) -> Handler:
    """What will run ``body`` as ``runs_on`` says, to be started.

    Args:
        body: What to run. It catches its own exceptions.
        context: The context variables it sees.
        on_done: Called in the handler, after ``done`` is set.
        hub: The network loop's hub, or ``None`` for the caller's own.

    Thread: any.
    """
    if kind == "greenlet":
        return GreenletHandler(body, context, on_done, get_hub() if hub is None else hub)  # an unused hub is false
    return ThreadHandler(body, context, on_done)


def _format(frame: Any) -> str:
    """The stack without what called the user's code, which is the same for every handler."""
    if frame is None:
        return "  (not running)\n"
    stack = traceback.extract_stack(frame)
    users = (number for number, entry in enumerate(stack) if not entry.filename.startswith(_CALLERS))
    return "".join(traceback.format_list(stack[next(users, 0) :]))
