"""What both cores know of gevent's hubs."""

from __future__ import annotations

import time
from typing import Any

from gevent._hub_local import get_hub_if_exists as get_hub_if_exists  # the function has no public home
from gevent.monkey import get_original
from greenlet import getcurrent as getcurrent
from greenlet import greenlet

new_lock = get_original("_thread", "allocate_lock")
monotonic = time.monotonic

# What gevent's own ``Hub.switch`` does, without its search for hooks that no greenlet here has.
switch_to = greenlet.switch

LONGEST = 1e8
"""Seconds, three years: the system's calls refuse much larger numbers."""

ON_LOOP = "this call would wait on the network loop and stall every connection; use timeout=0"


def serve(hub: Any, *, is_served: bool) -> None:
    """Notes whether a network loop lives on ``hub``. Such a hub always has something to wait for; another one gives up
    when all its greenlets wait for other threads, and needs a timer to go on. There may be an old and a new one."""
    hub.krait_serves = getattr(hub, "krait_serves", 0) + (1 if is_served else -1)


def is_served(hub: Any) -> bool:
    """What ``serve`` noted."""
    return getattr(hub, "krait_serves", 0) > 0
