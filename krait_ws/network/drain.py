"""How a server comes to its end without haste: connections are closed in batches, handlers have time to return.

Comes in: the sessions of a server. Goes out: each of them over, or reported. Runs in a greenlet of the loop's hub.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable

import gevent

from krait_ws.session import Session
from krait_ws.waiting import monotonic

logger = logging.getLogger("krait_ws.server")

_BATCH = 50  # connections closed at once, unless there are so many that the time would not do
_PAUSE = 0.1  # seconds between batches, more or less
_MOST_FOR_CLOSING = 1 / 3  # of the whole time, so that handlers have the rest
_LOOK_EVERY = 0.01  # seconds
_REPORT_DELAY = 0.2  # seconds: those that do not end are reported before the server goes on


def drain(
    sessions: Callable[[], Iterable[Session]], is_busy: Callable[[], bool], code: int, reason: str, seconds: float
) -> None:
    """Closes every connection with ``code`` and waits for the end of sessions and requests, at most ``seconds``.

    Connections are closed in random order and in batches with pauses of random length: their clients come back at
    different moments.

    Args:
        sessions: The sessions there are at the moment.
        is_busy: Whether plain requests are being answered.
    """
    deadline = monotonic() + seconds
    left = list(sessions())
    patience = max((session.config.stop_timeout for session in left), default=0.0)
    random.shuffle(left)
    size = max(_BATCH, int(len(left) * _PAUSE / max(seconds * _MOST_FOR_CLOSING, _PAUSE)) + 1)
    while left:
        for session in left[:size]:
            session.end(code, reason)
        del left[:size]
        # After the last batch too, however little time there is: the close frames go out in the loop's next turn.
        gevent.sleep(random.uniform(0.5, 1.5) * _PAUSE if left else _LOOK_EVERY)
    handlers_deadline = min(deadline, monotonic() + patience + _REPORT_DELAY)
    while (is_busy() and monotonic() < deadline) or (any(True for _ in sessions()) and monotonic() < handlers_deadline):
        gevent.sleep(_LOOK_EVERY)
    for session in list(sessions()):
        session.give_up()
