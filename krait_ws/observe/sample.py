"""Looks at every session and adds up what it counted. Owned by the loop.

Ten thousand sessions are 25 ms of work, so they are looked at a few at a time, and the sockets have their turn in
between. What is counted meanwhile may or may not be in the sample, but no counter is ever less than it was in the
sample before: a session that ends meanwhile is still looked at, and joins the totals of the ended ones after they
were copied.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import gevent
from gevent.lock import BoundedSemaphore

from krait_ws.observe.counters import Counters, Tally
from krait_ws.observe.loop_delay import LoopDelay
from krait_ws.observe.numbers import Numbers, from_json, merge, put, to_json
from krait_ws.session import Session
from krait_ws.waiting import monotonic

LISTED = 10
"""Connections in a list: the slowest consumers, the busiest, those with stuck handlers."""

_CHUNK = 200  # sessions that are looked at in one turn of the loop, under 1 ms
_PAUSE = 0.001  # seconds between two turns
_LEAST_AGE = 0.2  # seconds that a sample serves everybody who asks
_MAX_PART = 0.02  # of the loop's time that samples take
_RATE_OVER = (0.9, 30.0)  # seconds over which rates are taken, at least and at most

Row = dict[str, Any]


class Observed(Protocol):
    """The server."""

    sessions: set[Session]


class Sample:
    """What was found, as numbers and as lists for people.

    Attributes:
        numbers: The metrics.
        rates: By route: messages and bytes a second, in and out.
        delay: ``p50``, ``p99`` and ``max`` of the loop delay, in seconds.
        slowest, busiest, stuck: Rows of connections, at most ``LISTED`` each.
        shown: The row of the connection that was asked for, with more about it.
    """

    def __init__(self, numbers: Numbers, rates: dict[str, list[float]], delay: dict[str, float]) -> None:
        self.numbers = numbers
        self.rates = rates
        self.delay = delay
        self.slowest: list[Row] = []
        self.busiest: list[Row] = []
        self.stuck: list[Row] = []
        self.shown: dict[str, Row] = {}

    def to_json(self) -> dict[str, Any]:
        """As JSON, for workers and viewers."""
        return {**vars(self), "numbers": to_json(self.numbers)}


def merged(samples: list[dict[str, Any]], dead: Numbers) -> dict[str, Any]:
    """The samples of several workers as one, as JSON.

    Args:
        dead: The counters of workers that have ended.
    """
    rates: dict[str, list[float]] = {}
    for sample in samples:
        for route, values in sample["rates"].items():
            rates[route] = [a + b for a, b in zip(rates.get(route, (0.0,) * 4), values, strict=True)]
    return {
        "numbers": to_json(merge([dead, *(from_json(sample["numbers"]) for sample in samples)])),
        "rates": rates,
        "delay": {name: max(sample["delay"][name] for sample in samples) for name in ("p50", "p99", "max")},
        "slowest": _longest(samples, "slowest", lambda row: row["out_bytes_waiting"]),
        "busiest": _longest(samples, "busiest", lambda row: row["messages_in"] + row["messages_out"]),
        "stuck": _longest(samples, "stuck", lambda row: row["seconds"]),
        "shown": {id_: row for sample in samples for id_, row in sample["shown"].items() if row},
    }


def _longest(samples: list[dict[str, Any]], name: str, size: Callable[[Row], float]) -> list[Row]:
    return heapq.nlargest(LISTED, [row for sample in samples for row in sample[name]], key=size)


class Sampler:
    """Takes samples of a server's sessions."""

    def __init__(self, server: Observed, counters: Counters, delay: LoopDelay) -> None:
        self._server = server
        self._counters = counters
        self._delay = delay
        self._one_at_a_time = BoundedSemaphore(1)
        self._last: Sample | None = None
        self._taken_at = self._cost = 0.0
        self._rated_at = monotonic()
        self._rated: dict[str, tuple[int, ...]] = {}
        self._rates: dict[str, list[float]] = {}

    @property
    def rest(self) -> float:
        """Seconds that a sample must have for company, so that samples stay a small part of the loop's time."""
        return max(_LEAST_AGE, self._cost / _MAX_PART)

    def take(self, shown: Iterable[str] = ()) -> Sample:
        """A sample that is not older than ``rest``. Waits, in a greenlet, while it is taken.

        Args:
            shown: Ids of connections to tell more about.
        """
        with self._one_at_a_time:
            wanted = frozenset(shown)
            last = self._last
            if last is None or monotonic() - self._taken_at > self.rest or wanted - last.shown.keys():
                self._last = last = self._take(wanted)
                self._taken_at = monotonic()
            return last

    def take_last(self) -> Sample:
        """A sample of this very moment, when no session is left."""
        with self._one_at_a_time:
            return self._take(frozenset())

    def _take(self, wanted: frozenset[str]) -> Sample:
        cost = 0.0
        began = time.thread_time()
        tallies = self._counters.copies()
        sessions = list(self._server.sessions)
        slow: list[tuple[int, Session]] = []
        busy: list[tuple[int, Session]] = []
        stuck: list[Session] = []
        shown: list[Session] = []
        fullest = [0.0, 0.0]
        for start in range(0, len(sessions), _CHUNK):
            if start:
                cost += time.thread_time() - began
                gevent.sleep(_PAUSE)
                began = time.thread_time()
            for session in sessions[start : start + _CHUNK]:
                tally = tallies.get(session.route)
                if tally is None:
                    tally = tallies[session.route] = Tally()
                waiting = _look(session, tally, fullest)
                if waiting:
                    slow.append((waiting, session))
                busy.append((session.messages_in + session.messages_out, session))
                if session.is_abandoned:
                    stuck.append(session)
                if session.id in wanted:
                    shown.append(session)
            slow = heapq.nlargest(LISTED, slow, key=itemgetter(0))
            busy = heapq.nlargest(LISTED, busy, key=itemgetter(0))
        numbers = self._counters.numbers(tallies)
        put(numbers, "krait_mailbox_fullest_ratio", ("in",), fullest[0])
        put(numbers, "krait_mailbox_fullest_ratio", ("out",), fullest[1])
        put(numbers, "krait_threads", (), threads())
        put(numbers, "krait_workers", (), 1)
        self._delay.buckets.put(numbers, "krait_loop_delay_seconds")
        self._rate(tallies)
        sample = Sample(numbers, self._rates, self._delay.percentiles())
        sample.slowest = [row(session) for _, session in slow]
        sample.busiest = [row(session) for _, session in busy]
        sample.stuck = [row(session, stacks=True) for session in stuck[:LISTED]]
        sample.shown = {connection: {} for connection in wanted} | {
            session.id: row(session, stacks=True) for session in shown
        }
        self._cost = cost + time.thread_time() - began
        return sample

    def _rate(self, tallies: dict[str, Tally]) -> None:
        """Takes the rates anew when the last ones are old enough. When nobody has looked for long there are none: their
        mean over an hour would say nothing."""
        now = monotonic()
        seconds = now - self._rated_at
        if seconds < _RATE_OVER[0]:
            return
        counted: dict[str, tuple[int, ...]] = {
            route: (tally.messages_in, tally.messages_out, tally.bytes_in, tally.bytes_out)
            for route, tally in tallies.items()
        }
        self._rates = {
            route: [
                (new - old) / seconds for new, old in zip(counts, self._rated.get(route, (0, 0, 0, 0)), strict=True)
            ]
            for route, counts in counted.items()
            if seconds <= _RATE_OVER[1]
        }
        self._rated_at, self._rated = now, counted


