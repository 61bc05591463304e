"""A pool: who gets what, what becomes of broken connections, and how it closes."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from krait_ws.client import (
    AuthError,
    Connection,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionUnavailableError,
    Pool,
    PoolExhaustedError,
    Transport,
)
from krait_ws.client import pool as pool_module
from tests.client.proxy import Proxy
from tests.helpers import Task, pause, until

SOON = 20.0
"""Seconds; what should come at once has not come by then. The machine may be busy."""


def pool(port: int, path: str = "/talk", *, transport: dict[str, Any] | None = None, **options: Any) -> Pool:
    how = {"proxy": None, "close_timeout": 1.0, "compression": False, **(transport or {})}
    return Pool(Transport(f"ws://127.0.0.1:{port}{path}", **how), **{"drain_timeout": SOON, **options})


def is_end(message: str | bytes) -> bool:
    return message == "end"


def echo(connection: Connection, message: str) -> None:
    connection.send(message)
    assert connection.recv(SOON) == message


# ---- who gets what


def test_it_opens_what_is_needed_and_reuses_it(proxy: Proxy) -> None:
    with pool(proxy.port) as talks:
        assert proxy.accepted == 0
        for number in range(20):
            with talks.session() as talk:
                echo(talk, str(number))
        assert proxy.accepted == 1
        with talks.session() as one, talks.session() as two:
            echo(one, "one")
            echo(two, "two")
            assert (talks.stats().busy, talks.stats().connected) == (2, 2)
        assert proxy.accepted == 2
        stats = talks.stats()
        assert (stats.acquired, stats.opened, stats.idle, stats.busy, stats.failed) == (22, 2, 2, 0, 0)


def test_against_every_server(server: int) -> None:
    with pool(server, max_size=3, min_size=1, drain_condition=is_end) as talks:

        def work() -> None:
            for _ in range(10):
                with talks.session(SOON * 4) as talk:
                    talk.send("parts 3")
                    assert talk.recv(SOON) == "part 1"

        for task in [Task(work) for _ in range(6)]:
            task.result(SOON * 4)
        assert talks.stats().opened <= 3


def test_fifty_threads_share_five_connections(proxy: Proxy) -> None:
    with pool(proxy.port, max_size=5) as talks:

        def work(number: int) -> None:
            for turn in range(20):
                with talks.session(SOON * 6) as talk:
                    echo(talk, f"{number} {turn}")

        for task in [Task(lambda number=number: work(number)) for number in range(50)]:
            task.result(SOON * 10)
        stats = talks.stats()
        assert (stats.acquired, stats.exhausted, stats.waiting, stats.busy) == (1000, 0, 0, 0)
        assert proxy.accepted == stats.opened <= 5


def test_fifty_threads_and_a_line_that_breaks(proxy: Proxy) -> None:
    """The pool of audex lost a slot for each connection that the server closed."""
    over = threading.Event()
    successes: list[int] = []

    def trouble() -> None:
        seen = 0
        while not over.wait(0.05):
            if len(successes) > seen:  # else a machine that is too slow for 0.05 s would never get anything done
                seen = len(successes)
                proxy.reset()

    with pool(proxy.port, max_size=5, min_size=2) as talks:

        def work(number: int) -> None:
            for turn in range(20):
                with suppress(ConnectionClosedError, ConnectionUnavailableError), talks.session(SOON * 6) as talk:
                    echo(talk, f"{number} {turn}")
                    successes.append(number)

        breaker = Task(trouble)
        for task in [Task(lambda n=n: work(n)) for n in range(50)]:
            task.result(SOON * 10)
        over.set()
        breaker.result()
        assert successes
        until(lambda: talks.stats().opening == 0 and talks.stats().connected == proxy.open, "the last loss is seen")
        held = [talks.acquire(SOON) for _ in range(5)]  # every slot is there
        for number, talk in enumerate(held):
            echo(talk, str(number))
            talks.release(talk)


def test_the_server_closes_more_often_than_there_are_slots(proxy: Proxy) -> None:
    with pool(proxy.port, max_size=2) as talks:
        for _ in range(10):
            with talks.session(0) as talk:
                talk.send("close 1001 bye")
                with pytest.raises(ConnectionClosedError):
                    talk.recv(SOON)
        for _ in range(5):
            with talks.session(0) as talk:
                echo(talk, "idle")
            proxy.cut()
            until(lambda: talks.stats().connected == 0, "the loss is seen")


def test_when_all_are_in_use(talker: int) -> None:
    with pool(talker, max_size=2) as talks:
        held = [talks.acquire(), talks.acquire()]
        for timeout in (0, 0.05):
            with pytest.raises(PoolExhaustedError, match="all 2 connections are in use, and 0 others wait"):
                talks.acquire(timeout)
        assert talks.stats().exhausted == 2
        waiter = Task(lambda: talks.acquire(SOON))
        until(lambda: talks.stats().waiting == 1, "it waits")
        talks.release(held[1])
        assert waiter.result() is held[1]
        talks.release(held[0])
        talks.release(held[1])


def test_who_waits_is_served_in_the_order_of_coming(talker: int) -> None:
    served: list[int] = []
    with pool(talker, max_size=1) as talks:
        talk = talks.acquire()

        def wait(number: int) -> None:
            with talks.session(SOON):
                served.append(number)

        waiters = []
        for number in range(6):
            waiters.append(Task(lambda number=number: wait(number)))
            until(lambda number=number: talks.stats().waiting == number + 1, "it waits")
        talks.release(talk)
        for waiter in waiters:
            waiter.result()
    assert served == list(range(6))


def test_a_newcomer_does_not_overtake_who_waits(talker: int) -> None:
    """It has the processor when the place becomes free, and the one who waits has yet to wake up."""
    with pool(talker, max_size=1) as talks:
        talk = talks.acquire()
        for number in range(50):
            go_on = threading.Event()

            def wait(go_on: threading.Event = go_on) -> None:
                with talks.session(SOON):
                    assert go_on.wait(SOON * 4)

            waiter = Task(wait)
            until(lambda: talks.stats().waiting == 1, "it waits")
            talks.release(talk)
            with pytest.raises(PoolExhaustedError):
                talks.acquire(0 if number % 2 else 0.001)
            go_on.set()
            waiter.result()
            talk = talks.acquire(SOON)
        talks.release(talk)


def test_one_that_gives_up_waiting_does_not_hold_the_others(talker: int) -> None:
    with pool(talker, max_size=1) as talks:
        talk = talks.acquire()
        impatient = Task(lambda: talks.acquire(0.1))
        until(lambda: talks.stats().waiting == 1 or not impatient.is_running, "it waits, or has had enough already")
        patient = Task(lambda: talks.acquire(SOON)).until_blocked()
        with pytest.raises(PoolExhaustedError):
            impatient.result()
        talks.release(talk)
        talks.release(patient.result())


def test_the_one_that_was_heard_from_last_is_reused(proxy: Proxy) -> None:
    with pool(proxy.port) as talks:
        one, two, three = talks.acquire(), talks.acquire(), talks.acquire()
        for talk in (one, three, two):
            echo(talk, "hello")
        for talk in (one, two, three):
            talks.release(talk)
        assert talks.acquire() is two
        assert talks.acquire() is three
        proxy.reset()
        until(lambda: talks.stats().connected == 0, "the loss is seen")
        for talk in (two, three):
            talks.release(talk)
        one.acquire()  # as one that works among broken ones
        one.release()
        assert talks.acquire() is one
        talks.release(one)


def test_what_was_not_acquired_cannot_be_released(talker: int) -> None:
    with pool(talker) as talks, pool(talker) as others:
        talk = talks.acquire()
        with pytest.raises(ConnectionBusyError):
            others.release(talk)
        talks.release(talk)
        with pytest.raises(ConnectionBusyError):
            talks.release(talk)


def test_one_that_its_user_closed_leaves_its_slot(talker: int) -> None:
    with pool(talker, max_size=1) as talks:
        for number in range(3):
            with talks.session(0) as talk:
                echo(talk, str(number))
                talk.close()
        talk = talks.acquire(0)
        talks.release(talk)
        talk.close()
        with talks.session(0) as talk:
            echo(talk, "new")


# ---- drains


def test_a_release_does_not_wait_for_the_drain(proxy: Proxy) -> None:
    with pool(proxy.port, max_size=2, drain_condition=is_end, drain_timeout=60) as talks:
        talk = talks.acquire()
        proxy.stall()
        talk.send("parts 1")
        began = time.monotonic()
        talks.release(talk)
        assert time.monotonic() - began < SOON
        assert talks.stats().draining == 1
        proxy.resume()
        with talks.session() as other:
            echo(other, "end")
        until(lambda: talks.stats().draining == 0, "drained")
        assert talks.stats().idle == talks.stats().opened
        with talks.session() as one, talks.session() as two:
            echo(one, "end")
            echo(two, "end")


def test_a_waiter_gets_what_was_drained(talker: int) -> None:
    with pool(talker, max_size=1, drain_condition=is_end) as talks:
        for _ in range(20):
            with talks.session(SOON) as talk:
                talk.send("parts 20")
        assert talks.stats().opened == 1


def test_a_drain_that_takes_too_long_costs_a_socket_and_no_slot(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    with pool(proxy.port, max_size=1, drain_condition=is_end, drain_timeout=0.05) as talks:
        for _ in range(3):
            with talks.session(SOON) as talk:
                talk.send("silence")
        with talks.session(SOON) as talk:
            echo(talk, "end")
            assert (talks.stats().drain_timeouts, talks.stats().opened) == (3, 4)
    assert "did not come within" in caplog.text


def test_a_place_outlives_a_machine_without_threads(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "krait-client-drain" or isinstance(thread, threading.Timer):
            raise RuntimeError("can't start new thread")
        begin(thread)

    with pool(proxy.port, max_size=1, drain_condition=is_end) as talks:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with talks.session(0) as talk:
            talk.send("silence")
        with talks.session(0) as talk:
            echo(talk, "end")
        assert talks.stats().opened == 2


def test_a_session_that_raises_gives_its_socket_up(proxy: Proxy) -> None:
    def fail(talk: Connection) -> None:
        talk.send("parts 9")
        raise ZeroDivisionError

    with pool(proxy.port, max_size=1) as talks:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), talks.session(0) as talk:
                fail(talk)
        with talks.session(0) as talk:
            echo(talk, "clean")
        assert proxy.accepted == 4


# ---- what cannot be opened


def test_an_open_that_fails_frees_its_slot(proxy: Proxy) -> None:
    proxy.answer(times=3)
    with pool(proxy.port, max_size=1) as talks:
        for _ in range(3):
            with pytest.raises(ConnectionUnavailableError):
                talks.acquire(0)
        with talks.session(0) as talk:
            echo(talk, "fine")
        assert (talks.stats().failed, talks.stats().opened) == (3, 1)


def test_an_open_that_fails_wakes_the_next(proxy: Proxy) -> None:
    proxy.stall()
    with pool(proxy.port, max_size=1, transport={"open_timeout": 60}) as talks:
        first = Task(lambda: talks.acquire(0))
        until(lambda: proxy.accepted == 1, "it opens")
        second = Task(lambda: talks.acquire(SOON))
        until(lambda: talks.stats().waiting == 1, "it waits")
        proxy.cut()
        with pytest.raises(ConnectionUnavailableError):
            first.result()
        proxy.resume()
        talks.release(second.result())


def test_refused_credentials(server: int) -> None:
    with pool(server, "/private", min_size=1) as talks:
        with pytest.raises(AuthError):
            talks.warm_up()
        with pytest.raises(AuthError):
            talks.acquire()


# ---- those that are kept open


@pytest.fixture
def no_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the one who looks after them may come before the test has looked."""
    monkeypatch.setattr(pool_module, "_CHECK_SECONDS", 600.0)


