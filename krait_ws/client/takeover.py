"""How a fresh connection takes over from an older one of the same stream, so that no event is lost and none comes
twice.

::

    old   ──e1──e2──e3──e4──e5──e6──e7──e8─┤                delivered until the switch
    new        ┌─replay──e4──┤──e5──e6──e7─┼─e8──e9──e10──  what came since it settled is kept, then delivered
               open       settled       switch              without what the old one has brought: e9, e10

A fresh connection *settles* when the replay of the server has been quiet, as for ``SYNCING``. What it brought until
then the old one brings as well. What it brings from then on is kept, up to the *switch*, one ``overlap`` later. At the
switch the old connection is left, and of what was kept and of what comes in another ``overlap`` everything is delivered
that the old connection has not brought since one ``overlap`` before the fresh one settled.

So it is exact when an event reaches the two connections at most one ``overlap`` apart, the replay has ended when the
fresh one settles, and no two events of that time have the same identity.

Time is the time of arrival here, not that of looking: a slow callback changes nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable

from krait_ws.client.feed import Arrived, Feed
from krait_ws.client.link import Message

MOST_KEPT = 10_000
"""Messages that are kept of a fresh connection. When there are more, the next step comes at once."""

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
    """One takeover. It does not touch a connection and calls nobody; the stream's thread drives it."""

    def __init__(self, successor: Feed, identity: Identity, overlap: float) -> None:
        self.successor = successor
        self._identity = identity
        self._overlap = overlap
        self._brought: deque[tuple[float, Hashable]] = deque()  # by the old connection, with the time
        self._kept: deque[Arrived] = deque()  # of the new one
        self._known: Counter[Hashable] = Counter()
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
        """When the next step is due, at the latest."""
        if self._switched_at is not None:
            return self._switched_at + self._overlap
        if self._settled_at is not None:
            return self._settled_at + self._overlap
        return self.successor.give_up_at if self._replay is None else self._replay.over_at

    def opened(self, replay: Quiet) -> None:
        """The successor's connection is open."""
        self._replay = replay

    def old_brings(self, item: Arrived) -> None:
        """A message of the old connection, which is delivered."""
        identity = self._identity(item.message)
        if identity is not None:
            self._brought.append((item.at, identity))
        if self._settled_at is None:
            self._forget_before(item.at - self._overlap)

    def new_brings(self, item: Arrived) -> None:
        """A message of the successor before the switch, which is kept."""
        self._kept.append(item)
        if self._settled_at is None:
            assert self._replay is not None
            self._replay.disturb(item.at)

    def settle_if_due(self, now: float) -> None:
        """Comes before ``is_switch_due``."""
        if self._settled_at is None and self._replay is not None and self._is_due(now):
            self._settled_at = now
            self._kept.clear()
            self._forget_before(now - self._overlap)

    def is_switch_due(self, now: float) -> bool:
        return self._settled_at is not None and self._switched_at is None and self._is_due(now)

    def switch(self, now: float) -> list[Arrived]:
        """The old connection is left. What of the new one is to be delivered now."""
        self._switched_at = now
        self._known = Counter(identity for _, identity in self._brought)
        self._brought.clear()
        kept, self._kept = self._kept, deque()
        return [item for item in kept if self.is_new(item)]

    def is_new(self, item: Arrived) -> bool:
        """Whether a message of the successor is to be delivered, after the switch."""
        identity = self._identity(item.message)
        if identity is None or not self._known[identity]:
            return True
        self._known[identity] -= 1
        return False

    def unsettled(self) -> list[Arrived]:
        """Everything that the successor has brought, when it must replace a lost connection before it settled."""
        return list(self._kept)

    def _is_due(self, now: float) -> bool:
        return now >= self.due_at or len(self._kept) >= MOST_KEPT

    def _forget_before(self, at: float) -> None:
        while self._brought and self._brought[0][0] < at:
            self._brought.popleft()
