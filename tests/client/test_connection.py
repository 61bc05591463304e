"""A connection: exclusive use, opening when needed, closing when idle, draining, and what becomes of a lost socket."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest

from krait_ws.client import (
    AuthError,
    Connection,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionUnavailableError,
    Transport,
)
from tests.client.proxy import Proxy
from tests.client.servers import is_read, websockets_serve
from tests.helpers import Task, pause, until

SOON = 20.0
"""Seconds; what should come at once has not come by then. The machine may be busy."""


def connection(
    port: int, path: str = "/talk", *, transport: dict[str, Any] | None = None, **options: Any
) -> Connection:
    how = {"proxy": None, "close_timeout": 1.0, **(transport or {})}
    return Connection(Transport(f"ws://127.0.0.1:{port}{path}", **how), **{"drain_timeout": SOON, **options})


def is_end(message: str | bytes) -> bool:
    return message == "end"


def answers(talk: Connection) -> bool:
    with contextlib.suppress(ConnectionClosedError), talk.session():
        talk.send("back")
        return talk.recv(SOON) == "back"
    return False


# ---- exclusive use


def test_it_connects_when_it_is_acquired(proxy: Proxy) -> None:
    with connection(proxy.port) as talk:
        assert not talk.is_connected
        assert proxy.accepted == 0
        with talk.session() as same:
            assert same is talk
            assert talk.is_connected
            assert talk.is_busy
            talk.send("hello")
            assert talk.recv(SOON) == "hello"
        assert talk.is_connected
        assert not talk.is_busy
        with talk.session():
            talk.send(b"again")
            assert talk.recv(SOON) == b"again"
        assert proxy.accepted == 1
    assert not talk.is_connected
    assert talk.is_closed


def test_against_every_server(server: int) -> None:
    with connection(server, drain_condition=is_end) as talk:
        for size in (1, 50):
            with talk.session():
                talk.send(f"parts {size}")
                assert talk.recv(SOON) == "part 1"  # the rest is drained
        with talk.session():
            talk.send("end")
            assert talk.recv(SOON) == "end"
        assert talk.ping(SOON) > 0


def test_only_who_has_acquired_may_use_it(talker: int) -> None:
    with connection(talker) as talk:
        for call in (lambda: talk.send("no"), lambda: talk.recv(0), talk.release):
            with pytest.raises(ConnectionBusyError, match="acquire"):
                call()
        with talk.session():
            pass
        with pytest.raises(ConnectionBusyError):
            talk.send("late")
        with pytest.raises(ConnectionBusyError):
            talk.release()


def test_one_at_a_time(talker: int) -> None:
    with connection(talker) as talk:
        talk.acquire()
        with pytest.raises(ConnectionBusyError, match="busy"):
            talk.acquire()
        with pytest.raises(ConnectionBusyError):
            talk.acquire(0.05)
        waiter = Task(lambda: talk.acquire(SOON)).until_blocked()
        talk.release()
        waiter.result()
        assert talk.is_busy
        talk.release()


def test_two_that_acquire_at_once_open_one_socket(proxy: Proxy) -> None:
    """audex let both in and opened two."""
    with connection(proxy.port) as talk:
        for _ in range(20):
            start = threading.Barrier(8)
            won: list[bool] = []

            def compete(start: threading.Barrier = start, won: list[bool] = won) -> None:
                start.wait()
                with contextlib.suppress(ConnectionBusyError):
                    talk.acquire()
                    won.append(True)

            for task in [Task(compete) for _ in range(8)]:
                task.result()
            assert won == [True]
            talk.release()
        assert proxy.accepted == 1


def test_using_it_while_it_is_being_opened_is_refused(proxy: Proxy) -> None:
    proxy.stall()
    with connection(proxy.port) as talk:
        opener = Task(talk.acquire)
        until(lambda: talk.is_busy, "it is being opened")
        with pytest.raises(ConnectionBusyError):
            talk.acquire()
        with pytest.raises(ConnectionBusyError, match="being opened"):
            talk.send("too early")
        proxy.resume()
        opener.result()
        talk.release()


def test_threads_take_turns(talker: int) -> None:
    with connection(talker, drain_condition=is_end) as talk:

        def work(number: int) -> None:
            for turn in range(20):
                with talk.session(SOON * 4):
                    talk.send(f"{number} {turn}")
                    assert talk.recv(SOON) == f"{number} {turn}"
                    talk.send("parts 2")  # left for the drain

        for task in [Task(lambda number=number: work(number)) for number in range(8)]:
            task.result(SOON * 10)


def test_one_sends_while_another_receives(talker: int) -> None:
    with connection(talker) as talk, talk.session():
        reader = Task(lambda: [talk.recv(SOON) for _ in range(200)])
        for number in range(200):
            talk.send(str(number))
        assert reader.result() == [str(number) for number in range(200)]


def test_an_empty_message_is_a_message(talker: int) -> None:
    """sidekick-py took an empty text for the end."""
    with connection(talker) as talk, talk.session():
        talk.send("")
        talk.send(b"")
        assert talk.recv(SOON) == ""
        assert talk.recv(SOON) == b""
        assert talk.is_connected


# ---- pings


def test_a_ping_waits_for_the_pong(proxy: Proxy) -> None:
    """audex returned at once."""
    with connection(proxy.port, transport={"ping_interval": None}) as talk:
        with pytest.raises(ConnectionUnavailableError, match="not connected"):
            talk.ping()
        with talk.session():
            proxy.stall()
            with pytest.raises(TimeoutError, match="no pong"):
                talk.ping(0.1)
            waiter = Task(lambda: talk.ping(SOON)).until_blocked()
            proxy.resume()
            assert waiter.result() > 0
        before = talk.last_activity
        pause(0.01)
        talk.ping(SOON)
        assert talk.last_activity > before


# ---- drains


def test_late_data_does_not_reach_the_next_user(proxy: Proxy) -> None:
    """release() of audex never drained."""
    with connection(proxy.port, drain_condition=is_end, drain_timeout=60) as talk:
        with talk.session():
            proxy.stall()
            talk.send("parts 5")
            releaser = Task(talk.release)
            until(lambda: talk.is_draining, "it drains")
            assert not talk.is_busy
            assert not talk.is_settled
            with pytest.raises(ConnectionBusyError, match="draining"):
                talk.acquire()
            proxy.resume()
            releaser.result()
            assert talk.is_settled
            talk.acquire()
            talk.send("end")
            assert talk.recv(SOON) == "end"
        assert proxy.accepted == 1


def test_a_whole_answer_needs_no_drain(proxy: Proxy) -> None:
    with connection(proxy.port, drain_condition=is_end, drain_timeout=60) as talk:
        with talk.session():
            talk.send("parts 2")
            assert [talk.recv(SOON) for _ in range(3)] == ["part 1", "part 2", "end"]
        with talk.session():
            pass  # nothing was asked
        assert proxy.accepted == 1


def test_without_a_condition_what_has_arrived_is_dropped(leaves_nothing: None) -> None:
    sent = threading.Event()

    def serve(connection: Any) -> None:
        connection.send("one")
        connection.send("two")
        sent.set()
        connection.recv()

    with websockets_serve(serve) as port, connection(port) as talk:
        with talk.session():
            assert talk.recv(SOON) == "one"
            assert sent.wait(SOON)
            assert talk.ping(SOON) > 0  # then "two" has come, too: the pong was sent behind it
        with talk.session(), pytest.raises(TimeoutError):
            talk.recv(0.1)


def test_a_drain_has_a_deadline(proxy: Proxy) -> None:
    with connection(proxy.port, drain_condition=is_end, drain_timeout=0.1) as talk:
        talk.acquire()
        talk.send("silence")
        with pytest.raises(ConnectionDrainTimeoutError, match=r"within 0\.1 s"):
            talk.release()
        assert not talk.is_connected
        talk.acquire()
        talk.send("end")
        assert talk.recv(SOON) == "end"
        assert proxy.accepted == 2  # not released: 0.1 s may be too short for a drain that has nothing to do


def test_a_flood_cannot_hold_a_drain(leaves_nothing: None) -> None:
    def flood(connection: Any) -> None:
        while True:
            connection.send("more")

    with websockets_serve(flood) as port, connection(port, drain_timeout=0.2) as talk:
        talk.acquire()
        assert talk.recv(SOON) == "more"
        began = time.monotonic()
        with contextlib.suppress(ConnectionDrainTimeoutError):  # or nothing had arrived in one of the moments
            talk.release()
        assert time.monotonic() - began < SOON


def test_a_drain_ends_with_the_socket(proxy: Proxy) -> None:
    with connection(proxy.port, drain_condition=is_end, drain_timeout=60) as talk:
        talk.acquire()
        talk.send("silence")
        releaser = Task(talk.release).until_blocked()
        proxy.reset()
        releaser.result()
        assert not talk.is_busy
        with talk.session():
            talk.send("end")


def test_a_condition_that_raises_is_logged_and_hurts_nothing(talker: int, caplog: pytest.LogCaptureFixture) -> None:
    def broken(message: str | bytes) -> bool:
        raise KeyError(message)

    with connection(talker, drain_condition=broken, drain_timeout=0.1) as talk:
        talk.acquire()
        talk.send("hello")
        assert talk.recv(SOON) == "hello"
        with pytest.raises(ConnectionDrainTimeoutError):
            talk.release()
    assert "drain_condition" in caplog.text
    caplog.clear()


def use_and_fail(talk: Connection) -> None:
    talk.send("parts 100")
    raise ZeroDivisionError


def test_a_session_that_raises_gives_its_socket_up(proxy: Proxy) -> None:
    with connection(proxy.port) as talk:
        with pytest.raises(ZeroDivisionError), talk.session():
            use_and_fail(talk)
        assert not talk.is_connected
        assert not talk.is_busy
        with talk.session():
            talk.send("clean")
            assert talk.recv(SOON) == "clean"
        assert proxy.accepted == 2


def test_a_release_under_a_reader_gives_the_socket_up(talker: int) -> None:
    with connection(talker) as talk:
        talk.acquire()
        reader = Task(talk.recv)
        until(lambda: is_read(talk._link), "somebody reads")
        with pytest.raises(ConnectionBusyError, match="another thread"):
            talk.release()
        with pytest.raises(ConnectionClosedError):
            reader.result()
        with talk.session():
            talk.send("fine")
            assert talk.recv(SOON) == "fine"


# ---- a socket that goes


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_lost_socket_costs_its_session_only(proxy: Proxy, fault: str) -> None:
    """A connection of audex that was lost during recv was unusable for good."""
    with connection(proxy.port) as talk:
        for _ in range(3):
            talk.acquire()
            reader = Task(talk.recv).until_blocked()
            getattr(proxy, fault)()
            with pytest.raises(ConnectionClosedError) as closed:
                reader.result(SOON)
            assert closed.value.code == 1006
            talk.release()
            with talk.session():
                talk.send("back")
                assert talk.recv(SOON) == "back"


def test_the_close_code_of_the_server_is_told(server: int) -> None:
    with connection(server) as talk:
        with talk.session():
            talk.send("close 4001 token")
            with pytest.raises(ConnectionClosedError) as closed:
                talk.recv(SOON)
        assert (closed.value.code, closed.value.reason) == (4001, "token")
        with talk.session():
            talk.send("back")
            assert talk.recv(SOON) == "back"


def test_a_socket_lost_between_sessions_is_replaced(proxy: Proxy) -> None:
    with connection(proxy.port) as talk:
        with talk.session():
            pass
        proxy.cut()
        until(lambda: not talk.is_connected, "the loss is seen")
        with talk.session():
            talk.send("back")
            assert talk.recv(SOON) == "back"


def test_an_open_that_fails_leaves_it_free(proxy: Proxy) -> None:
    proxy.answer(times=2)
    with connection(proxy.port) as talk:
        for _ in range(2):
            with pytest.raises(ConnectionUnavailableError, match="503"):
                talk.acquire()
            assert not talk.is_busy
        with talk.session():
            talk.send("fine now")
            assert talk.recv(SOON) == "fine now"


def test_refused_credentials(server: int) -> None:
    with connection(server, "/private") as talk:
        with pytest.raises(AuthError):
            talk.acquire()
        assert not talk.is_busy


def test_a_dead_link_ends_a_recv_without_a_timeout(proxy: Proxy) -> None:
    how = {"ping_interval": 0.1, "ping_timeout": 0.2, "close_timeout": 0.2}
    with connection(proxy.port, transport=how) as talk:
        with talk.session():
            proxy.stall()
            with pytest.raises(ConnectionClosedError):
                talk.recv()
        proxy.resume()
        until(lambda: answers(talk), "it is back")  # such pings may cost a busy machine another socket


# ---- idle


def test_it_closes_itself_when_nobody_uses_it(proxy: Proxy) -> None:
    with connection(proxy.port, idle_timeout=0.2) as talk:
        with talk.session():
            talk.send("hello")
            assert talk.recv(SOON) == "hello"
        used = talk.last_activity
        until(lambda: not talk.is_connected, "it was closed")
        assert time.monotonic() - used >= 0.2
        until(lambda: proxy.open == 0, "the server saw it")
        with talk.session():
            talk.send("again")
            assert talk.recv(SOON) == "again"


def test_it_does_not_close_itself_while_it_is_acquired(talker: int) -> None:
    with connection(talker, idle_timeout=0.1) as talk, talk.session():
        pause(0.4)
        assert talk.is_connected
        talk.send("hello")
        assert talk.recv(SOON) == "hello"


def test_use_puts_the_idle_close_off(talker: int) -> None:
    with connection(talker, idle_timeout=0.5) as talk:
        for _ in range(10):
            with talk.session():
                assert talk.ping(SOON) > 0
            pause(0.1)
            is_connected, used = talk.is_connected, talk.last_activity
            assert is_connected or time.monotonic() - used >= 0.5, "the machine let us use it in time"


def test_an_idle_close_says_so_to_the_server() -> None:
    ends: list[Any] = []

    def note(connection: Any) -> None:
        with contextlib.suppress(Exception):
            connection.recv()
        ends.append((connection.close_code, connection.close_reason))

    with websockets_serve(note) as port, connection(port, idle_timeout=0.05) as talk:
        talk.acquire()
        talk.release()
        until(lambda: ends, "the server saw the close")
        assert ends == [(1000, "idle")]


def test_without_an_idle_time_it_stays(talker: int) -> None:
    with connection(talker, idle_timeout=None) as talk:
        with talk.session():
            pass
        assert not [thread for thread in threading.enumerate() if thread.name == "krait-client-idle"]
        assert talk.is_connected


# ---- closing


def test_a_closed_connection_cannot_be_reopened(talker: int) -> None:
    talk = connection(talker)
    with talk.session():
        pass
    talk.close(3000, "enough")
    talk.close()
    for call in (talk.acquire, lambda: talk.acquire(None), lambda: talk.send("no"), talk.recv, talk.ping):
        with pytest.raises(ConnectionClosedError) as closed:
            call()
        assert (closed.value.code, closed.value.reason) == (3000, "enough")
    talk.release()
    assert talk.is_closed
    assert not talk.is_connected


def test_closing_one_that_was_never_opened() -> None:
    with Connection("ws://127.0.0.1:1/") as talk:
        pass
    with pytest.raises(ConnectionClosedError):
        talk.acquire()


def test_a_close_wakes_everyone(proxy: Proxy) -> None:
    talk = connection(proxy.port, transport={"open_timeout": 60})
    talk.acquire()
    reader = Task(talk.recv).until_blocked()
    waiters = [Task(lambda: talk.acquire(60)).until_blocked() for _ in range(3)]
    talk.close()
    for task in (reader, *waiters):
        with pytest.raises(ConnectionClosedError):
            task.result(SOON)
    talk.release()

    talk = connection(proxy.port, transport={"open_timeout": 60})
    proxy.stall()
    opener = Task(talk.acquire).until_blocked()
    talk.close()
    with pytest.raises(ConnectionClosedError):
        opener.result(SOON)
    proxy.resume()

    talk = connection(proxy.port, drain_condition=is_end, drain_timeout=60)
    talk.acquire()
    talk.send("silence")
    releaser = Task(talk.release).until_blocked()
    talk.close()
    releaser.result(SOON)
    assert talk.is_closed


def test_a_close_code_that_cannot_be_sent_closes_nothing(talker: int) -> None:
    with connection(talker) as talk, talk.session():
        with pytest.raises(ValueError, match="1006"):
            talk.close(1006)
        assert talk.is_connected
        assert not talk.is_closed


@pytest.mark.parametrize("options", [{"idle_timeout": 0}, {"drain_timeout": -1}, {"drain_timeout": 0}])
def test_seconds_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Connection("ws://127.0.0.1:1/", **options)


# ---- many


def test_a_thousand_starts_and_stops_leave_nothing(talker: int) -> None:
    """Threads, descriptors and exceptions in threads are counted by the fixtures."""
    for number in range(1000):
        with connection(talker, transport={"compression": False}) as talk, talk.session():
            if number % 10 == 0:
                talk.send("hello")
                assert talk.recv(SOON) == "hello"


def test_idle_closes_and_acquires_at_the_same_moment(talker: int) -> None:
    with connection(talker, idle_timeout=0.002, transport={"compression": False}) as talk:
        for number in range(150):
            with talk.session():
                talk.send(str(number))
                assert talk.recv(SOON) == str(number)
            pause(0.0015 + (number % 5) * 0.0003)


def test_closes_at_every_moment(talker: int) -> None:
    """A user in a loop, and a close at any time: the user sees ConnectionClosedError and nothing else."""
    for number in range(60):
        talk = connection(talker, drain_condition=is_end, transport={"compression": False})

        def use(talk: Connection = talk) -> None:
            while True:
                with talk.session(SOON):
                    talk.send("parts 3")
                    talk.recv(SOON)

        user = Task(use)
        pause(number * 0.0005)
        talk.close()
        with pytest.raises(ConnectionClosedError):
            user.result(SOON)
