"""Who is at the other end of a relay: announces us, knows who is there, and hands on what they send.

Comes in: events of a stream. Goes out: JSON objects ``{"id", "module", "type", "src" or "target", "payload"}``, as the
relay of the demo sites and the clients that it serves speak them. Owns no thread; the stream does.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

from krait_ws.client.errors import ClientError, ConnectionUnavailableError, PeerTimeoutError
from krait_ws.client.link import Link
from krait_ws.client.listeners import Listeners, log
from krait_ws.client.status import ENDS, OPEN, Event, Status
from krait_ws.client.stream import EventStream
from krait_ws.client.subscriptions import EVERYTHING, EventCallback, Subscriptions
from krait_ws.version import __version__

MOST_PEERS = 10_000
"""Others who are online at the same time; a relay that announces more is not to be trusted."""


@dataclass(frozen=True)
class Peer:
    """Somebody who said to be online."""

    peer_id: str
    role: str
    version: str


class Peers:
    """Our side of a relay, over an ``EventStream``. A context manager that starts and shuts down.

    It says online with each new connection, so also after a loss, and offline when the stream is stopped, in whichever
    way: ``shutdown``, ``stream.stop``, the end of the program. Whether it reconnects is for the stream's backoff to
    say; with ``Backoff(attempts=0)`` it never does, and ``run_forever`` raises what ended it.

    Callbacks get an ``Event`` whose ``data`` is the message, run in the stream's thread, one at a time, and never under
    a lock: a slow one keeps no other thread from sending. They may send and shut down.

    Args:
        stream: The stream, not started yet. It must have no ``renew_every``: a relay takes the end of the older
            connection for our going offline.
        role: Ours.
        awaited: The role that ``wait_ready`` waits for.
        peer_id: Ours; a random one by default.
        version: Ours.

    Raises:
        ValueError: The stream renews its connection.
    """

    def __init__(
        self,
        stream: EventStream,
        *,
        role: str = "hero",
        awaited: str = "sidekick",
        peer_id: str | None = None,
        version: str = __version__,
    ) -> None:
        if stream.renew_every is not None:
            raise ValueError("Peers needs a stream without renew_every: the relay would take each renewal for an end")
        self.stream = stream
        self.me = Peer(peer_id or f"{role}-{uuid.uuid4()}", role, version)
        self._awaited = awaited
        self._subscriptions = Subscriptions(_source_of)
        self._presences = Listeners()
        self._changed = threading.Condition()
        self._online: dict[str, Peer] = {}  # guarded by _changed
        self._subscriptions.add(_ANNOUNCEMENT, self._hear)
        stream.on_event(self._subscriptions)
        stream.on_status(self._follow)
        stream.on_open(lambda link: self._announce(link, "online"))
        stream.on_close(self._say_offline)

    @property
    def online(self) -> Mapping[str, Peer]:
        """The others who are online now, by peer id; later changes do not show in it. Thread: any."""
        with self._changed:
            return MappingProxyType(dict(self._online))

    def on_message(self, instance: str, callback: EventCallback) -> Callable[[], None]:
        """``callback(event)`` for each message whose ``src`` is ``instance``. Returns what removes it. Thread: any."""
        return self._subscriptions.add(instance, callback)

    def on_any(self, callback: EventCallback) -> Callable[[], None]:
        """``callback(event)`` for each message of anybody, announcements too. Thread: any."""
        return self._subscriptions.add(EVERYTHING, callback)

    def on_presence(self, callback: Callable[[Peer, bool], object]) -> Callable[[], None]:
        """``callback(peer, is_online)`` when another comes or goes. Thread: any."""
        return self._presences.add(callback)

    def send(self, module: str, kind: str, *, target: str | None = None, payload: Any = None, number: int = 0) -> None:
        """Sends one message to the others. It never opens a connection. Thread: any, callbacks too.

        Args:
            module: Whom it concerns, for example ``"grid"``.
            kind: What it is, the ``type`` of the message.
            target: The instance that is meant, if it is one.
            payload: What JSON can hold, so no NaN and no infinity; left out when it is ``None``.
            number: The ``id`` of the message.

        Raises:
            ConnectionUnavailableError, ConnectionClosedError: As ``EventStream.send``.
            TypeError, ValueError: JSON cannot hold the payload.
        """
        message: dict[str, Any] = {"id": number, "module": module, "type": kind}
        if target is not None:
            message["target"] = target
        if payload is not None:
            message["payload"] = payload
        self.stream.send(json.dumps(message, allow_nan=False))

    def start(self) -> Peers:
        """Starts the stream; again it changes nothing."""
        self.stream.start()
        return self

    def wait_ready(self, timeout: float = 2.0) -> Peer:
        """Starts, if it never was, and waits until another of the awaited role is online. Returns it.

        Raises:
            PeerTimeoutError: Nobody is in time. The message says what to check.
            ClientError: The stream is over: why.
            RuntimeError: It was called from a callback, which would keep the announcement from being heard.
        """
        self.stream.refuse_in_callback()
        if self.stream.status is Status.NOT_STARTED:
            self.start()
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: self._ready() or self.stream.status in ENDS, deadline - time.monotonic())
            ready = self._ready()
        if ready is not None:
            return ready
        if self.stream.status in ENDS:
            place, status = self.stream.transport.place, self.stream.status
            raise self.stream.error or ConnectionUnavailableError(f"{place}: {status.value}")
        raise PeerTimeoutError(self._what_to_check(timeout))

    def run_forever(self) -> None:
        """Starts, if it never was, and waits for Ctrl-C, ``shutdown`` or the end of the stream.

        Raises:
            ClientError: The connection is lost for good: why.
        """
        self.stream.run_forever()

    def shutdown(self, timeout: float | None = None) -> bool:
        """Says offline and closes, as ``EventStream.stop``. Thread: any, callbacks too; again it changes nothing."""
        return self.stream.stop(timeout)

    def __enter__(self) -> Peers:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def _ready(self) -> Peer | None:
        return next((peer for peer in self._online.values() if peer.role == self._awaited), None)

    def _what_to_check(self, timeout: float) -> str:
        place, status = self.stream.transport.place, self.stream.status
        if status not in OPEN:
            return f"{place} is not reached after {timeout:g} s ({self.stream.error}): is it running there?"
        others = ", ".join(sorted({peer.role for peer in self._online.values()})) or "nobody"
        return f"no {self._awaited} came online within {timeout:g} s ({others} did): does it run, and with {place}?"

    def _announce(self, link: Link, status: str) -> None:
        payload = {
            "peerId": self.me.peer_id,
            "role": self.me.role,
            "status": status,
            "version": self.me.version,
            "timestamp": time.time_ns() // 1_000_000,
        }
        link.send(json.dumps({"id": 0, "module": "system", "type": "announce", "payload": payload}))

    def _say_offline(self, link: Link) -> None:
        with suppress(ClientError):  # then the relay says it for us
            self._announce(link, "offline")

    def _hear(self, event: Event) -> None:
        payload = event.data["payload"]
        peer = Peer(payload["peerId"], str(payload.get("role", "")), str(payload.get("version", "")))
        is_online = payload.get("status") == "online"
        with self._changed:
            was_online = peer.peer_id in self._online
            if is_online and not was_online and len(self._online) >= MOST_PEERS:
                log.warning("%s: more than %d peers; one is left out", self.stream.transport.place, MOST_PEERS)
                return
            if is_online:
                self._online[peer.peer_id] = peer
            else:
                self._online.pop(peer.peer_id, None)
            self._changed.notify_all()
        if is_online != was_online:
            self._presences.call(peer, is_online)

    def _follow(self, status: Status) -> None:
        """Without a connection nobody is online; with the next one the relay tells again who is."""
        gone: list[Peer] = []
        with self._changed:
            if status not in OPEN:
                gone = list(self._online.values())
                self._online.clear()
            self._changed.notify_all()
        for peer in gone:
            self._presences.call(peer, False)


_ANNOUNCEMENT = ("system", "announce")
"""The key of announcements; a tuple, so that no instance can have it."""


def _source_of(message: Any) -> Any:
    if not isinstance(message, dict):
        return None
    payload = message.get("payload")
    if message.get("module") == "system" and message.get("type") == "announce":
        return _ANNOUNCEMENT if isinstance(payload, dict) and isinstance(payload.get("peerId"), str) else None
    source = message.get("src")
    return source if isinstance(source, str) else None
