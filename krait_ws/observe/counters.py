"""What is counted as connections come and go: totals by route, refused handshakes, close codes.

Comes in: sessions as they begin and end, refusals where they happen. Goes out: copies, to which the numbers of those
that are still open are added. Owned by the loop, but for ``refused``.
"""

from __future__ import annotations

from collections import Counter

from krait_ws.observe.numbers import Buckets, Numbers, add, put
from krait_ws.session import Session

_HANDLER_BOUNDS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)  # seconds
_MAX_OWN_CODES = 32
_OTHER = "other"


class Tally:
    """What the sessions of one route add up to."""

    __slots__ = (
        "abandoned", "blocked", "bytes_in", "bytes_out", "closed", "dropped", "handlers", "in_waiting", "messages_in",
        "messages_out", "open", "opened", "out_bytes_waiting", "out_waiting", "stuck",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opened = self.abandoned = self.blocked = self.dropped = 0
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        self.closed: Counter[int] = Counter()
        self.handlers = Buckets(_HANDLER_BOUNDS)
        # Of those that have not ended:
        self.open = self.stuck = self.in_waiting = self.out_waiting = self.out_bytes_waiting = 0

    def copy(self) -> Tally:
        tally = Tally()
        for name in Tally.__slots__:
            value = getattr(self, name)
            if isinstance(value, int):
                setattr(tally, name, value)
        tally.closed = self.closed.copy()
        tally.handlers.counts = self.handlers.counts.copy()
        tally.handlers.sum = self.handlers.sum
        return tally

    def add(self, session: Session) -> None:
        """What a session has counted so far. What it adds only grows until it is over, and is final then."""
        self.opened += 1
        self.messages_in += session.messages_in
        self.bytes_in += session.bytes_in
        self.messages_out += session.messages_out
        self.bytes_out += session.bytes_out
        self.dropped += session.outgoing.dropped
        self.blocked += session.outgoing.blocked
        if session.close_code is not None:
            self.closed[session.close_code] += 1
            self.abandoned += session.is_abandoned


class Counters:
    """Everything since the server began."""

    def __init__(self) -> None:
        self._ended: dict[str, Tally] = {}
        self._refused: Counter[str] = Counter()
        self._own_codes: set[int] = set()

    def refused(self, reason: str) -> None:
        """An upgrade was refused. ``reason`` is one of a few words, never what a client sent. Thread: the loop's."""
        self._refused[reason] += 1

    def ended(self, session: Session) -> None:
        """A session is over: nothing of it will change any more."""
        tally = self._ended.get(session.route)
        if tally is None:
            tally = self._ended[session.route] = Tally()
        tally.add(session)
        if session.handler_seconds is not None:
            tally.handlers.observe(session.handler_seconds)

    def copies(self) -> dict[str, Tally]:
        """The totals of the sessions that are over, by route."""
        return {route: tally.copy() for route, tally in self._ended.items()}

    def numbers(self, tallies: dict[str, Tally]) -> Numbers:
        """These totals, and the refusals, as metrics."""
        numbers: Numbers = {}
        for reason, count in self._refused.items():
            put(numbers, "krait_handshakes_refused", (reason,), count)
        for route, tally in tallies.items():
            put(numbers, "krait_connections", (route,), tally.open)
            put(numbers, "krait_connections_opened", (route,), tally.opened)
            for code, count in tally.closed.items():
                add(numbers, "krait_connections_closed", (route, self._label(code)), count)
            put(numbers, "krait_messages", (route, "in"), tally.messages_in)
            put(numbers, "krait_messages", (route, "out"), tally.messages_out)
            put(numbers, "krait_bytes", (route, "in"), tally.bytes_in)
            put(numbers, "krait_bytes", (route, "out"), tally.bytes_out)
            put(numbers, "krait_mailbox_messages", (route, "in"), tally.in_waiting)
            put(numbers, "krait_mailbox_messages", (route, "out"), tally.out_waiting)
            put(numbers, "krait_mailbox_out_bytes", (route,), tally.out_bytes_waiting)
            put(numbers, "krait_pushes_dropped", (route,), tally.dropped)
            put(numbers, "krait_pushes_blocked", (route,), tally.blocked)
            put(numbers, "krait_handlers_abandoned", (route,), tally.abandoned)
            put(numbers, "krait_handlers_stuck", (route,), tally.stuck)
            tally.handlers.put(numbers, "krait_handler_seconds", (route,))
        return numbers

    def _label(self, code: int) -> str:
        """A close code as a label. Clients may send any of 2,000 codes of their own: the first few have a label each,
        for good, and the others share one."""
        if code < 3000 or code in self._own_codes:
            return str(code)
        if len(self._own_codes) >= _MAX_OWN_CODES:
            return _OTHER
        self._own_codes.add(code)
        return str(code)


def reason_of(status: int) -> str:
    """Why a route script's answer refuses an upgrade, as a word for ``Counters.refused``."""
    return {401: "unauthorized", 403: "forbidden", 404: "not_found"}.get(status, "script" if status < 500 else "error")
