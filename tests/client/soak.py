"""Streams through bad weather: connections are cut, reset, stalled, slowed, refused and kicked at random, for a while.

Run ``make soak``, or ``python -m tests.client.soak --seconds 600``. Afterwards every stream must be CONNECTED, its live
events in order and none of them twice, and nothing may be left: no thread, no descriptor, no exception in a thread.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from krait_ws.client import Backoff, Event, EventStream, Status, Transport
from tests.client.hub import HUBS, Hub
from tests.client.proxy import Proxy
from tests.integration.support import no_leaks

LANES = 10
"""Proxies; each has its own weather."""

CALM = 60.0
"""Seconds that all have to be CONNECTED again when the weather is over."""


class Watched:
    """A stream, and what it was seen to do."""

    def __init__(self, url: str, renew_every: float | None) -> None:
        self.statuses: Counter[str] = Counter()
        self.events = 0
        self.faults: list[str] = []
        self._last = -1
        self.stream = EventStream(
            Transport(url, proxy=None, open_timeout=2, ping_interval=0.4, ping_timeout=0.4, close_timeout=0.4),
            backoff=Backoff((0.05, 0.1, 0.2, 0.5, 1.0), jitter=True, stable_after=5),
            sync_quiet=1.5,  # longer than pings need to find a stalled connection, so that takeovers are exact here too
            sync_max=2.5,
            renew_every=renew_every,
        )
        self.stream.on_status(lambda status: self.statuses.update([status.name]))
        self.stream.on_event(self._check)

    def _check(self, event: Event) -> None:
        number = int(event.data)
        if not event.replayed:
            self.events += 1
            if number <= self._last:
                self.faults.append(f"{number} came after {self._last}")
        self._last = max(self._last, number)


def weather(proxies: list[Proxy], hub: Hub, until: float, seed: int) -> Counter[str]:
    """Faults at random until the time is over; then all is well. Returns how many of which there were."""
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    while time.monotonic() < until:
        proxy = chance.choice(proxies)
        name, function = chance.choice(changes(proxy, hub))
        faults[name] += 1
        function()
        time.sleep(chance.uniform(0.02, 0.4))
    for proxy in proxies:
        proxy.resume()
        proxy.fast()
        proxy.accept()
    return faults


def changes(proxy: Proxy, hub: Hub) -> list[tuple[str, Callable[[], Any]]]:
    return [
        ("cut", proxy.cut),
        ("reset", proxy.reset),
        ("half-open", proxy.half_open),
        ("stall", proxy.stall),
        ("resume", proxy.resume),
        ("one byte at a time", lambda: proxy.slow(1)),
        ("fast", proxy.fast),
        ("refuse", proxy.refuse),
        ("accept", proxy.accept),
        ("503", lambda: proxy.answer("503 Service Unavailable", times=2)),
        ("kick", hub.kick),
    ]


def soak(count: int, seconds: float, seed: int) -> list[str]:
    """Returns what went wrong."""
    wrong: list[str] = []
    threading.excepthook = lambda raised: wrong.append(f"a thread died of {raised.exc_value!r}")
    with no_leaks(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hub = stack.enter_context(HUBS["krait"](folder))
        proxies = [stack.enter_context(Proxy(hub.port)) for _ in range(LANES)]
        wrong += ride(hub, proxies, count, seconds, seed)
    return wrong


def ride(hub: Hub, proxies: list[Proxy], count: int, seconds: float, seed: int) -> list[str]:
    all_watched = [
        Watched(proxies[number % LANES].url("/events"), 5.0 if number % 2 else None) for number in range(count)
    ]
    for watched in all_watched:
        watched.stream.start()
    is_over = threading.Event()

    def publish() -> None:
        number = 0
        while not is_over.wait(0.02):
            hub.replay = [str(number)]
            hub.publish(str(number))
            number += 1

    publisher = threading.Thread(target=publish)
    publisher.start()
    faults = weather(proxies, hub, time.monotonic() + seconds, seed)
    deadline = time.monotonic() + CALM
    while time.monotonic() < deadline and not all(watched.stream.connected for watched in all_watched):
        time.sleep(0.1)
    wrong = [
        f"stream {number} is {watched.stream.status.name}: {watched.stream.error}"
        for number, watched in enumerate(all_watched)
        if watched.stream.status is not Status.CONNECTED
    ]
    calm_after = CALM - (deadline - time.monotonic())
    is_over.set()
    publisher.join()
    for watched in all_watched:
        wrong += watched.faults
        if not watched.stream.stop():
            wrong.append("a stream did not stop in time")
    statuses: Counter[str] = sum((watched.statuses for watched in all_watched), Counter())
    print("faults:", dict(faults))
    print("changes of status:", dict(statuses))
    events = sum(watched.events for watched in all_watched)
    print(f"live events: {events}; all well {calm_after:.1f} s after the last fault")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    for name in ("krait_ws.client", "websockets.client"):  # what they tell of faults is what happens here all the time
        logging.getLogger(name).setLevel(logging.CRITICAL)
    wrong = soak(arguments.streams, arguments.seconds, arguments.seed)
    for line in wrong:
        print("WRONG:", line)
    print("failed" if wrong else f"{arguments.streams} streams, {arguments.seconds:g} s: all CONNECTED, nothing left")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