@pytest.mark.usefixtures("no_keeper")
def test_warm_up_opens_the_least(proxy: Proxy) -> None:
    with pool(proxy.port, min_size=4) as talks:
        talks.warm_up()
        assert (talks.stats().connected, talks.stats().idle, proxy.accepted) == (4, 4, 4)
        talks.warm_up()
        with talks.session() as talk:
            echo(talk, "warm")
        assert proxy.accepted == 4


def test_warm_up_opens_at_the_same_time(proxy: Proxy) -> None:
    proxy.stall()
    with pool(proxy.port, min_size=8) as talks:
        warming = Task(talks.warm_up)
        until(lambda: proxy.accepted == 8, "all of them try")
        assert talks.stats().opening == 8
        proxy.resume()
        warming.result()


@pytest.mark.usefixtures("no_keeper")
def test_warm_up_tells_what_failed(proxy: Proxy) -> None:
    proxy.answer(times=1)
    with pool(proxy.port, min_size=3) as talks:
        with pytest.raises(ConnectionUnavailableError, match="503"):
            talks.warm_up()
        assert talks.stats().connected == 2
        talks.warm_up()
        assert talks.stats().connected == 3


def test_broken_ones_are_replaced_although_nobody_asks(proxy: Proxy) -> None:
    with pool(proxy.port, min_size=3) as talks:
        talks.warm_up()
        proxy.reset()
        # Each is replaced as soon as its loss is seen, so there may be no moment without any.
        until(lambda: proxy.accepted >= 6 and talks.stats().connected == 3, "they are back")