def _look(session: Session, tally: Tally, fullest: list[float]) -> int:
    """Adds a session that is not over. Returns the bytes that wait for its client."""
    tally.add(session)
    if session.close_code is None:
        tally.open += 1
    if session.is_abandoned:
        tally.stuck += 1
    pressure = session.outgoing.pressure
    arrived = _arrived(session)
    limits = session.config
    tally.in_waiting += arrived
    tally.out_waiting += pressure.messages
    tally.out_bytes_waiting += pressure.bytes
    fullest[0] = max(fullest[0], arrived / limits.max_in_messages)
    fullest[1] = max(fullest[1], pressure.messages / limits.max_out_messages, pressure.bytes / limits.max_out_bytes)
    return pressure.bytes


def _arrived(session: Session) -> int:
    """Messages that arrived and that nobody took."""
    arrivals, incoming = session.arrivals, session.incoming
    arrived = 0 if arrivals is None else len(arrivals)
    return arrived if incoming is None or incoming is arrivals else arrived + len(incoming)


def row(session: Session, *, stacks: bool = False) -> Row:
    """A connection as the dashboard shows it. Nothing secret: no query, no header."""
    pressure = session.outgoing.pressure
    request = session.request
    shown: Row = {
        "id": session.id,
        "worker": os.getpid(),
        "route": session.route,
        "path": "" if request is None else request.path,
        "address": "" if request is None else request.remote_addr or "",
        "controller": type(session.controller).__qualname__,
        "runs_on": session.config.runs_on,
        "protocol": session.protocol or "",
        "seconds": round(monotonic() - session.opened_at, 1),
        "messages_in": session.messages_in,
        "messages_out": session.messages_out,
        "bytes_in": session.bytes_in,
        "bytes_out": session.bytes_out,
        "in_waiting": _arrived(session),
        "out_waiting": pressure.messages,
        "out_bytes_waiting": pressure.bytes,
        "dropped": pressure.dropped,
        "blocked": pressure.blocked,
        "latency": session.latency,
        "close_code": session.close_code,
        "is_abandoned": session.is_abandoned,
    }
    if stacks:
        shown["stacks"] = session.stacks()
    return shown


def threads() -> int:
    """Threads of this process: those of the system where it tells, else those that Python knows."""
    with suppress(OSError, ValueError, IndexError):
        # The process's name stands in parentheses and may have blanks in it.
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[17])
    return threading.active_count()
