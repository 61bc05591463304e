"""Callbacks by key."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any

import pytest

from krait_ws.client import EVERYTHING, Event, Subscriptions

NOW = datetime.now(timezone.utc)


def event(data: Any, replayed: bool = False) -> Event:
    return Event(json.dumps(data), replayed, NOW)


def by_device(**options: Any) -> Subscriptions:
    return Subscriptions(lambda item: item.get("iddevice"), **options)


def test_items_go_to_those_who_listen_in_the_order_in_which_they_came() -> None:
    subscriptions, heard = by_device(), []
    subscriptions.add(5, lambda event: heard.append(("first", event)))
    subscriptions.add(5, lambda event: heard.append(("second", event)))
    subscriptions.add(6, lambda event: heard.append(("other", event)))
    subscriptions(event({"iddevice": 5, "level": 1}, replayed=True))
    assert heard == [
        ("first", Event({"iddevice": 5, "level": 1}, True, NOW)),
        ("second", Event({"iddevice": 5, "level": 1}, True, NOW)),
    ]


def test_a_message_may_be_a_list() -> None:
    subscriptions, heard = by_device(), []
    subscriptions.add(5, lambda event: heard.append(event.data))
    subscriptions(event([{"iddevice": 5, "n": 1}, {"iddevice": 6}, {"iddevice": 5, "n": 2}]))
    assert heard == [{"iddevice": 5, "n": 1}, {"iddevice": 5, "n": 2}]


def test_status_messages_are_skipped_and_data_with_a_status_is_not() -> None:
    """pyControl4 takes every message with a ``status`` for one about the connection."""
    subscriptions, heard = by_device(skip=lambda item: set(item) == {"status"}), []
    subscriptions.add(EVERYTHING, lambda event: heard.append(event.data))
    subscriptions(event({"status": "OK"}))
    subscriptions(event({"iddevice": 5, "status": "open"}))
    assert heard == [{"iddevice": 5, "status": "open"}]


def test_everything_comes_last_and_sees_what_has_no_key() -> None:
    subscriptions, heard = by_device(), []
    subscriptions.add(EVERYTHING, lambda event: heard.append(("all", event.data)))
    subscriptions.add(5, lambda event: heard.append(("five", event.data)))
    subscriptions(event([{"iddevice": 5}, {}]))
    assert heard == [("five", {"iddevice": 5}), ("all", {"iddevice": 5}), ("all", {})]


def test_the_same_callback_is_there_once() -> None:
    subscriptions, heard = by_device(), []
    for _ in range(2):
        subscriptions.add(5, heard.append)
    assert dict(subscriptions.callbacks) == {5: (heard.append,)}
    subscriptions(event({"iddevice": 5}))
    assert len(heard) == 1


def test_removing() -> None:
    subscriptions = by_device()
    one, two = [], []  # type: ignore[var-annotated]
    remove_one = subscriptions.add(5, one.append)
    subscriptions.add(5, two.append)
    subscriptions.add(6, two.append)
    remove_one()
    remove_one()
    assert dict(subscriptions.callbacks) == {5: (two.append,), 6: (two.append,)}
    subscriptions.remove(5)
    subscriptions.remove(7)
    assert dict(subscriptions.callbacks) == {6: (two.append,)}


def test_the_mapping_is_read_only_and_stays_as_it_was() -> None:
    subscriptions = by_device()
    before = subscriptions.callbacks
    subscriptions.add(5, print)
    assert dict(before) == {}
    with pytest.raises(TypeError):
        subscriptions.callbacks[6] = ()  # type: ignore[index]


def test_a_callback_that_raises_is_logged_and_the_others_run(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise LookupError("mine")

    subscriptions, heard = by_device(), []
    subscriptions.add(5, broken)
    subscriptions.add(5, heard.append)
    subscriptions(event([{"iddevice": 5}, {"iddevice": 5}]))
    assert len(heard) == 2
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError] * 2


def test_what_cannot_be_decoded_or_has_no_key_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    subscriptions, heard = by_device(), []
    subscriptions.add(5, lambda event: heard.append(event.data))
    with caplog.at_level(logging.ERROR):
        subscriptions(Event("{", False, NOW))
        subscriptions(Event('[7, {}, {"iddevice": 5}, {"iddevice": []}]', False, NOW))
    assert heard == [{"iddevice": 5}]
    assert len(caplog.records) == 3


def test_a_callback_may_remove_itself_and_add_others() -> None:
    subscriptions, heard = by_device(), []

    def once(event: Event) -> None:
        heard.append("once")
        subscriptions.remove(5, once)
        subscriptions.add(5, lambda event: heard.append("later"))

    subscriptions.add(5, once)
    subscriptions(event([{"iddevice": 5}, {"iddevice": 5}]))
    assert heard == ["once", "later"]


def test_another_way_to_decode() -> None:
    subscriptions, heard = Subscriptions(lambda item: item[0], decode=lambda text: tuple(text.split(":"))), []
    subscriptions.add("a", lambda event: heard.append(event.data))
    subscriptions(Event("a:1", False, NOW))
    assert heard == [("a", "1")]