def test_those_beyond_the_least_close_themselves(proxy: Proxy) -> None:
    with pool(proxy.port, min_size=1, idle_timeout=0.2) as talks:
        held = [talks.acquire() for _ in range(4)]
        for talk in held:
            talks.release(talk)
        until(lambda: talks.stats().connected == 1, "three were closed")
        pause(0.4)
        assert talks.stats().connected == 1


# ---- closing


def test_a_close_waits_for_users(talker: int) -> None:
    talks = pool(talker)
    talk = talks.acquire()
    closer = Task(lambda: talks.close(SOON))
    until(lambda: talks.is_closed, "it closes")
    with pytest.raises(ConnectionClosedError, match="the pool is closed"):
        talks.acquire()
    echo(talk, "still mine")
    talks.release(talk)
    assert closer.result() is True
    assert talk.is_closed
    assert talks.close()
    assert talks.is_closed


def test_a_close_waits_so_long_and_not_longer(talker: int) -> None:
    talks = pool(talker)
    talk = talks.acquire()
    reader = Task(talk.recv).until_blocked()
    assert talks.close(0.05) is False
    with pytest.raises(ConnectionClosedError):
        reader.result()
    talks.release(talk)
    talks.release(talk)
    assert talks.close(0) is True


def test_a_close_wakes_who_waits_and_who_opens(proxy: Proxy) -> None:
    talks = pool(proxy.port, max_size=2, transport={"open_timeout": 60})
    talk = talks.acquire()
    proxy.stall()
    tasks = [Task(lambda: talks.acquire(60)) for _ in range(5)]
    until(lambda: (talks.stats().waiting, talks.stats().opening) == (4, 1), "one opens, four wait")
    closer = Task(lambda: talks.close(60))
    for task in tasks:
        with pytest.raises(ConnectionClosedError):
            task.result(SOON)
    assert closer.is_running
    talks.release(talk, discard=True)
    assert closer.result() is True
    with pytest.raises(ConnectionClosedError):
        talks.warm_up()


