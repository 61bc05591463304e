"""The network loop alone: calls from threads and from itself, their order, timers, and its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import gevent
import pytest

from krait_ws.network.loop import Loop, Timer
from krait_ws.network.poller import READ
from krait_ws.waiting import is_served, monotonic
from tests.helpers import Task, own_thread, pause
from tests.network.support import Owner, new_loop, spin, tcp_pair, turns, until_readable

POLLERS = pytest.mark.parametrize("poller", ["epoll", "watchers"])


# ---- calls


@own_thread
def test_a_call_runs_soon_in_the_thread_of_the_hub() -> None:
    with new_loop() as loop:
        ran: list[int] = []
        loop.call(lambda: ran.append(threading.get_ident()))
        assert ran == [], "a call never runs inside call()"
        spin(lambda: ran, "the loop's own call")
        Task(lambda: loop.call(lambda: ran.append(threading.get_ident()))).result()
        spin(lambda: len(ran) == 2, "the call of a thread")
        assert set(ran) == {threading.get_ident()}


@own_thread
def test_calls_of_one_thread_keep_their_order() -> None:
    count = 2_000
    with new_loop() as loop:
        ran: list[tuple[int, int]] = []

        def call_often(number: int) -> None:
            for step in range(count):
                loop.call(lambda step=step: ran.append((number, step)))

        tasks = [Task(lambda number=number: call_often(number)) for number in range(4)]
        call_often(4)  # the loop's own
        spin(lambda: len(ran) == 5 * count, "every call")
        for task in tasks:
            task.result()
        for number in range(5):
            assert [step for caller, step in ran if caller == number] == list(range(count))


@own_thread
def test_a_thread_with_a_hub_of_its_own_is_no_loop() -> None:
    with new_loop() as loop:
        ran: list[int] = []

        def call() -> None:
            gevent.sleep(0)  # makes a hub
            loop.call(lambda: ran.append(threading.get_ident()))

        Task(call).result()
        spin(lambda: ran, "the call")
        assert ran == [threading.get_ident()]


@own_thread
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_calls_made_by_calls_have_the_next_turn(where: str) -> None:
    """A call that calls itself for ever starves neither sockets nor timers nor greenlets."""
    with new_loop() as loop, tcp_pair() as (ours, peer):
        owner = Owner(lambda events: ours.recv(100))
        loop.watch(ours.fileno(), owner, READ)
        peer.send(b"x")
        timed: list[int] = []
        loop.call_later(0.01, lambda: timed.append(1))
        stopped: list[int] = []

        def again() -> None:
            if not stopped:
                loop.call(again)

        if where == "loop":
            again()
        else:
            Task(again).result()
        spin(lambda: owner.events and timed, "a socket and a timer beside an endless call")
        stopped.append(1)
        loop.forget(ours.fileno())


@own_thread
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_a_call_that_raises_harms_no_other(where: str, caplog: pytest.LogCaptureFixture) -> None:
    with new_loop() as loop:
        ran: list[int] = []

        def calls() -> None:
            loop.call(lambda: 1 // 0)
            loop.call(lambda: ran.append(1))

        calls() if where == "loop" else Task(calls).result()
        spin(lambda: ran, "the call behind the one that raises")
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("krait_ws.network", logging.ERROR)
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError


@own_thread
def test_many_calls_of_threads_wake_the_loop_once() -> None:
    with new_loop() as loop:
        ran: list[int] = []
        runs: list[int] = []
        run = loop._run

        def counted(calls: list[Callable[[], object]]) -> None:
            runs.append(len(calls))
            run(calls)

        loop._run = counted  # type: ignore[method-assign]
        Task(lambda: [loop.call(lambda: ran.append(1)) for _ in range(1000)]).result()  # the hub stands still
        spin(lambda: len(ran) == 1000, "every call")
        assert [size for size in runs if size] == [1000]


# ---- timers


@own_thread
def test_timers_run_in_the_order_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with new_loop() as loop:
        ran: list[tuple[str, float]] = []
        started = monotonic()
        with monkeypatch.context() as patched:  # they all begin in one moment, however long a busy machine takes
            patched.setattr("krait_ws.network.loop.monotonic", lambda: started)
            for name, seconds in (("c", 0.06), ("a", 0.0), ("b", 0.03), ("d", 0.09), ("a2", 0.0)):
                loop.call_later(seconds, lambda name=name: ran.append((name, monotonic() - started)))
        assert ran == []
        spin(lambda: len(ran) == 5, "every timer")
        assert [name for name, _ in ran] == ["a", "a2", "b", "c", "d"]
        for (_, elapsed), least in zip(ran, (0.0, 0.0, 0.03, 0.06, 0.09), strict=True):
            assert elapsed >= least - 0.005


@own_thread
def test_a_timer_that_comes_before_the_first_is_in_time() -> None:
    with new_loop() as loop:
        ran: list[str] = []
        loop.call_later(3600, lambda: ran.append("late"))
        loop.call_later(0.01, lambda: ran.append("early"))
        spin(lambda: ran, "the earlier timer")
        assert ran == ["early"]


@own_thread
def test_a_cancelled_timer_does_not_run() -> None:
    with new_loop() as loop:
        ran: list[str] = []
        timer = loop.call_later(0.01, lambda: ran.append("cancelled"))
        loop.call_later(0.02, lambda: ran.append("behind it"))
        timer.cancel()
        timer.cancel()
        spin(lambda: ran, "the timer behind it")
        turns()
        assert ran == ["behind it"]


@own_thread
def test_a_timer_cancelled_by_another_of_the_same_moment_does_not_run() -> None:
    with new_loop() as loop:
        ran: list[str] = []
        timers: list[Timer] = []
        loop.call_later(0, lambda: (timers[0].cancel(), ran.append("first")))
        timers.append(loop.call_later(0, lambda: ran.append("cancelled")))
        loop.call_later(0.02, lambda: ran.append("last"))
        spin(lambda: "last" in ran, "the last timer")
        assert ran == ["first", "last"]


@own_thread
def test_a_timer_that_starts_a_timer() -> None:
    with new_loop() as loop:
        ran: list[int] = []

        def tick() -> None:
            ran.append(1)
            if len(ran) < 5:
                loop.call_later(0, tick)

        loop.call_later(0, tick)
        spin(lambda: len(ran) == 5, "a chain of timers")


@own_thread
def test_a_timer_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    with new_loop() as loop:
        ran: list[int] = []
        loop.call_later(0, lambda: 1 // 0)
        loop.call_later(0, lambda: ran.append(1))
        loop.call_later(0.02, lambda: ran.append(2))
        spin(lambda: ran == [1, 2], "the timers behind the one that raises")
        assert len(caplog.records) == 1


# ---- sockets


@own_thread
@POLLERS
def test_an_owner_that_raises_is_aborted_and_harms_no_other(poller: str, caplog: pytest.LogCaptureFixture) -> None:
    with new_loop(poller) as loop, tcp_pair() as (bad, bad_peer), tcp_pair() as (good, good_peer):

        def fail(events: int) -> None:
            loop.forget(bad.fileno())
            raise LookupError("a mistake of ours")

        failing, working = Owner(fail), Owner(lambda events: good.recv(100))
        loop.watch(bad.fileno(), failing, READ)
        loop.watch(good.fileno(), working, READ)
        bad_peer.send(b"x")
        good_peer.send(b"x")
        spin(lambda: failing.aborted and working.events, "both sockets")
        assert (failing.aborted, working.aborted) == (1, 0)
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("krait_ws.network", logging.ERROR)


@own_thread
@POLLERS
def test_calls_made_while_sockets_are_served_run_in_the_same_turn(poller: str) -> None:
    """All sockets are read, then what their messages set off is run, before the hub goes on to anything else."""
    with new_loop(poller) as loop, tcp_pair() as (ours, peer):
        order: list[str] = []

        def served(events: int) -> None:
            ours.recv(100)
            loop.hub.loop.run_callback(order.append, "hub")
            loop.call(lambda: order.append("call"))

        loop.watch(ours.fileno(), Owner(served), READ)
        peer.send(b"x")
        spin(lambda: len(order) == 2, "both")
        assert order == ["call", "hub"]
        loop.forget(ours.fileno())


@own_thread
@POLLERS
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_calls_that_call_each_other_leave_the_sockets_their_turns(poller: str, where: str) -> None:
    """Failed: gevent ran fifty of them before it looked at a socket again."""
    with new_loop(poller) as loop, tcp_pair() as (ours, peer):
        calls: list[int] = []
        waited: list[int] = []  # calls from the byte to its reading

        def again() -> None:
            calls.append(1)
            if len(calls) == 5:
                peer.send(b"x")
                until_readable(ours)
            if not waited and len(calls) < 200:
                loop.call(again)

        def read(events: int) -> None:
            ours.recv(100)
            waited.append(len(calls) - 5)

        loop.watch(ours.fileno(), Owner(read), READ)
        if where == "loop":
            loop.call(again)
        else:
            Task(lambda: loop.call(again)).result()
        spin(lambda: waited, "the byte")
        assert waited[0] <= 3


@own_thread
@POLLERS
def test_what_is_due_comes_after_all_sockets_that_are_ready(poller: str) -> None:
    """The loop has stood still, as on a busy machine. Failed: the keepalive missed pongs that were there to be read."""
    with new_loop(poller) as loop, tcp_pair() as (one, one_peer), tcp_pair() as (two, two_peer):
        order: list[str] = []
        for sock in (one, two):
            loop.watch(sock.fileno(), Owner(lambda events, sock=sock: (sock.recv(100), order.append("socket"))), READ)
        loop.call_later(0.001, lambda: order.append("due"))
        for sock, peer in ((one, one_peer), (two, two_peer)):
            peer.send(b"x")
            until_readable(sock)
        pause(0.01)
        spin(lambda: len(order) == 3, "all three")
        assert order == ["socket", "socket", "due"]
        for sock in (one, two):
            loop.forget(sock.fileno())


@own_thread
@POLLERS
def test_now_is_the_time_of_the_batch(poller: str) -> None:
    with new_loop(poller) as loop, tcp_pair() as (ours, peer):
        seen: list[float] = []
        loop.watch(ours.fileno(), Owner(lambda events: (ours.recv(100), seen.append(loop.now))), READ)
        before = monotonic()
        peer.send(b"x")
        spin(lambda: seen, "the socket")
        assert before <= seen[0] <= monotonic()
        loop.forget(ours.fileno())


# ---- the end


@own_thread
def test_after_close_nothing_runs() -> None:
    ran: list[str] = []
    loop = Loop()
    assert is_served(loop.hub)
    loop.call_later(0.005, lambda: ran.append("timer"))
    loop.call(lambda: ran.append("call of the loop"))
    Task(lambda: loop.call(lambda: ran.append("call of a thread"))).result()
    loop.close()
    assert not is_served(loop.hub)
    Task(lambda: loop.call(lambda: ran.append("late call of a thread"))).result()
    loop.call(lambda: ran.append("late call of the loop"))
    turns()
    loop.call(lambda: ran.append("later call of the loop"))
    turns()
    assert ran == []


@own_thread
def test_threads_that_call_while_it_closes_do_no_harm() -> None:
    for _ in range(5):
        loop = Loop()
        stopped = threading.Event()
        ran: list[int] = []

        def call_often(loop: Loop = loop, stopped: threading.Event = stopped, ran: list[int] = ran) -> None:
            while not stopped.is_set():
                loop.call(lambda: ran.append(1))

        tasks = [Task(call_often) for _ in range(2)]
        spin(lambda ran=ran: ran, "a first call")
        loop.close()
        count = len(ran)
        turns(3)
        assert len(ran) == count
        stopped.set()
        for task in tasks:
            task.result()


@own_thread
@POLLERS
def test_after_close_no_socket_is_served(poller: str) -> None:
    with tcp_pair() as (ours, peer):
        loop = Loop(poller)
        owner = Owner()
        loop.watch(ours.fileno(), owner, READ)
        loop.close()
        peer.send(b"x")
        turns()
        assert owner.events == []


@own_thread
def test_one_hub_can_have_one_loop_after_another() -> None:
    for _ in range(3):
        with new_loop() as loop:
            ran: list[int] = []
            Task(lambda loop=loop, ran=ran: loop.call(lambda: ran.append(1))).result()
            spin(lambda ran=ran: ran, "the call")
