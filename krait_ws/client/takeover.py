"""How a fresh connection takes over from an older one of the same stream: no event is lost and none comes twice.

::

    old   ──e1──e2──e3──e4──e5──e6──e7──e8─┤                delivered until the switch
    new        ┌─replay──e4──┤──e5──e6──e7─┼─e8──e9──e10──  from the switch on, without what the old one has brought
               open       settled       switch

A fresh connection *settles* when the replay of the server has been quiet, as for ``SYNCING``. What it brought until
then the old one brings as well. What it brings from then on is kept. The *switch* comes one ``overlap`` later, when the
old one is known to have got as far: it brought something that is kept, or the fresh one brings what the old one has
brought, or nothing came at all. Where that does not show within ``longest``, it comes all the same. Then the old
connection is left. Of what was kept, and of what comes in another ``longest``, everything is delivered that the old one
has not brought.

So it is exact when an event reaches the two connections at most ``longest`` apart, when the replay has ended before the
fresh one settles, and when no two events of a takeover have the same identity.

Time is the time of arrival here, not that of looking: a slow callback changes nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sized

from krait_ws.client.feed import Arrived, Feed
from krait_ws.client.link import Message

MOST_KEPT = 10_000
"""Messages that are kept of a fresh connection. When there are more, the next step comes at once."""

MOST_HELD = 64 << 20
"""The same for what the messages of both hold, in bytes or characters."""

Identity = Callable[[Message], Hashable | None]
"""What makes a message the same event on both connections; ``None`` for what is no event, such as a heartbeat."""


class Quiet:
    """When a replay is over: nothing came for ``quiet`` seconds, or it has lasted ``longest``."""

    def __init__(self, quiet: float, longest: float, since: float) -> None:
        self._quiet = quiet
        self._end = since + longest
        self.over_at = min(since + quiet, self._end)
        """As far as it is known now."""

    def disturb(self, at: float) -> None:
        """Something came."""
        self.over_at = min(at + self._quiet, self._end)


class Takeover:
    """One takeover. It does not touch a connection and calls nobody but ``identity``; the stream's thread drives it.

    Args:
        successor: The fresh connection.
        overlap: Seconds from settling to the switch, for events that reach the two in different orders.
        longest: Seconds that one connection may be behind the other.
    """

    def __init__(self, successor: Feed, identity: Identity, overlap: float, longest: float) -> None:
        self.successor = successor
        self._identity = identity
        self._overlap = overlap
        self._longest = max(overlap, longest)
        self._held = 0  # in the messages that the following hold
        self._before: deque[tuple[float, int, Hashable]] = deque()  # brought by the old one until the new one is open
        self._ahead: Counter[Hashable] = Counter()  # brought by the old one, and not by the new one yet
        self._kept: list[tuple[Hashable, Arrived]] = []  # brought by the new one, and not by the old one yet …
        self._awaited: Counter[Hashable] = Counter()  # … those of them that are still to come from the old one …
        self._caught_up: Counter[Hashable] = Counter()  # … and those that have come since
        self._is_matched = False  # whether the old one is known to have got to where the new one settled
        self._replay: Quiet | None = None
        self._settled_at: float | None = None
        self._switched_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the successor's connection is open."""
        return self._replay is not None

    @property
    def is_settled(self) -> bool:
        """Whether what the successor brings from now on counts."""
        return self._settled_at is not None

    @property
    def is_switched(self) -> bool:
        """Whether the old connection was left."""
        return self._switched_at is not None

    @property
    def due_at(self) -> float:
        """When the next step is due, as far as it is known now."""
        if self._switched_at is not None:
            return self._switched_at + self._longest
        if self._settled_at is not None:
            return self._settled_at + (self._overlap if self._is_matched or not self._kept else self._longest)
        return self.successor.give_up_at if self._replay is None else self._replay.over_at

    def opened(self, replay: Quiet) -> None:
        """The successor's connection is open."""
        self._replay = replay
        self._ahead.update(identity for _, _, identity in self._before)
        self._before.clear()

    def old_brings(self, item: Arrived) -> None:
        """A message of the old connection, before the switch; it is delivered."""
        identity = self._identity(item.message)
        if identity is None:
            return
        if not self.is_open:
            self._before.append((item.at, len(item.message), identity))
            self._held += len(item.message)
            while self._before and (self._before[0][0] < item.at - self._longest or self._is_too_much(self._before)):
                self._held -= self._before.popleft()[1]
        elif self._awaited[identity]:
            self._awaited[identity] -= 1
            self._caught_up[identity] += 1
            self._is_matched = True
        else:
            self._ahead[identity] += 1
            self._held += len(item.message)

    def new_brings(self, item: Arrived) -> None:
        """A message of the successor, before the switch."""
        identity = self._identity(item.message)
        if self._settled_at is None and self._replay is not None:
            self._replay.disturb(item.at)
        if identity is None:
            return  # what is no event comes from one of the two
        if self._is_ahead(identity):
            self._is_matched = True
            self._held -= len(item.message)
        else:
            self._held += len(item.message)
            self._kept.append((identity, item))
            self._awaited[identity] += 1

    def settle_if_due(self, now: float) -> None:
        """Comes before ``is_switch_due``."""
        if self._settled_at is None and self._replay is not None and (now >= self.due_at or self._is_full()):
            self._settled_at = now
            self._held -= sum(len(item.message) for _, item in self._kept)
            self._kept.clear()
            self._awaited.clear()
            self._caught_up.clear()
            self._is_matched = False

    def is_switch_due(self, now: float) -> bool:
        """Whether the old connection is to be left now."""
        return self.is_settled and not self.is_switched and (now >= self.due_at or self._is_full())

    def switch(self, now: float) -> list[Arrived]:
        """The old connection is left. What of the new one is to be delivered now."""
        self._switched_at = now
        kept, self._kept = self._kept, []
        return [item for identity, item in kept if not _take(self._caught_up, identity)]

    def is_new(self, item: Arrived) -> bool:
        """Whether a message of the successor is to be delivered, after the switch."""
        identity = self._identity(item.message)
        return identity is None or not self._is_ahead(identity)

    def unsettled(self) -> list[Arrived]:
        """What only the successor has brought, when it must replace a lost connection before it settled."""
        return [item for identity, item in self._kept if not _take(self._caught_up, identity)]

    def _is_ahead(self, identity: Hashable) -> bool:
        return _take(self._ahead, identity)

    def _is_full(self) -> bool:
        return self._is_too_much(self._kept) or self._is_too_much(self._ahead)

    def _is_too_much(self, messages: Sized) -> bool:
        return len(messages) >= MOST_KEPT or self._held >= MOST_HELD


def _take(counts: Counter[Hashable], identity: Hashable) -> bool:
    """Takes one away, if there is one."""
    if not counts[identity]:
        return False
    counts[identity] -= 1
    if not counts[identity]:
        del counts[identity]
    return True
