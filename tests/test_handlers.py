"""Handlers: a thread or a greenlet runs a body in its context, tells its end, and can say where it is."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from krait_ws.handlers import Handler, new_handler
from krait_ws.waiting import Signal
from tests.helpers import DEADLINE, own_thread

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
kinds = pytest.mark.parametrize("kind", ["thread", "greenlet"])


def start(kind: str, body: Callable[[], None], on_done: Callable[[], None] = lambda: None) -> Handler:
    hub = gevent.get_hub() if kind == "greenlet" else None
    handler = new_handler(kind, body, contextvars.copy_context(), on_done, hub)
    handler.start()
    return handler


@kinds
@own_thread
def test_done_is_set_when_the_body_has_ended_and_then_it_is_told(kind: str) -> None:
    go, told = Signal(), Signal()
    seen: list[bool] = []

    def on_done() -> None:
        seen.append(handler.done.is_set())
        told.set()

    handler = start(kind, lambda: go.wait(DEADLINE) and None, on_done)
    assert handler.done.wait(0.01) is False
    go.set()
    assert handler.done.wait(DEADLINE)
    assert told.wait(DEADLINE)
    assert seen == [True]


@kinds
@own_thread
def test_the_body_sees_the_context_of_its_start_and_changes_only_its_copy(kind: str) -> None:
    variable.set("of the start")
    seen: list[str] = []

    def body() -> None:
        seen.append(variable.get())
        variable.set("of the handler")

    handler = start(kind, body)
    assert handler.done.wait(DEADLINE)
    assert seen == ["of the start"]
    assert variable.get() == "of the start"


@kinds
@own_thread
def test_a_handler_knows_itself(kind: str) -> None:
    go = Signal()
    seen: list[bool] = []

    def body() -> None:
        assert go.wait(DEADLINE)
        seen.append(handler.is_current())

    handler = start(kind, body)
    assert not handler.is_current()
    go.set()
    assert handler.done.wait(DEADLINE)
    assert seen == [True]


def test_a_thread_that_has_ended_is_not_taken_for_the_one_that_got_its_number() -> None:
    seen: list[bool] = []
    told = Signal()

    def on_done() -> None:  # the thread is still the same, its body is not
        seen.append(handler.is_current())
        told.set()

    go = Signal()
    handler = start("thread", lambda: go.wait(DEADLINE) and None, on_done)
    go.set()
    assert told.wait(DEADLINE)
    assert seen == [False]


def test_a_thread_leaves_nothing_of_its_own_to_the_next_one() -> None:
    """Failed: threading kept what it had made for the current thread, and a later thread of the same number got it."""
    names: list[str] = []
    for _ in range(3):
        before = set(threading.enumerate())

        def body() -> None:
            thread = threading.current_thread()
            names.append(thread.name)
            thread.name = "whose?"

        handler = start("thread", body)
        assert handler.done.wait(DEADLINE)
        assert set(threading.enumerate()) <= before
    assert "whose?" not in names


@kinds
@own_thread
def test_the_stack_tells_where_the_body_is(kind: str) -> None:
    go, started = Signal(), Signal()

    def the_place_where_it_waits() -> None:
        started.set()
        go.wait(DEADLINE)

    handler = start(kind, the_place_where_it_waits)
    assert started.wait(DEADLINE)
    stack = handler.stack()
    go.set()
    assert "the_place_where_it_waits" in stack
    assert handler.done.wait(DEADLINE)


@own_thread
def test_the_stack_of_a_handler_that_has_ended_is_no_error() -> None:
    handlers = [start(kind, lambda: None) for kind in ("thread", "greenlet")]
    for handler in handlers:
        assert handler.done.wait(DEADLINE)
        assert isinstance(handler.stack(), str)


def test_a_thread_is_a_daemon() -> None:
    found: list[threading.Thread] = []
    handler = start("thread", lambda: found.append(threading.current_thread()))
    assert handler.done.wait(DEADLINE)
    assert found[0].daemon, "a handler that never ends must not keep the process alive"


def test_a_thread_is_traced_and_profiled_as_those_of_threading_are() -> None:
    found: list[Any] = []

    def trace(*_: Any) -> None:
        return None

    threading.settrace(trace)
    threading.setprofile(trace)
    try:
        handler = start("thread", lambda: found.extend((sys.gettrace(), sys.getprofile())))
        assert handler.done.wait(DEADLINE)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
        threading.setprofile(None)
    assert found == [trace, trace]


@own_thread
def test_a_greenlet_runs_in_the_thread_of_its_hub_whoever_starts_it() -> None:
    """Failed: a hub that has not run yet is a greenlet that is false, and ``hub or get_hub()`` took another hub."""
    hub = gevent.get_hub()
    ran_in: list[int] = []
    handlers: list[Handler] = []

    def start_elsewhere() -> None:
        context = contextvars.copy_context()
        body = lambda: ran_in.append(threading.get_ident())  # noqa: E731
        handlers.append(new_handler("greenlet", body, context, lambda: None, hub))
        handlers[0].start()

    thread = threading.Thread(target=start_elsewhere)
    thread.start()
    thread.join(DEADLINE)
    assert handlers[0].done.wait(DEADLINE)
    assert ran_in == [threading.get_ident()]


@kinds
@own_thread
def test_it_does_not_run_before_it_is_started(kind: str) -> None:
    ran: list[str] = []
    hub = gevent.get_hub()
    handler = new_handler(kind, lambda: ran.append("body"), contextvars.copy_context(), lambda: None, hub)
    assert handler.done.wait(0.005) is False
    assert isinstance(handler.stack(), str)
    handler.start()
    assert handler.done.wait(DEADLINE)
    assert ran == ["body"]


@own_thread
def test_starting_a_greenlet_does_not_run_it_yet() -> None:
    """The starter goes on first: it is still setting up the session."""
    ran: list[str] = []
    handler = start("greenlet", lambda: ran.append("body"))
    ran.append("starter")
    assert handler.done.wait(DEADLINE)
    assert ran == ["starter", "body"]
