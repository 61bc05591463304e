"""Numbers: how they add up, merge and travel."""

from __future__ import annotations

import json

import pytest

from krait_ws.observe.counters import Counters, Tally, reason_of
from krait_ws.observe.loop_delay import INTERVAL, LoopDelay
from krait_ws.observe.numbers import METRICS, Buckets, Numbers, cumulative, from_json, merge, put, to_json


def test_workers_numbers_add_up_but_for_peaks() -> None:
    one: Numbers = {"krait_connections": {("/a",): 2, ("/b",): 1}, "krait_mailbox_fullest_ratio": {("in",): 0.5}}
    other: Numbers = {"krait_connections": {("/a",): 3}, "krait_mailbox_fullest_ratio": {("in",): 0.25}}
    assert merge([one, other]) == {
        "krait_connections": {("/a",): 5, ("/b",): 1},
        "krait_mailbox_fullest_ratio": {("in",): 0.5},
    }
    assert one["krait_connections"] == {("/a",): 2, ("/b",): 1}, "merging changes nothing of what is merged"


def test_of_a_dead_worker_only_what_grows_is_left() -> None:
    numbers: Numbers = {metric.name: {("x",): 1.0} for metric in METRICS}
    left = cumulative(numbers)
    assert set(left) == {metric.name for metric in METRICS if metric.kind in ("counter", "histogram")}


def test_numbers_survive_json() -> None:
    numbers: Numbers = {"krait_messages": {("/[room]", "in"): 3}, "krait_threads": {(): 7}}
    assert from_json(json.loads(json.dumps(to_json(numbers)))) == numbers


def test_metrics_are_named_as_prometheus_wants() -> None:
    for metric in METRICS:
        assert metric.name.startswith("krait_")
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert metric.kind in ("gauge", "peak", "counter", "histogram")


def test_a_value_on_a_bound_belongs_to_it() -> None:
    buckets = Buckets((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        buckets.observe(value)
    numbers: Numbers = {}
    buckets.put(numbers, "x", ("/a",))
    assert numbers == {"x": {("/a", "1.0"): 2, ("/a", "2.0"): 2, ("/a", "+Inf"): 1, ("/a", "sum"): 14.0}}


# ---- loop delay


class Clock:
    """A loop whose timers nobody fires."""

    def __init__(self) -> None:
        self.timers: list[object] = []

    def call_later(self, seconds: float, function: object) -> object:
        assert seconds == INTERVAL
        self.timers.append(function)
        return self

    def cancel(self) -> None:
        self.timers.clear()


def test_a_loop_that_stood_still_counts_for_all_that_would_have_waited() -> None:
    delay = LoopDelay(Clock())
    delay.note(0.35)
    assert sum(delay.buckets.counts) == 4  # 0.35, 0.25, 0.15 and 0.05
    assert delay.buckets.sum == pytest.approx(0.8)
    assert delay.percentiles()["max"] == 0.35


def test_a_timer_is_never_early() -> None:
    delay = LoopDelay(Clock())
    delay.note(-0.001)
    assert delay.buckets.sum == 0


def test_percentiles_are_of_the_last_minute() -> None:
    delay = LoopDelay(Clock())
    assert delay.percentiles() == {"p50": 0.0, "p99": 0.0, "max": 0.0}
    delay.note(3.0)
    for number in range(600):
        delay.note(number / 10_000)
    assert delay.percentiles() == {"p50": 299 / 10_000, "p99": 594 / 10_000, "max": 599 / 10_000}


def test_an_hour_of_standing_still_is_bounded_work() -> None:
    delay = LoopDelay(Clock())
    delay.note(3600.0)
    assert sum(delay.buckets.counts) == 600


# ---- counters


class Ended:
    """A session that is over, as the counters see one."""

    class outgoing:  # noqa: N801
        dropped = 1
        blocked = 2

    messages_in, messages_out, bytes_in, bytes_out = 3, 4, 5, 6
    is_abandoned = True
    handler_seconds: float | None = 0.5

    def __init__(self, route: str = "/a", close_code: int = 1000) -> None:
        self.route = route
        self.close_code = close_code


def numbers_of(counters: Counters) -> Numbers:
    return counters.numbers(counters.copies())


def test_what_has_ended_is_added_to_its_route() -> None:
    counters = Counters()
    for session in (Ended("/a"), Ended("/a", 1006), Ended("/b")):
        counters.ended(session)  # type: ignore[arg-type]
    numbers = numbers_of(counters)
    assert numbers["krait_connections_opened"] == {("/a",): 2, ("/b",): 1}
    assert numbers["krait_connections_closed"] == {("/a", "1000"): 1, ("/a", "1006"): 1, ("/b", "1000"): 1}
    assert numbers["krait_messages"][("/a", "in")] == 6
    assert numbers["krait_messages"][("/a", "out")] == 8
    assert numbers["krait_bytes"][("/a", "in")] == 10
    assert numbers["krait_bytes"][("/a", "out")] == 12
    assert numbers["krait_pushes_dropped"] == {("/a",): 2, ("/b",): 1}
    assert numbers["krait_pushes_blocked"] == {("/a",): 4, ("/b",): 2}
    assert numbers["krait_handlers_abandoned"] == {("/a",): 2, ("/b",): 1}
    assert numbers["krait_handler_seconds"][("/a", "1.0")] == 2
    assert numbers["krait_handler_seconds"][("/a", "sum")] == 1.0
    assert numbers["krait_connections"] == {("/a",): 0, ("/b",): 0}


def test_copies_are_copies() -> None:
    counters = Counters()
    counters.ended(Ended())  # type: ignore[arg-type]
    copies = counters.copies()
    before = {name: repr(getattr(copies["/a"], name)) for name in Tally.__slots__ if name != "handlers"}
    bounds = list(copies["/a"].handlers.counts)
    counters.ended(Ended())  # type: ignore[arg-type]
    assert {name: repr(getattr(copies["/a"], name)) for name in before} == before
    assert copies["/a"].handlers.counts == bounds
    assert copies["/a"].opened == 1


def test_clients_cannot_make_labels_without_end() -> None:
    counters = Counters()
    for code in range(3000, 5000):
        counters.ended(Ended(close_code=code))  # type: ignore[arg-type]
    closed = numbers_of(counters)["krait_connections_closed"]
    assert len(closed) == 33
    assert closed[("/a", "other")] == 2000 - 32
    assert numbers_of(counters)["krait_connections_closed"] == closed, "a code keeps its label"


def test_refusals_are_counted_by_reason() -> None:
    counters = Counters()
    for reason in ("origin", "origin", "draining"):
        counters.refused(reason)
    assert numbers_of(counters)["krait_handshakes_refused"] == {("origin",): 2, ("draining",): 1}


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "script"), (401, "unauthorized"), (403, "forbidden"), (404, "not_found"), (500, "error"), (302, "script")],
)
def test_a_scripts_refusal_is_one_of_a_few_words(status: int, reason: str) -> None:
    assert reason_of(status) == reason


def test_setting_a_value_twice_keeps_the_last() -> None:
    numbers: Numbers = {}
    put(numbers, "x", (), 1)
    put(numbers, "x", (), 2)
    assert numbers == {"x": {(): 2}}
