"""Deadlines: each item expires once, in its time, unless it is discarded before."""

from __future__ import annotations

import time

from krait_ws.network.deadlines import Deadlines
from tests.helpers import own_thread
from tests.network.support import new_loop, spin


@own_thread
def test_items_expire_in_their_order_and_time() -> None:
    with new_loop() as loop:
        expired: list[tuple[str, float]] = []
        deadlines: Deadlines[str] = Deadlines(loop, 0.1, lambda item: expired.append((item, time.monotonic())))
        began = time.monotonic()
        deadlines.add("first")
        spin(lambda: time.monotonic() - began >= 0.05, "half of its time")
        deadlines.add("second")
        deadlines.add("third")
        deadlines.discard("second")
        spin(lambda: len(expired) == 2, "two expire")
        assert [item for item, _ in expired] == ["first", "third"]
        assert expired[0][1] - began >= 0.099
        assert expired[1][1] - began >= 0.149


@own_thread
def test_one_that_comes_after_all_others_have_gone_has_its_whole_time() -> None:
    with new_loop() as loop:
        expired: list[str] = []
        deadlines: Deadlines[str] = Deadlines(loop, 0.1, expired.append)
        began = time.monotonic()
        deadlines.add("gone")
        deadlines.discard("gone")
        spin(lambda: time.monotonic() - began >= 0.08, "most of the time of the one that has gone")
        began = time.monotonic()  # not after it: whoever is held up in between would measure too little
        deadlines.add("there")
        spin(lambda: expired, "it expires")
        assert expired == ["there"]
        assert time.monotonic() - began >= 0.099


@own_thread
def test_an_expiry_may_discard_others() -> None:
    with new_loop() as loop:
        expired: list[str] = []
        deadlines: Deadlines[str]

        def expire(item: str) -> None:
            expired.append(item)
            deadlines.discard("second")

        deadlines = Deadlines(loop, 0.02, expire)
        deadlines.add("first")
        deadlines.add("second")
        deadlines.add("third")
        spin(lambda: "third" in expired, "the last")
        assert expired == ["first", "third"]
