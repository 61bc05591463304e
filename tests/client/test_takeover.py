"""The seam between two connections, message by message, without a connection or a clock."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from krait_ws.client import takeover
from krait_ws.client.feed import Arrived
from krait_ws.client.takeover import Quiet, Takeover

NOW = datetime.now(timezone.utc)


class FakeFeed:
    give_up_at = 50.0


def item(message: str, at: float) -> Arrived:
    return Arrived(FakeFeed(), message, NOW, at)  # type: ignore[arg-type]


def make(identity: Any = lambda message: message) -> Takeover:
    return Takeover(FakeFeed(), identity, overlap=1.0, longest=3.0)  # type: ignore[arg-type]


def delivered(old: list[tuple[str, float]], new: list[tuple[str, float]], **options: Any) -> list[str]:
    """What the user gets from two connections; the new one opens at 10, with 1 s of quiet, 3 s at most, and overlaps
    for 1 s. Does what the stream's thread does."""
    takeover = make(**options)
    got = []
    arrivals = sorted([(at, "old", message) for message, at in old] + [(at, "new", message) for message, at in new])
    for at, which, message in [*arrivals, (99.0, "end", "")]:
        if at >= 10.0 and not takeover.is_open:
            takeover.opened(Quiet(1.0, 3.0, 10.0))
        for _ in range(2 if takeover.is_open else 0):
            now = min(at, takeover.due_at)
            takeover.settle_if_due(now)
            if takeover.is_switch_due(now):
                got += [kept.message for kept in takeover.switch(now)]
        arrived = item(message, at)
        if which == "old" and not takeover.is_switched:
            takeover.old_brings(arrived)
            got.append(message)
        elif which == "new" and not takeover.is_switched:
            takeover.new_brings(arrived)
        elif which == "new" and (at >= takeover.due_at or takeover.is_new(arrived)):
            got.append(message)
    assert takeover.is_switched
    return [str(message) for message in got]


def numbered(first: int, last: int, start: float, step: float) -> list[tuple[str, float]]:
    return [(f"e{number}", start + (number - first) * step) for number in range(first, last + 1)]


def seen_later(old: list[tuple[str, float]], skew: float) -> list[tuple[str, float]]:
    """What was published since 10.1, on a connection that is ``skew`` behind the old one, or ahead of it."""
    return [(message, at + skew) for message, at in old if at + min(skew, 0) > 10.05]


@pytest.mark.parametrize("skew", [-2.9, -1.5, -0.5, -0.1, 0.0, 0.1, 0.5, 1.5, 2.9])
def test_every_event_comes_once_whichever_connection_is_ahead(skew: float) -> None:
    old = numbered(0, 199, 9.0, 0.1)
    new = [("state", 10.0), ("e10", 10.05), *seen_later(old, skew)]
    assert delivered(old, new) == [f"e{number}" for number in range(200)]


@pytest.mark.parametrize("skew", [-5.0, 9.0])
def test_with_a_connection_that_is_too_far_behind_it_does_not_hold(skew: float) -> None:
    """So that the test above is known to be able to fail."""
    old = numbered(0, 199, 9.0, 0.1)
    new = [("state", 10.0), ("e10", 10.05), *seen_later(old, skew)]
    assert delivered(old, new) != [f"e{number}" for number in range(200)]


def test_two_connections_that_bring_neighbours_in_different_orders() -> None:
    old = numbered(0, 199, 9.0, 0.1)
    new = [(message, at + (0.25 if int(message[1:]) % 7 == 0 else 0.0)) for message, at in old if at > 10.1]
    assert sorted(delivered(old, new)) == sorted(f"e{number}" for number in range(200))


def test_a_replay_is_not_delivered() -> None:
    assert delivered([], [("state 1", 10.0), ("state 2", 10.5), ("live", 14.0)]) == ["live"]


def test_an_identity_of_the_user_finds_what_each_connection_numbers_for_itself() -> None:
    old = [(f"a{number} on", 10.0 + number / 10) for number in range(40)]
    new = [(f"b{number} on", 10.0 + number / 10) for number in range(80)]
    got = delivered(old, new, identity=lambda message: int(message.split()[0][1:]))
    assert [int(message.split()[0][1:]) for message in got] == list(range(80))


def test_equal_messages_are_counted() -> None:
    """Three on the old one, five on the new one since it settled: two are new."""
    old = [("tick", 11.1), ("tick", 11.2), ("tick", 11.3)]
    new = [("tick", at) for at in (11.1, 11.2, 11.3, 12.5, 12.6)]
    assert delivered(old, new) == ["tick"] * 5


def test_what_is_no_event_comes_from_one_of_the_two() -> None:
    got = delivered([("beat", 11.2)], [("beat", 11.2), ("beat", 14.5)], identity=lambda message: None)
    assert got == ["beat"] * 2


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "MOST_KEPT", 10)
    old = numbered(0, 400, 10.0, 0.01)
    assert delivered(old, old)[:401] == [f"e{number}" for number in range(401)]


def test_what_messages_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "MOST_HELD", 50)
    old = numbered(0, 400, 5.0, 0.02)
    new = [(message, at) for message, at in old if at > 10.0]
    assert delivered(old, new)[:401] == [f"e{number}" for number in range(401)]
    one = make()
    for number in range(100):
        one.old_brings(item(f"e{number:03}", number / 100))
    assert len(one._before) <= 12


def test_what_came_before_it_settled_is_there_when_it_must_replace_a_lost_one() -> None:
    takeover = make()
    takeover.opened(Quiet(1.0, 3.0, 10.0))
    takeover.new_brings(item("state", 10.1))
    assert [kept.message for kept in takeover.unsettled()] == ["state"]


def test_a_connection_that_does_not_open_is_due_when_it_is_given_up() -> None:
    assert make().due_at == FakeFeed.give_up_at


def test_quiet() -> None:
    quiet = Quiet(1.0, 3.0, since=10.0)
    assert quiet.over_at == 11.0
    quiet.disturb(10.5)
    assert quiet.over_at == 11.5
    quiet.disturb(12.9)
    assert quiet.over_at == 13.0
