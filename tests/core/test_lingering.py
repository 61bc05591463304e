"""Whoever is about to sleep looks on for a moment, where that has paid lately.

The moments are far longer here than in use, so that what comes in one comes in it for certain.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from krait_ws.config import Config
from krait_ws.network.connection import Connection
from krait_ws.network.loop import Loop
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.core.support import Bench, bench, compiled_only, texts
from tests.helpers import DEADLINE, Task, own_thread, until, upgrade_request
from tests.integration.support import RawClient
from tests.network.support import new_loop, spin, tcp_pair, turns

FOR_GOOD = 60_000_000  # microseconds, more than any test waits
FIRST_PAUSE = 16  # waits of a new connection without it

Serve = Callable[..., SiteServer]


# ---- a thread that waits for its socket


def leave_first_pause(made: Bench) -> None:
    """The handler waits as often as a new connection sleeps at once. Each time for a message: a wait for a moment is a
    look, and does not count, where the moment is over before it begins."""
    for _ in range(FIRST_PAUSE):
        popped = made.puppet.begin(lambda: made.puppet.pop_in_message(None))
        made.peer.sendall(texts("another"))
        assert popped.result(DEADLINE) == "another"


def lingering(made: Bench, timeout: float | None = None) -> Future[Any]:
    """The handler pops and does not sleep."""
    leave_first_pause(made)
    popped = made.puppet.begin(lambda: made.puppet.pop_in_message(timeout))
    looks = 0

    def runs_on() -> bool:
        nonlocal looks
        looks = looks + 1 if made.connection.is_lent and made.puppet.state == "R" else 0
        return looks > 20

    if timeout is None:
        until(runs_on, "the handler looks on")
    return popped


@compiled_only
@own_thread
def test_a_message_that_comes_meanwhile() -> None:
    with new_loop() as loop, bench(loop) as made:
        loop.linger = FOR_GOOD
        popped = lingering(made)
        made.peer.sendall(texts("at once"))
        assert popped.result(DEADLINE) == "at once"


@compiled_only
@own_thread
def test_the_end_of_the_connection_meanwhile() -> None:
    with new_loop() as loop, bench(loop) as made:
        loop.linger = FOR_GOOD
        popped = lingering(made)
        made.puppet.close(4000)
        assert popped.result(DEADLINE) is None


@compiled_only
@own_thread
def test_a_timeout_is_kept() -> None:
    with new_loop() as loop, bench(loop) as made:
        loop.linger = FOR_GOOD
        assert lingering(made, timeout=0.05).result(DEADLINE) is None


@compiled_only
@own_thread
def test_a_handler_sleeps_beside_another_that_has_messages() -> None:
    with new_loop() as loop, bench(loop) as other, bench(loop) as made:
        loop.linger = FOR_GOOD
        answered = other.begin_pop()
        other.peer.sendall(texts("hello"))
        assert answered.result(DEADLINE) == "hello"
        leave_first_pause(made)
        popped = made.puppet.begin(lambda: made.puppet.pop_in_message(None))
        made.puppet.until_waiting()
        made.peer.sendall(texts("wake up"))
        assert popped.result(DEADLINE) == "wake up"


@compiled_only
@own_thread
def test_it_rests_where_it_is_in_vain() -> None:
    waits, seconds = 100, 0.005

    def work() -> float:
        began = time.thread_time()
        for _ in range(waits):
            made.puppet.pop_in_message(seconds)
        return time.thread_time() - began

    with new_loop() as loop, bench(loop) as made:
        loop.linger = FOR_GOOD
        assert made.puppet.do(work) < waits * seconds / 2


# ---- the loop


class Lingers:
    """A loop looks on for good, as far as it is concerned.

    Attributes:
        results: What has come of each time.
    """

    def __init__(self, loop: Loop) -> None:
        loop.linger = FOR_GOOD
        self._loop = loop
        self.results: list[bool] = []
        self._begun = 0
        self._lingers = loop.lingers
        loop.lingers = self  # type: ignore[method-assign, assignment]

    def __call__(self) -> bool:
        self._begun += 1
        self.results.append(self._lingers())
        return self.results[-1]

    def then(self, function: Callable[[], Any]) -> Task:
        """Calls it in another thread when the loop looks on. It will not do so again."""

        def wait_and_call() -> None:
            until(lambda: self._begun > len(self.results), "the loop looks on")
            self._loop.linger = 0
            function()

        return Task(wait_and_call)


@compiled_only
@own_thread
def test_the_loop_finds_what_comes_meanwhile() -> None:
    with new_loop() as loop, bench(loop) as made:
        lingers = Lingers(loop)
        sent = lingers.then(lambda: made.peer.sendall(texts("second")))
        made.peer.sendall(texts("first"))
        spin(lambda: lingers.results, "the loop has looked on")
        assert lingers.results[0]
        spin(lambda: len(made.session.arrivals) == 2, "both messages")
        sent.result(DEADLINE)


@compiled_only
@own_thread
def test_calls_of_other_threads_do_not_wait_for_the_loop() -> None:
    called: list[bool] = []
    with new_loop() as loop, bench(loop) as made:
        lingers = Lingers(loop)
        wake = loop._async

        def wake_late() -> None:
            """The loop is to notice the call itself: between that and its watcher, whichever it sees is chance."""
            until(lambda: lingers.results, "the loop looks on no longer")
            wake.send()

        def call() -> None:
            loop._async = SimpleNamespace(send=wake_late)
            loop.call(lambda: called.append(True))
            loop._async = wake

        calling = lingers.then(call)
        made.peer.sendall(texts("first"))
        spin(lambda: called, "the call")
        assert lingers.results == [False]
        calling.result(DEADLINE)


@compiled_only
@own_thread
def test_other_watchers_of_the_hub_do_not_wait_for_the_loop() -> None:
    with new_loop() as loop, bench(loop) as made:
        ours, peers = socket.socketpair()
        with ours, peers:
            waiting = gevent.spawn(gevent.socket.wait_read, ours.fileno())
            turns()  # so that it is watched
            lingers = Lingers(loop)
            woken = lingers.then(lambda: peers.send(b"x"))
            made.peer.sendall(texts("first"))
            spin(lambda: waiting.dead, "the watcher of another greenlet")
            assert lingers.results == [True]
            woken.result(DEADLINE)


@compiled_only
@own_thread
def test_what_a_hook_leaves_to_the_hub_does_not_wait_for_the_loop() -> None:
    called: list[bool] = []

    class Hook(WebsocketsCtrlBase):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            gevent.spawn(called.append, True)

    with new_loop() as loop, tcp_pair() as (ours, peer):
        session = Hook()._krait
        over: list[Any] = []
        session.accept(loop, Config(), upgrade_request(), None, over.append)  # type: ignore[arg-type]
        connection = Connection(loop, ours, session, b"")
        lingers = Lingers(loop)
        peer.sendall(texts("first"))
        spin(lambda: called, "what the hook has spawned")
        assert lingers.results == []
        connection.abort()
        spin(lambda: over, "the end")


# ---- both


@pytest.mark.parametrize("linger", [0, 1000])
@pytest.mark.parametrize("kind", ["thread", "greenlet", "loop"])
def test_echo(serve: Serve, kind: str, linger: int) -> None:
    class Echo(WebsocketsCtrlBase):
        runs_on = kind

        def on_in_message(self, message: Any) -> None:
            self.push_out_message(message)

    class HandlerEcho(WebsocketsCtrlBase):
        runs_on = kind

        def on_thread_start(self) -> None:
            for message in self.messages():
                self.push_out_message(message)

    server = serve(Echo if kind == "loop" else HandlerEcho, linger=linger)
    with RawClient(server.port) as one, RawClient(server.port) as other:
        for number in range(200):
            one.send(texts(f"{number}"))
            one.expect(f"{number}")
            if number % 10 == 0:
                other.send(texts("beside it"))
                other.expect("beside it")
