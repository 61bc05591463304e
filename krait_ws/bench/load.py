"""The loop of a load: opens the connections, keeps them busy, measures, closes them.

Comes in: a plan. Goes out: a ``Result``. One thread; nothing in it waits but the poll.
"""

from __future__ import annotations

import gc
import math
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from time import perf_counter

from krait_ws.bench.latencies import Latencies
from krait_ws.bench.link import Link
from krait_ws.bench.plan import RECEIVE_SIZE, Messages, Plan
from krait_ws.bench.report import Result
from krait_ws.errors import ConfigError

_TICK = 0.25  # seconds between looks at the deadlines
_PENDING = 128  # handshakes at the same moment
_RAMP_STEP = 0.005  # seconds
_AT_ONCE, _AT_ONCE_BYTES = 64, 4 << 20  # messages that one send may take from the schedule
_SPARE_FILES = 32
_MOST_BYTES = 256 << 20  # that a connection may have in flight; the messages are made once, for all of them


class Load:
    """A load while it runs. ``run`` may be called once.

    Raises:
        ConfigError: The host has no address, or the plan asks for more connections or bytes than this process may have.
    """

    def __init__(self, plan: Plan) -> None:
        if not hasattr(select, "epoll"):
            raise ConfigError("krait-ws bench needs epoll, which only Linux has")
        self.plan = plan
        self.family, self.address = _address_of(plan)
        _allow_files(plan.connections + _SPARE_FILES)
        self.at_once = max(1, min(_AT_ONCE, _AT_ONCE_BYTES // (plan.size + 1))) if plan.rate else plan.in_flight
        if not plan.is_push and self.at_once * plan.size > _MOST_BYTES:
            raise ConfigError(
                f"{plan.in_flight:,} messages in flight of {plan.size:,} bytes are more than {_MOST_BYTES >> 20} MiB: "
                "lower --in-flight or --size"
            )
        self.messages = Messages(plan.size, self.at_once, is_binary=plan.is_binary)
        self.poller = select.epoll()
        self.buffer = bytearray(RECEIVE_SIZE)
        self.view = memoryview(self.buffer)
        self.errors: Counter[str] = Counter()
        self.latencies, self.handshakes = Latencies(), Latencies()
        self.received = self.received_bytes = 0
        self.refills = not plan.rate and not plan.is_push
        self._links: dict[int, Link] = {}
        self._rotation: list[Link] = []  # whose turn it is to send, with a rate
        self._pending = 0  # handshakes that have begun and not ended
        self._started = 0

    def run(self, progress: Callable[[str], None]) -> Result:
        """Runs the plan, or what of it is done when Ctrl-C comes.

        Args:
            progress: Called four times a second with a line for a person.
        """
        self._progress = progress
        self._since = self._cpu = self._seconds = 0.0
        self._count = self._bytes = 0
        interrupted = False
        gc.disable()  # a collection would show as a latency of the server
        try:
            self._open()
            self._measure()
            self._drain()
        except KeyboardInterrupt:
            interrupted = True
            self._end()
        finally:
            gc.enable()
            for link in list(self._links.values()):
                link.drop()
            self.poller.close()
        if not self.received and not self.errors and not interrupted:
            self.errors["silent: nothing was received"] += 1
        return Result(
            plan=self.plan,
            seconds=self._seconds,
            cpu_seconds=self._cpu,
            messages=self._count,
            payload_bytes=self._bytes,
            latencies=self.latencies,
            handshakes=self.handshakes,
            errors=self.errors,
            is_interrupted=interrupted,
        )

    def opened(self, link: Link, now: float) -> None:
        """Called by a link whose handshake is done."""
        self._pending -= 1
        self.handshakes.record(int((now - link.began) * 1e6), 1)
        link.heard = now
        if self.plan.hello:
            link.say_hello()
        if self.refills:
            link.send(self.plan.in_flight, now)

    def forget(self, link: Link) -> None:
        """Called by a link that ends."""
        self._pending -= not link.is_open
        self._links.pop(link.fd, None)
        self._rotation = []

    # ---- phases

    def _open(self) -> None:
        plan = self.plan
        for elapsed in self._ticks("opening"):
            due = plan.connections if elapsed >= plan.ramp else int(plan.connections * elapsed / plan.ramp) + 1
            while self._started < due and self._pending < _PENDING:
                self._start_link()
            if self._started == plan.connections and not self._pending:
                break
            self._poll(_RAMP_STEP if self._started < plan.connections else _TICK)

    def _start_link(self) -> None:
        self._started += 1
        self._pending += 1
        try:
            link = Link(self, self._started)
        except OSError as error:
            self._pending -= 1
            self.errors[f"refused: {(error.strerror or str(error)).lower()}"] += 1
            return
        self._links[link.fd] = link

    def _measure(self) -> None:
        self.latencies.clear()
        self.received = self.received_bytes = 0
        self._since, self._cpu = perf_counter(), time.process_time()
        scheduled = 0
        for elapsed in self._ticks("running"):
            if elapsed >= self.plan.seconds or not self._links:
                self._send_due(scheduled, self.plan.seconds)  # the schedule is kept to its end
                break
            wait = min(_TICK, self.plan.seconds - elapsed)
            if self.plan.rate:
                scheduled = self._send_due(scheduled, elapsed)
                # epoll counts in milliseconds, which is too coarse for a schedule; select on the epoll is not.
                next_due = scheduled / self.plan.rate - (perf_counter() - self._since)
                select.select([self.poller], [], [], max(0.0, min(wait, next_due)))
                wait = 0
            self._poll(wait)
        self._end()

    def _send_due(self, scheduled: int, elapsed: float) -> int:
        """Sends what the schedule asks for by now, in turn on every connection; a message that is late counts from when
        it was due."""
        due = math.ceil(min(elapsed, self.plan.seconds) * self.plan.rate)
        for number in range(scheduled, due):
            if not self._rotation:  # at the beginning, and when a connection is lost
                self._rotation = list(self._links.values())
                if not self._rotation:
                    break
            self._rotation[number % len(self._rotation)].send(1, self._since + number / self.plan.rate)
        return due

    def _end(self) -> None:
        """The end of what is measured."""
        self.refills = False
        if self._since and not self._seconds:
            self._seconds, self._cpu = perf_counter() - self._since, time.process_time() - self._cpu
            self._count = self.received
            self._bytes = self.received_bytes if self.plan.is_push else self.received * self.plan.size

    def _drain(self) -> None:
        """Every message that was sent must come back, and every close frame be answered."""
        for _ in self._ticks("waiting for the last echoes"):
            if not any(link.sent for link in self._links.values()):
                break
            self._poll(_TICK)
        for link in list(self._links.values()):
            link.close()
        for elapsed in self._ticks("closing"):
            if not self._links:
                break
            if elapsed > self.plan.timeout:
                for link in list(self._links.values()):
                    link.fail(f"timeout: no close frame within {self.plan.timeout:g} s")
            self._poll(_TICK)

    # ---- loop

    def _poll(self, wait: float) -> None:
        links = self._links
        for fd, events in self.poller.poll(wait):
            link = links.get(fd)
            if link is None:
                continue
            if events == 1:  # EPOLLIN alone
                link.read()
            else:
                link.ready(events)

    def _ticks(self, phase: str) -> Iterator[float]:
        """Seconds since its beginning, for ever; looks at the deadlines and reports progress now and then."""
        began = shown = perf_counter()
        received = self.received
        while True:
            now = perf_counter()
            if now - shown >= _TICK:
                self._check_deadlines(now)
                rate = max(0, self.received - received) / (now - shown)
                self._progress(f"{phase}: {self._state(rate)}")
                shown, received = now, self.received
            yield now - began

    def _state(self, rate: float) -> str:
        done = f", {perf_counter() - self._since:.0f} of {self.plan.seconds:g} s" if self._since else ""
        errors = f", {sum(self.errors.values()):,} errors" if self.errors else ""
        return f"{len(self._links) - self._pending:,} connections, {rate:,.0f} messages/s{done}{errors}"

    def _check_deadlines(self, now: float) -> None:
        limit = self.plan.timeout
        for link in list(self._links.values()):
            if not link.is_open and now - link.began > limit:
                link.fail(f"timeout: no handshake within {limit:g} s")
            elif link.sent and now - link.sent[0][0] > limit:
                link.fail(f"timeout: no echo within {limit:g} s")


def _address_of(plan: Plan) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    try:
        found = socket.getaddrinfo(plan.target.host, plan.target.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # DNS cannot have such a name
        raise ConfigError(f"{plan.target.host!r} is no name of a host") from None
    except OSError as error:
        raise ConfigError(f"{plan.target.host}: {error.strerror or error}") from None
    family, *_, address = found[0]
    return family, address


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ConfigError(f"{count} open files are needed and {hard} allowed: raise the limit with ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
