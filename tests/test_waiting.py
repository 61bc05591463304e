"""Signals and waiters: threads and greenlets wake each other, in every combination, and no wake-up is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from krait_ws.waiting import Signal, Waiters, may_wait, new_lock, new_reentrant_lock, wake_all
from tests.helpers import DEADLINE, Task, own_thread, until


def as_thread(function: Callable[[], Any]) -> Any:
    return Task(function).result()


def as_greenlet(function: Callable[[], Any]) -> Any:
    """In a greenlet on a hub of a thread of its own."""
    return Task(lambda: gevent.spawn(function).get(timeout=DEADLINE)).result()


places = pytest.mark.parametrize("place", [as_thread, as_greenlet], ids=["thread", "greenlet"])


@places
def test_a_signal_is_set_once(place: Callable[..., Any]) -> None:
    signal = Signal()
    assert not signal.is_set()
    assert place(signal.set) is True
    assert place(signal.set) is False
    assert signal.is_set()


@places
@pytest.mark.parametrize("timeout", [None, 0, 0.0, 5])
def test_waiting_for_a_signal_that_is_set_returns_at_once(place: Callable[..., Any], timeout: float | None) -> None:
    signal = Signal()
    signal.set()
    assert place(lambda: signal.wait(timeout)) is True


@places
@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_a_wait_ends_after_its_timeout(place: Callable[..., Any], timeout: float) -> None:
    signal = Signal()
    started = time.monotonic()
    assert place(lambda: signal.wait(timeout)) is False
    assert time.monotonic() - started >= timeout


def test_a_set_wakes_every_thread() -> None:
    signal = Signal()
    waiting = [Task(signal.wait) for _ in range(20)]
    for task in waiting:
        task.until_blocked()
    signal.set()
    assert [task.result() for task in waiting] == [True] * 20


@own_thread
def test_a_set_wakes_every_greenlet() -> None:
    signal = Signal()
    waiting = [gevent.spawn(signal.wait, 30) for _ in range(20)]
    gevent.sleep(0)
    signal.set()
    gevent.joinall(waiting, timeout=DEADLINE)
    assert [greenlet.value for greenlet in waiting] == [True] * 20


@own_thread
def test_a_thread_wakes_a_greenlet_of_another_thread() -> None:
    signal = Signal()
    waiting = gevent.spawn(signal.wait, 30)
    gevent.sleep(0)
    Task(signal.set).result()
    assert waiting.get(timeout=DEADLINE) is True


@own_thread
def test_a_greenlet_wakes_a_thread() -> None:
    signal = Signal()
    waiting = Task(lambda: signal.wait(30)).until_blocked()
    gevent.spawn(signal.set).get(timeout=DEADLINE)
    assert waiting.result() is True


@own_thread
def test_a_waiting_greenlet_lets_the_others_run() -> None:
    signal = Signal()
    waiting = gevent.spawn(signal.wait, 30)
    assert gevent.spawn(lambda: "ran").get(timeout=DEADLINE) == "ran"
    signal.set()
    assert waiting.get(timeout=DEADLINE) is True


def test_a_thread_that_has_a_hub_can_wait_without_a_timeout() -> None:
    """Such a thread came to a hub by one call of a gevent function, and nothing else keeps its hub busy.

    Failed: the wait ended with ``LoopExit: This operation would block forever``.
    """
    signal = Signal()

    def wait() -> bool:
        gevent.sleep(0)
        return signal.wait(None)

    waiting = Task(wait).until_blocked()
    signal.set()
    assert waiting.result() is True


@own_thread
def test_the_network_loop_itself_must_not_wait() -> None:
    hub = gevent.get_hub()
    results: list[Any] = []

    def on_the_loop() -> None:
        results.append(may_wait())
        results.append(Signal().wait(0))
        try:
            Signal().wait(1)
        except RuntimeError as error:
            results.append(str(error))

    hub.loop.run_callback(on_the_loop)
    gevent.sleep(0.001)
    assert results[:2] == [False, False]
    assert "network loop" in results[2]


@places
def test_everyone_else_may_wait(place: Callable[..., Any]) -> None:
    assert place(may_wait) is True


@own_thread
def test_a_wait_that_a_timeout_of_gevent_interrupts_leaves_nothing_behind() -> None:
    signal = Signal()

    def wait() -> str:
        with gevent.Timeout(0.01, False):
            signal.wait(30)
        return "interrupted"

    assert gevent.spawn(wait).get(timeout=DEADLINE) == "interrupted"
    signal.set()
    gevent.sleep(0)
    assert signal.wait(0)


def test_waiters_are_woken_in_the_order_of_their_coming() -> None:
    lock = threading.Lock()
    waiters = Waiters()
    came: list[int] = []
    order: list[int] = []

    def wait(number: int) -> None:
        with lock:
            waiter = waiters.add_locked()
            came.append(number)
        assert waiter.wait(DEADLINE)
        order.append(number)

    tasks = []
    for number in range(3):
        tasks.append(Task(lambda number=number: wait(number)))
        until(lambda: len(came) == number + 1, "it waits")  # noqa: B023  called at once
    for task in tasks:
        with lock:
            (waiter,) = waiters.take_locked(1)
        waiter.wake()
        task.result()
    assert order == [0, 1, 2]


def test_a_wake_before_the_wait_counts() -> None:
    waiters = Waiters()
    waiter = waiters.add_locked()
    wake_all(waiters.take_all_locked())
    assert waiter.wait(DEADLINE) is True
    assert waiters.remove_locked(waiter) is False


@own_thread
def test_a_wake_before_the_wait_counts_in_a_greenlet() -> None:
    gevent.sleep(0)  # there is a hub from here on
    waiters = Waiters()
    waiter = waiters.add_locked()
    Task(lambda: wake_all(waiters.take_all_locked())).result()
    assert waiter.wait(DEADLINE) is True


def test_a_waiter_that_leaves_is_not_woken() -> None:
    waiters = Waiters()
    first, second = waiters.add_locked(), waiters.add_locked()
    assert waiters.remove_locked(first) is True
    assert waiters.take_locked(1) == [second]
    second.wake()
    assert second.wait(DEADLINE) is True
    assert first.wait(0) is False


def test_where_nobody_waits_there_is_nobody_to_wake() -> None:
    waiters = Waiters()
    assert not waiters
    assert not waiters.take_locked(1)
    wake_all(waiters.take_all_locked())
    assert waiters.add_locked().wait(0.001) is False
    assert waiters


def test_waiters_can_be_moved_behind_others() -> None:
    waiters, others = Waiters(), Waiters()
    first, second = others.add_locked(), waiters.add_locked()
    waiters.move_all_locked(others)
    assert not waiters
    assert others.take_locked(2) == [first, second]


def test_no_set_is_lost_in_a_race() -> None:
    """A thread that is about to wait and a thread that sets, at the same moment, a thousand times."""
    signals = [Signal() for _ in range(1000)]
    barrier = threading.Barrier(2)

    def wait() -> int:
        barrier.wait(DEADLINE)
        return sum(signal.wait(DEADLINE) for signal in signals)

    waiting = Task(wait)
    barrier.wait(DEADLINE)
    for signal in signals:
        signal.set()
    assert waiting.result() == 1000


def test_locks_are_native_and_the_second_is_reentrant() -> None:
    with new_lock() as plain:
        assert plain
    lock = new_reentrant_lock()
    with lock, lock:
        assert Task(lambda: lock.acquire(False)).result() is False
    assert Task(lambda: lock.acquire(False)).result() is True
