"""Samples: what they add up while sessions come and go, and how little they hold up the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from werkzeug.test import EnvironBuilder

from krait_ws.context import WebsocketsRequest
from krait_ws.http import Request
from krait_ws.observe import sample
from krait_ws.observe.counters import Counters
from krait_ws.observe.loop_delay import LoopDelay
from krait_ws.observe.numbers import Numbers
from krait_ws.observe.sample import Sample, Sampler, merged
from krait_ws.session import Session
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import eventually


class Quiet(WebsocketsCtrlBase):
    runs_on = "loop"


class Timers:
    def call_later(self, seconds: float, function: object) -> Timers:
        return self


class Server:
    """Sessions without connections, counted as the server does it."""

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self.counters = Counters()
        self.sampler = Sampler(self, self.counters, LoopDelay(Timers()))
        self._controllers: list[Quiet] = []  # a session does not keep its controller's other half alive

    def open(self, messages: int = 1, route: str = "/") -> Session:
        controller = Quiet()
        self._controllers.append(controller)
        session = controller._krait
        session.request = WebsocketsRequest(Request(EnvironBuilder("/").get_environ()), route=route)
        session.messages_in = messages
        self.sessions.add(session)
        return session

    def end(self, session: Session) -> None:
        session.close_code = 1000
        session.messages_in += 1  # its last one
        self.sessions.discard(session)
        self.counters.ended(session)

    def take(self) -> Sample:
        return self.sampler._take(frozenset())


def messages(numbers: Numbers) -> float:
    return numbers["krait_messages"]["/", "in"]


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server()
    gevent.get_hub().destroy(destroy_loop=True)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], list[float]]:
    """``between(function)`` runs it each time a sample lets the loop have its turn; returns the pauses."""

    def between(function: Callable[[], None]) -> list[float]:
        pauses: list[float] = []
        monkeypatch.setattr(sample.gevent, "sleep", lambda seconds: (pauses.append(seconds), function()))
        return pauses

    return between


def test_many_sessions_are_looked_at_a_few_at_a_time(
    server: Server, between: Callable[[Callable[[], None]], list[float]]
) -> None:
    for _ in range(sample._CHUNK * 3 + 1):
        server.open()
    pauses = between(lambda: None)
    assert messages(server.take().numbers) == sample._CHUNK * 3 + 1
    assert len(pauses) == 3
    assert min(pauses) > 0, "a pause of 0 s would give the sockets no turn"


def test_what_ends_meanwhile_is_counted_once(
    server: Server, between: Callable[[Callable[[], None]], list[float]]
) -> None:
    sessions = [server.open(messages=10) for _ in range(sample._CHUNK * 3)]
    before = messages(server.take().numbers)
    assert before == 10 * len(sessions)

    def end_some() -> None:
        for session in list(server.sessions)[:100]:
            server.end(session)
        server.open(messages=1000)

    between(end_some)
    during = messages(server.take().numbers)
    assert before <= during <= before + 200, "the last messages of 200 may be in it, what came after its start is not"
    between(lambda: None)
    after = server.take().numbers
    assert messages(after) == before + 200 + 2 * 1000
    assert after["krait_connections_closed"] == {("/", "1000"): 200}
    assert after["krait_connections"] == {("/",): len(sessions) - 200 + 2}


def test_lists_have_the_largest_first_and_an_end(server: Server) -> None:
    for number in range(30):
        session = server.open(messages=number)
        session.outgoing.push(bytes(number + 2))
    taken = server.take()
    assert [row["messages_in"] for row in taken.busiest] == list(range(29, 19, -1))
    assert [row["out_bytes_waiting"] for row in taken.slowest] == list(range(31, 21, -1))


def test_equal_sessions_are_no_trouble(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krait_ws.session._random.getrandbits", lambda _: 0)
    for _ in range(30):
        server.open(messages=1).outgoing.push(b"xx")
    taken = server.take()
    assert len(taken.busiest) == len(taken.slowest) == sample.LISTED


def test_a_sample_serves_everybody_for_a_moment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sample, "monotonic", lambda: now)
    first = server.sampler.take()
    assert server.sampler.take() is first
    now += server.sampler.rest + 0.001
    assert server.sampler.take() is not first


def test_samples_that_cost_much_are_rare(server: Server) -> None:
    server.sampler._cost = 0.1
    assert server.sampler.rest == pytest.approx(5.0)


def test_two_who_ask_at_once_get_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "monotonic", lambda: 100.0)  # on a busy machine it may be too old for the second
    for _ in range(sample._CHUNK * 2):
        server.open()
    first, second = gevent.spawn(server.sampler.take), gevent.spawn(server.sampler.take)
    assert first.get(timeout=10) is second.get(timeout=10)


def test_after_a_long_time_there_is_no_rate_at_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sample, "monotonic", lambda: now)
    server.sampler._rated_at = now
    session = server.open(messages=0)
    now += 3600
    session.messages_in = 3600
    assert server.take().rates == {}
    now += 2
    session.messages_in += 10
    assert server.take().rates == {"/": [5.0, 0.0, 0.0, 0.0]}
    now += 0.1
    assert server.take().rates == {"/": [5.0, 0.0, 0.0, 0.0]}, "over less than a second they would jump about"


def sample_of(**changes: Any) -> dict[str, Any]:
    numbers = {"krait_connections": [["/", 1]]}
    empty: dict[str, Any] = {
        "numbers": numbers, "rates": {}, "delay": {"p50": 0.0, "p99": 0.0, "max": 0.0}, "slowest": [], "busiest": [],
        "stuck": [], "shown": {},
    }  # fmt: skip
    return {**empty, **changes}


def test_workers_samples_become_one() -> None:
    row = {"id": "0123abcd", "out_bytes_waiting": 5}
    other = {"id": "ffffffff", "out_bytes_waiting": 7}
    view = merged(
        [
            sample_of(rates={"/": [1, 2, 3, 4]}, delay={"p50": 1, "p99": 5, "max": 6}, slowest=[row], shown={"a": {}}),
            sample_of(
                rates={"/": [1, 1, 1, 1]}, delay={"p50": 2, "p99": 3, "max": 9}, slowest=[other], shown={"a": row}
            ),
        ],
        {"krait_messages": {("/", "in"): 10}},
    )
    assert view["numbers"] == {"krait_connections": [["/", 2]], "krait_messages": [["/", "in", 10]]}
    assert view["rates"] == {"/": [2, 3, 4, 5]}
    assert view["delay"] == {"p50": 2, "p99": 5, "max": 9}, "the worst worker's"
    assert view["slowest"] == [other, row]
    assert view["shown"] == {"a": row}


def test_threads_are_those_of_the_system() -> None:
    def counts_three_more() -> bool:
        before = sample.threads()
        release = threading.Event()
        threads = [threading.Thread(target=release.wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        count = sample.threads()
        release.set()
        for thread in threads:
            thread.join()
        return count == before + 3

    eventually(counts_three_more, what="three more")  # a thread of an earlier test may end between the two looks
