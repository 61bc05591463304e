"""The workers: what is submitted runs off the loop, all at once if it blocks, in few threads if it does not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from krait_ws.errors import ScriptTimeoutError
from krait_ws.network.loop import Loop
from krait_ws.network.workers import Outcome, Workers, value_of
from tests.helpers import DEADLINE, own_thread
from tests.network.support import new_loop, spin


@contextmanager
def new_workers(most: int = 8, seconds: float = DEADLINE) -> Iterator[tuple[Loop, Workers]]:
    with new_loop() as loop:
        workers = Workers(loop, most, seconds)
        workers.start()
        try:
            yield loop, workers
        finally:
            workers.close(DEADLINE)
            assert workers.size == 0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """No thread loses the interpreter in the middle of something. On a busy machine they all may, one after another:
    each then has not come back for its next function when it is wanted, and one thread more is needed."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(DEADLINE)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@own_thread
def test_outcomes_come_to_the_loop() -> None:
    with new_workers() as (_, workers):
        here = threading.get_ident()
        seen: list[tuple[Outcome, int]] = []

        def fail() -> None:
            raise SystemExit("no")

        workers.submit(threading.get_ident, lambda outcome: seen.append((outcome, threading.get_ident())))
        spin(lambda: len(seen) == 1, "the outcome")
        workers.submit(fail, lambda outcome: seen.append((outcome, threading.get_ident())))
        spin(lambda: len(seen) == 2, "the second outcome")
        (returned, first), (raised, second) = seen
        assert value_of(returned) != here
        with pytest.raises(SystemExit, match="no"):
            value_of(raised)
        assert first == second == here


@own_thread
def test_functions_that_block_run_all_at_once() -> None:
    with new_workers(most=8) as (_, workers):
        together = threading.Barrier(8)
        done: list[Outcome] = []
        for _ in range(8):
            workers.submit(lambda: together.wait(DEADLINE), done.append)
        spin(lambda: len(done) == 8, "all of them met")
        assert all(error is None for _, error in done)
        assert workers.size == 8


@own_thread
def test_one_that_comes_while_others_block_does_not_wait_for_them() -> None:
    with new_workers(most=3) as (_, workers):
        gate = threading.Event()
        done: list[Outcome] = []
        for _ in range(2):
            workers.submit(lambda: gate.wait(DEADLINE), lambda _: None)
        workers.submit(lambda: "quick", done.append)
        spin(lambda: done, "the quick one")
        assert workers.is_busy
        gate.set()
        spin(lambda: not workers.is_busy, "the others")


@own_thread
def test_there_are_never_more_than_the_most() -> None:
    with new_workers(most=2) as (_, workers):
        lock = threading.Lock()
        running = most = 0
        two = threading.Event()  # have run at once: the system may be slow to start the second thread
        done: list[Outcome] = []

        def work() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 2:
                    two.set()
            two.wait(DEADLINE)
            threading.Event().wait(0.002)
            with lock:
                running -= 1

        for _ in range(40):
            workers.submit(work, done.append)
        spin(lambda: len(done) == 40, "all of them")
        assert most == 2
        assert workers.size == 2


@own_thread
def test_short_functions_need_few_threads() -> None:
    with uninterrupted(), new_workers(most=64) as (_, workers):
        done: list[Outcome] = []
        for _ in range(20):
            before = len(done)
            for _ in range(50):
                workers.submit(lambda: None, done.append)
            spin(lambda before=before: len(done) == before + 50, "a turn's worth")  # type: ignore[misc]
        assert workers.size < 16


@own_thread
def test_a_function_whose_time_is_over_goes_on_and_is_late() -> None:
    with new_workers(seconds=0.05) as (_, workers):
        gate = threading.Event()
        done: list[Outcome] = []
        late: list[Outcome] = []
        unlimited: list[Outcome] = []

        def wait() -> str:
            gate.wait(DEADLINE)
            return "at last"

        workers.submit(wait, done.append, late=late.append)
        workers.submit(wait, unlimited.append, is_limited=False)
        spin(lambda: done, "its time is over")
        with pytest.raises(ScriptTimeoutError):
            value_of(done[0])
        assert not late
        assert not unlimited
        gate.set()
        spin(lambda: late and unlimited, "the outcomes")
        assert late == unlimited == [("at last", None)]
        assert len(done) == 1


@own_thread
def test_without_more_threads_those_that_are_there_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_workers() as (_, workers):

        def start(*_: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("krait_ws.handlers._start_new_thread", start)
        done: list[Outcome] = []
        for _ in range(20):
            workers.submit(lambda: None, done.append)
        spin(lambda: len(done) == 20, "all of them")
        assert workers.size == 1
        monkeypatch.undo()


@own_thread
def test_one_that_still_runs_at_the_end_is_left_alone() -> None:
    gate, runs = threading.Event(), threading.Event()

    def script() -> None:
        runs.set()
        gate.wait(DEADLINE)

    with new_loop() as loop:
        workers = Workers(loop, 4, DEADLINE)
        workers.start()
        done: list[Outcome] = []
        workers.submit(script, done.append)
        spin(runs.is_set, "it runs")
        workers.close(0.05)
        assert workers.size == 1
    gate.set()
    spin(lambda: workers.size == 0, "its thread ends")
    assert not done, "the loop has ended"
