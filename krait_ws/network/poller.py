"""Watches many sockets and reports the ready ones in batches.

``EpollPoller`` registers one epoll object with gevent's hub and no socket of its own, which costs a fraction of a
watcher per socket. ``WatcherPoller`` has a gevent watcher per socket and works on every platform. Owned by the loop.
"""

from __future__ import annotations

import select
import sys
from typing import Any, Protocol

from gevent.monkey import get_original

from krait_ws.waiting import monotonic

READ, WRITE, HANGUP = 1, 2, 4
_LOOKS_A_TURN = 8
_SMALL_BATCH = 64  # sockets; after more than these the hub and the calls of other threads have their turn
_MAX_BATCH = 256
_LINGERS_A_TURN = 2  # what comes of another thread of the hub's pool is not seen meanwhile
_LONG_ENOUGH = (
    0.005  # seconds; after these too, so that sockets that are never empty hold up the rest for one look only
)


class Ready(Protocol):
    """A watched socket's owner."""

    def on_ready(self, events: int) -> None:
        """``events`` has READ, WRITE or both, or HANGUP in READ's place: the peer will send nothing more. Errors report
        as both READ and WRITE."""

    def abort(self) -> None:
        """It failed: let go of the socket at once."""


class Turns(Protocol):
    """The loop, which serves what is ready; see ``network.loop.Loop``."""

    def watches_with(self, epoll: Any, hub_descriptor: int) -> None: ...
    def serve_epoll(self, epoll: Any, owners: dict[int, Any], most: int) -> int: ...
    def lingers(self) -> bool: ...
    def serve(self, owner: Ready, events: int) -> None: ...


class Poller(Protocol):
    """Tells the loop which sockets are ready."""

    def watch(self, descriptor: int, owner: Ready, events: int) -> None:
        """Begins or changes what is watched of a socket, and for whom. With no events it reports errors at most.
        HANGUP is of use where READ is not watched; not every poller knows it."""

    def forget(self, descriptor: int) -> None:
        """Ends it; before the descriptor is closed."""

    def close(self) -> None: ...


class EpollPoller:
    def __init__(self, hub: Any, loop: Turns) -> None:
        self._loop = loop
        self._hub_loop = hub.loop
        self._owners: dict[int, Ready] = {}
        self._epoll = _new_epoll()
        loop.watches_with(self._epoll, hub.loop.fileno() or -1)
        self._watcher = hub.loop.io(self._epoll.fileno(), READ)
        self._watcher.start(self._poll)

    def watch(self, descriptor: int, owner: Ready, events: int) -> None:
        mask = (
            (select.EPOLLIN if events & READ else 0)
            | (select.EPOLLOUT if events & WRITE else 0)
            | (select.EPOLLRDHUP if events & HANGUP else 0)
        )
        if descriptor in self._owners:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
        self._owners[descriptor] = owner

    def forget(self, descriptor: int) -> None:
        if self._owners.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._epoll.close()
        self._owners.clear()

    def _poll(self) -> None:
        """Serves what is ready, and what becomes so meanwhile or in a moment: another look costs far less than a turn
        of the hub. The hub has its turn at once when there is something new for it, a callback or a watcher."""
        serve = self._loop.serve_epoll
        hub_loop = self._hub_loop
        active = hub_loop.activecnt
        until = monotonic() + _LONG_ENOUGH
        lingers = _LINGERS_A_TURN
        for _ in range(_LOOKS_A_TURN):
            ready = serve(self._epoll, self._owners, _MAX_BATCH)
            if not ready and lingers and hub_loop.activecnt == active and self._loop.lingers():
                lingers -= 1
                ready = serve(self._epoll, self._owners, _MAX_BATCH)
            if not ready or ready > _SMALL_BATCH or monotonic() > until:
                return


class WatcherPoller:
    def __init__(self, hub: Any, loop: Turns) -> None:
        self._hub = hub
        self._loop = loop
        self._watchers: dict[int, Any] = {}

    def watch(self, descriptor: int, owner: Ready, events: int) -> None:
        self.forget(descriptor)
        events &= READ | WRITE
        if not events:
            self._watchers[descriptor] = None
            return
        watcher = self._hub.loop.io(descriptor, events)
        watcher.start(self._ready, owner, pass_events=True)
        self._watchers[descriptor] = watcher

    def forget(self, descriptor: int) -> None:
        watcher = self._watchers.pop(descriptor, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def close(self) -> None:
        for descriptor in list(self._watchers):
            self.forget(descriptor)

    def _ready(self, events: int, owner: Ready) -> None:
        self._loop.serve(owner, events & (READ | WRITE))


def new_poller(kind: str, hub: Any, loop: Turns) -> Poller:
    """``kind`` is ``"epoll"``, ``"watchers"`` or ``"auto"``: epoll where there is one."""
    if kind == "epoll" or (kind == "auto" and sys.platform == "linux"):
        return EpollPoller(hub, loop)
    return WatcherPoller(hub, loop)


# A patched select module has none; the one of the system is never waited for.
_new_epoll: Any = get_original("select", "epoll") if sys.platform == "linux" else None
