"""The clients and the process they live in: patched by gevent, ended with open connections, interrupted, forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import krait_ws
from tests.helpers import pause

ROOT = Path(krait_ws.__file__).parents[1]

COMMON = """
import os, signal, sys, threading, time
from krait_ws.client import *

port = int(sys.argv[1])
transport = Transport(f"ws://127.0.0.1:{port}/talk", proxy=None, close_timeout=1)


def is_end(message):
    return message == "end"


def until_alone():
    deadline = time.monotonic() + 10
    while threading.active_count() > 1:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)

"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
"""


def run(port: int, program: str, *, before: str = "", signal_at: str = "") -> str:
    """Runs a program with the port of a server; it must end well and write nothing to standard error.

    Args:
        signal_at: Once the program has printed this line it gets SIGINT.
    """
    source = before + COMMON + textwrap.dedent(program)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", source, str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = ""
        try:
            if signal_at:
                assert process.stdout is not None
                said = process.stdout.readline()
                assert said.strip() == signal_at
                pause(0.1)  # an earlier signal is right too, but it would not test the wait
                process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    return said + out


both = pytest.mark.parametrize("before", ["", GEVENT], ids=["plain", "gevent"])


@both
def test_connection(talker: int, before: str) -> None:
    program = """
        with Connection(transport, idle_timeout=0.2, drain_condition=is_end, drain_timeout=20) as talk:
            with talk.session():
                talk.send("hello")
                assert talk.recv(20) == "hello"
                talk.send("parts 3")
            with talk.session():
                assert talk.ping(20) > 0
                try:
                    talk.recv(0.05)
                except TimeoutError:
                    print("late")
            deadline = time.monotonic() + 10
            while talk.is_connected:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with talk.session():
                talk.send("end")
                assert talk.recv(20) == "end"
        try:
            Transport("ws://127.0.0.1:1/", proxy=None).open()
        except ConnectionUnavailableError:
            print("unavailable")
        until_alone()
    """
    assert run(talker, program, before=before).split() == ["late", "unavailable"]


@both
def test_fifty_threads_and_a_pool(talker: int, before: str) -> None:
    program = """
        with Pool(transport, max_size=5, min_size=2, drain_condition=is_end, drain_timeout=20) as talks:
            talks.warm_up()

            def work():
                for _ in range(10):
                    with talks.session(60) as talk:
                        talk.send("parts 3")
                        assert talk.recv(10) == "part 1"

            threads = [threading.Thread(target=work) for _ in range(50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stats = talks.stats()
            print(stats.acquired, stats.opened <= 5, stats.exhausted)
            talk = talks.acquire()
            ended = []

            def read():
                try:
                    talk.recv()
                except ConnectionClosedError as error:
                    ended.append(error.code)

            reader = threading.Thread(target=read)
            reader.start()
            assert talks.close(0.1) is False
            reader.join(10)
            assert ended == [1000], ended
        until_alone()
    """
    assert run(talker, program, before=before).split() == ["500", "True", "0"]


def test_a_wait_holds_no_other_greenlet(talker: int) -> None:
    program = """
        def tick():
            for _ in range(10):
                gevent.sleep(0.01)
            talk.send("ten ticks")

        with Connection(transport) as talk, talk.session():
            ticker = gevent.spawn(tick)
            print(talk.recv(20))
        ticker.join()
    """
    assert run(talker, program, before=GEVENT).strip() == "ten ticks"


@both
def test_an_interpreter_ends_with_open_connections(talker: int, before: str) -> None:
    program = """
        talk = Connection(transport)
        talk.acquire()
        idle = Connection(transport)
        idle.acquire()
        idle.release()
        talks = Pool(transport, min_size=3, drain_condition=is_end)
        talks.warm_up()
        busy = talks.acquire()
        draining = talks.acquire()
        draining.send("silence")
        talks.release(draining)
        dial = transport.dial()

        def receive():
            talk.recv()

        threading.Thread(target=receive, daemon=True).start()
        time.sleep(0.05)
        print("bye")
    """
    assert run(talker, program, before=before).strip() == "bye"


@pytest.mark.parametrize(
    "wait",
    [
        "talk.recv()",
        "talk.recv(60)",
        "other.acquire(60)",
        "talks.acquire(60)",
        "talk.send('silence'); talk.release()",
        "talks.close(60)",
        "Connection(Transport(f'ws://127.0.0.1:{silent.getsockname()[1]}/', proxy=None, open_timeout=60)).acquire()",
    ],
)
def test_ctrl_c_ends_every_wait(talker: int, wait: str) -> None:
    program = f"""
        import socket

        silent = socket.create_server(("127.0.0.1", 0))
        talk = Connection(transport, drain_condition=is_end, drain_timeout=60)
        talk.acquire()
        other = Connection(transport)
        other.acquire()
        talks = Pool(transport, max_size=1)
        held = talks.acquire()
        try:
            print("waiting")
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
        talk.close()
        other.close()
        print(talks.close(0.01))
        silent.close()
        until_alone()
    """
    assert run(talker, program, signal_at="waiting").split() == ["waiting", "interrupted", "False"]


def test_a_connection_that_was_interrupted_goes_on(talker: int) -> None:
    program = """
        talk = Connection(transport)
        talk.acquire()
        try:
            print("waiting")
            talk.recv()
        except KeyboardInterrupt:
            pass
        talk.send("hello")
        print(talk.recv(20))
        talk.release()
        talk.close()
    """
    assert run(talker, program, signal_at="waiting").split() == ["waiting", "hello"]


def test_a_fork_leaves_the_parents_connections_alone(talker: int) -> None:
    program = """
        talk = Connection(transport)
        talk.acquire()
        talks = Pool(transport, min_size=1)
        held = talks.acquire()
        with talk._lock:  # as if another thread held it at this moment
            child = os.fork()
        if child == 0:
            refused = 0
            for call in (lambda: talk.send("no"), talk.recv, talk.release, talk.ping, talks.acquire, talks.warm_up,
                         lambda: talks.release(held), held.acquire):
                try:
                    call()
                except ConnectionUnavailableError as error:
                    assert "fork" in str(error)
                    refused += 1
            talk.close()
            talks.close()
            with Connection(transport) as own, own.session():
                own.send("child")
                assert own.recv(20) == "child"
            sys.exit(refused)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        for one in (talk, held):
            one.send("parent")
            print(one.recv(20))
        talk.close()
        talks.release(held)
        talks.close()
    """
    assert run(talker, program).split() == ["8", "parent", "parent"]


def test_a_fork_leaves_the_parents_stream_alone(talker: int) -> None:
    program = """
        stream = EventStream(transport, sync_quiet=0.1)
        heard = []
        stream.on_event(lambda event: heard.append(event.data))
        stream.start().wait_connected(10)
        link = transport.open()
        not_started = EventStream(transport, sync_quiet=0.1)

        held, forked = threading.Event(), threading.Event()

        def hold():
            with stream._supervisor._inbox._changed, stream._changed:
                held.set()
                forked.wait()

        holder = threading.Thread(target=hold, daemon=True)  # what another thread does at this moment
        holder.start()
        held.wait()
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (lambda: stream.send("no"), stream.start, stream.wait_connected, stream.run_forever,
                         lambda: link.send("no"), link.recv, link.ping):
                try:
                    call()
                except ConnectionUnavailableError as error:
                    assert "fork" in str(error)
                    refused += 1
            assert stream.stop()
            link.close()
            link.abort()
            with not_started:
                not_started.wait_connected(10)
            sys.exit(refused)
        forked.set()
        holder.join()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        link.send("parent")
        print(link.recv(20))
        stream.send("of the stream")
        deadline = time.monotonic() + 10
        while not heard:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        print(heard)
        stream.stop()
        link.close()
    """
    assert run(talker, program).splitlines() == ["7", "parent", "['of the stream']"]
