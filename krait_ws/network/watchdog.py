"""Notices controllers with ``runs_on = "loop"`` that hold up the network loop, and logs where they are.

A native thread looks at what the loop is doing; a hook costs the loop two assignments. Whatever the hook waits for, its
stack shows it while it waits.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gevent.monkey import get_original

from krait_ws.network.loop import Loop
from krait_ws.waiting import monotonic

if TYPE_CHECKING:
    from krait_ws.session import Session

logger = logging.getLogger("krait_ws.network")

_LOOKS = 5  # within the limit: a hook that takes a fifth longer than it is always seen

_OWN = str(Path(__file__).parent.parent)
# The standard library may be patched; this thread must run while the loop's does not.
_start_new_thread = get_original("_thread", "start_new_thread")
_get_ident = get_original("_thread", "get_ident")
_sleep = get_original("time", "sleep")


class Watchdog:
    """See the module. To be made in the loop's thread.

    Args:
        loop: Whom to watch.
        limit: Seconds that a hook may take; 0 watches nothing.
    """

    def __init__(self, loop: Loop, limit: float) -> None:
        self._loop = loop
        self._limit = limit
        self._thread = _get_ident()
        self._runs = False
        self._closed = False

    def start(self) -> None:
        """Begins to look, unless it has begun. Called by: the server, for a controller that runs on the loop."""
        if self._limit and not self._runs:
            self._runs = True
            _start_new_thread(self._look, ())

    def close(self) -> None:
        """The thread ends at its next look."""
        self._closed = True

    def _look(self) -> None:
        seen: tuple[Any, int] | None = None
        since = 0.0
        reported = False
        while not self._closed:
            _sleep(self._limit / _LOOKS)
            session = self._loop.in_hook
            now = None if session is None else (session, session.messages_in)
            if now is None or now != seen:
                seen, since, reported = now, monotonic(), False
            elif not reported and monotonic() - since >= self._limit:
                assert session is not None
                reported = True
                self._report(session)

    def _report(self, session: Session) -> None:
        logger.warning(
            "connection %s: %s (runs_on = 'loop') holds up the network loop for more than %g ms; it is at\n%s",
            session.id,
            type(session.controller).__qualname__,
            self._limit * 1000,
            _stack_of_hook(sys._current_frames().get(self._thread)),
        )


def _stack_of_hook(frame: Any) -> str:
    """The stack of the loop's thread from the user's hook on: what follows the frames of krait-ws."""
    stack = traceback.extract_stack(frame) if frame is not None else []
    is_own = [entry.filename.startswith(_OWN) for entry in stack]
    first = is_own.index(True) if True in is_own else len(stack)
    hook = is_own.index(False, first) if False in is_own[first:] else len(stack)
    return "".join(traceback.format_list(stack[hook:])) or "  (it has gone on)\n"