def test_a_close_ends_drains(talker: int) -> None:
    talks = pool(talker, drain_condition=is_end, drain_timeout=60)
    talk = talks.acquire()
    talk.send("silence")
    talks.release(talk)
    assert talks.stats().draining == 1
    assert Task(lambda: talks.close(60)).result(SOON) is True


def test_closing_at_every_moment(talker: int) -> None:
    for number in range(40):
        talks = pool(talker, max_size=2, min_size=number % 3, drain_condition=is_end)

        def use(talks: Pool = talks) -> None:
            while True:
                with talks.session(SOON) as talk:
                    talk.send("parts 3")
                    talk.recv(SOON)

        users = [Task(use) for _ in range(4)]
        pause(number * 0.0007)
        talks.close(SOON)
        for user in users:
            with pytest.raises(ConnectionClosedError):
                user.result(SOON)
        stats = talks.stats()
        assert (stats.idle, stats.opening, stats.busy, stats.draining, stats.waiting) == (0, 0, 0, 0, 0)


def test_a_thousand_starts_and_stops_leave_nothing(talker: int) -> None:
    """Threads, descriptors and exceptions in threads are counted by the fixtures."""
    for number in range(1000):
        with pool(talker, min_size=number % 2, max_size=2) as talks:
            talk = talks.acquire()
            if number % 10 == 0:
                echo(talk, "hello")
            talks.release(talk)


@pytest.mark.parametrize(
    "options",
    [{"max_size": 0}, {"min_size": -1}, {"min_size": 3, "max_size": 2}, {"idle_timeout": 0}, {"drain_timeout": -1}],
)
def test_what_cannot_work_is_told_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Pool("ws://127.0.0.1:1/", **options)
