"""What waits for the callbacks of a stream is bounded."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

import pytest

from krait_ws.client import feed as feed_module
from krait_ws.client.feed import Arrived, Ended, Inbox
from tests.helpers import Task


class FakeFeed:
    is_silent = False


def item(feed: Any, message: str) -> Arrived:
    return Arrived(feed, message, datetime.now(timezone.utc), time.monotonic())


def test_a_full_inbox_makes_its_feed_wait_until_there_is_room() -> None:
    inbox, feed = Inbox(size=2), FakeFeed()
    items = [item(feed, str(number)) for number in range(3)]
    inbox.put(items[0])
    inbox.put(items[1])
    waiting = Task(lambda: inbox.put(items[2])).until_blocked()
    assert inbox.take(None) is items[0]
    waiting.result()
    assert [inbox.take(0), inbox.take(0), inbox.take(0)] == [items[1], items[2], None]


def test_large_messages_fill_an_inbox_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "INBOX_BYTES", 10)
    inbox, feed = Inbox(), FakeFeed()
    items = [item(feed, text) for text in ("x" * 9, "x" * 100, "last")]
    inbox.put(items[0])
    inbox.put(items[1])
    waiting = Task(lambda: inbox.put(items[2])).until_blocked()
    assert inbox.take(None) is items[0]
    assert waiting.until_blocked().is_running
    assert inbox.take(None) is items[1]
    waiting.result()
    assert [inbox.take(0), inbox.take(0)] == [items[2], None]


def test_the_end_of_a_connection_needs_no_room() -> None:
    inbox, feed = Inbox(size=1), FakeFeed()
    inbox.put(item(feed, "last"))
    Task(lambda: inbox.put(Ended(feed, ValueError()))).result()  # type: ignore[arg-type]
    assert isinstance(inbox.take(0), Arrived)
    assert isinstance(inbox.take(0), Ended)


def test_a_silenced_feed_waits_no_more_and_brings_nothing() -> None:
    inbox, feed, other = Inbox(size=1), FakeFeed(), FakeFeed()
    inbox.put(item(feed, "one"))
    waiting = Task(lambda: inbox.put(item(feed, "two"))).until_blocked()
    inbox.drop(feed)  # type: ignore[arg-type]
    waiting.result()
    assert inbox.take(0) is None
    kept = item(other, "of another")
    inbox.put(kept)
    assert inbox.take(0) is kept


def test_interrupting_wakes_who_takes() -> None:
    inbox = Inbox()
    waiting = Task(lambda: inbox.take(None)).until_blocked()
    inbox.interrupt()
    assert waiting.result() is None
    assert inbox.take(None) is None
