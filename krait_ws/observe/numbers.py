"""The metrics: their table, and numbers that can be added up, sent as JSON and shown.

Numbers are kept by metric and by the values of its labels. Those of several workers are merged: counters and most
gauges are sums. A histogram's numbers are its buckets, each under its upper bound as a last label, and ``"sum"``.

Thread: any, for numbers that nobody else changes.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Labels: TypeAlias = tuple[str, ...]
Numbers: TypeAlias = dict[str, dict[Labels, float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the table.

    Attributes:
        name: As Prometheus knows it; a counter's gets ``_total`` behind it.
        kind: ``"gauge"``, ``"counter"`` or ``"histogram"``; a ``"peak"`` is a gauge of which workers give the largest.
        labels: The names of its labels. Each has few values, whatever clients do.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric("krait_connections", "gauge", "WebSocket connections that are open.", ("route",)),
    Metric("krait_connections_opened", "counter", "Upgrades that were accepted.", ("route",)),
    Metric("krait_connections_closed", "counter", "Connections that ended, by close code.", ("route", "code")),
    Metric("krait_handshakes_refused", "counter", "Upgrades that were refused, by reason.", ("reason",)),
    Metric("krait_messages", "counter", "Messages from clients (in) and to them (out).", ("route", "direction")),
    Metric("krait_bytes", "counter", "Bytes of their sockets after the upgrade.", ("route", "direction")),
    Metric("krait_mailbox_messages", "gauge", "Messages that wait in mailboxes.", ("route", "direction")),
    Metric("krait_mailbox_out_bytes", "gauge", "Bytes that wait in out-mailboxes.", ("route",)),
    Metric("krait_mailbox_fullest_ratio", "peak", "The fullest mailbox, as a part of its limit.", ("direction",)),
    Metric("krait_pushes_dropped", "counter", "Messages that slow_consumer dropped.", ("route",)),
    Metric("krait_pushes_blocked", "counter", "Pushes that had to wait for room.", ("route",)),
    Metric("krait_handler_seconds", "histogram", "How long handlers ran that have ended.", ("route",)),
    Metric("krait_handlers_abandoned", "counter", "Handlers that did not end within stop_timeout.", ("route",)),
    Metric("krait_handlers_stuck", "gauge", "Abandoned handlers that still run.", ("route",)),
    Metric("krait_loop_delay_seconds", "histogram", "How long something ready waits for the network loop."),
    Metric("krait_threads", "gauge", "Threads of the system."),
    Metric("krait_workers", "gauge", "Worker processes."),
)
"""Every metric, in the order in which they are shown."""

_CUMULATIVE = frozenset(metric.name for metric in METRICS if metric.kind in ("counter", "histogram"))
_PEAKS = frozenset(metric.name for metric in METRICS if metric.kind == "peak")


class Buckets:
    """A histogram: how many values were not above each bound.

    Args:
        bounds: Ascending; what is above the last is counted too.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def put(self, numbers: Numbers, name: str, labels: Labels = ()) -> None:
        """Adds them to ``numbers``."""
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            add(numbers, name, (*labels, str(bound)), count)
        add(numbers, name, (*labels, "sum"), self.sum)


def add(numbers: Numbers, name: str, labels: Labels, value: float) -> None:
    """Adds a value to what is there."""
    values = numbers.setdefault(name, {})
    values[labels] = values.get(labels, 0) + value


def put(numbers: Numbers, name: str, labels: Labels, value: float) -> None:
    """Sets a value."""
    numbers.setdefault(name, {})[labels] = value


def merge(parts: Iterable[Numbers]) -> Numbers:
    """The numbers of several workers as one."""
    merged: Numbers = {}
    for numbers in parts:
        for name, values in numbers.items():
            into = merged.setdefault(name, {})
            for labels, value in values.items():
                before = into.get(labels, 0)
                into[labels] = max(before, value) if name in _PEAKS else before + value
    return merged


def cumulative(numbers: Numbers) -> Numbers:
    """Those that only grow: what is left of a worker that has ended."""
    return {name: values for name, values in numbers.items() if name in _CUMULATIVE}


def to_json(numbers: Numbers) -> dict[str, list[list[Any]]]:
    """As JSON can hold them: a list of labels and value for each."""
    return {name: [[*labels, value] for labels, value in values.items()] for name, values in numbers.items()}


def from_json(data: dict[str, list[list[Any]]]) -> Numbers:
    """What ``to_json`` made."""
    return {name: {tuple(row[:-1]): row[-1] for row in rows} for name, rows in data.items()}
