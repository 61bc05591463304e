"""Scripts draw and panels show: what one peer says goes to all other peers of its room.

Every message is text with one JSON object that has a `module` (or `component`) and a `type`; anything else is dropped.
`system/announce` says who is there: it is kept for those who announce themselves later. All other messages go on
unchanged.

The rooms live in this process; with several worker processes the peers of different workers do not meet.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from krait_ws.groups import Group
from krait_ws.websockets import WebsocketsCtrlBase, broadcast

MAX_ROOMS = 1000
MAX_PEERS = 100  # in a room
MAX_ANNOUNCEMENT = 4096  # characters; the room keeps one for each peer
PATIENCE = 10.0  # seconds that a script waits for a panel that does not read


class Room:
    """Peers that hear each other, and the last announcement of each that is online.

    Thread: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self.group = Group(max_keys=0)
        self._lock = threading.Lock()
        self._online: dict[str, tuple[Peer, str]] = {}  # peer id -> who announced it last, and how; guarded by _lock

    def say_online(self, peer: Peer, peer_id: str, text: str) -> None:
        """Tells the peer which others are online, each time that it says so, keeps its announcement and tells the
        others. A peer that comes back may be here before its end was noticed: the id is then its new connection's."""
        with self._lock:
            for other_id, (_, announcement) in self._online.items():
                if other_id != peer_id:
                    broadcast([peer], announcement)
            self._online[peer_id] = (peer, text)
            self.group.publish(text, but=peer)

    def say_offline(self, peer: Peer, peer_id: str, text: str) -> None:
        """Tells the others, unless the id is that of another connection."""
        with self._lock:
            owner, _ = self._online.get(peer_id, (peer, ""))
            if owner is peer:
                self._online.pop(peer_id, None)
                self.group.publish(text, but=peer)


class Rooms:
    """The rooms that somebody is in, by name.

    Thread: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: dict[str, tuple[Room, set[Peer]]] = {}  # guarded by _lock

    def enter(self, peer: Peer, name: str) -> Room | None:
        """The peer's room, in which it hears from now on what is said. None when there is no room for it."""
        with self._lock:
            room, peers = self._rooms.get(name) or (Room(), set())
            if len(peers) >= MAX_PEERS or (not peers and len(self._rooms) >= MAX_ROOMS):
                return None
            peers.add(peer)
            self._rooms[name] = (room, peers)
        room.group.join(peer)
        return room

    def leave(self, peer: Peer, name: str) -> None:
        """The peer is gone; a room that nobody is in is forgotten."""
        with self._lock:
            room, peers = self._rooms[name]
            peers.discard(peer)
            if not peers:
                del self._rooms[name]
        room.group.leave(peer)


rooms = Rooms()


class Peer(WebsocketsCtrlBase):
    """One script or panel."""

    # No command may get lost, so a peer that cannot keep up is closed; but see wait_for_others.
    slow_consumer = "close"
    max_out_messages = 4096
    max_out_bytes = 16 << 20
    close_timeout = 3.0  # seconds; sidekick-py answers our close and leaves TCP open, so it is for us to end it

    def __init__(self, room_name: str) -> None:
        super().__init__()
        self.room_name = room_name
        self.announced: dict[str, Any] | None = None  # our announcement, while we are online

    def on_thread_start(self) -> None:
        """Passes messages on, and says offline for a peer that went without a word."""
        room = rooms.enter(self, self.room_name)
        if room is None:
            self.close(1013, "the room is full")
            return
        try:
            for text in self.messages():
                message = read_message(text)
                if message is None:
                    continue
                if is_announcement(message):
                    self.announce(room, message, text)
                else:
                    self.wait_for_others(room)
                    room.group.publish(text, but=self)
        finally:
            if self.announced is not None:
                room.say_offline(self, self.announced["payload"]["peerId"], offline_text(self.announced))
            rooms.leave(self, self.room_name)

    def announce(self, room: Room, message: dict[str, Any], text: str) -> None:
        """Notes who this is and tells the room. A connection is one peer: another id, or an announcement that lacks
        something, is dropped."""
        payload = message.get("payload")
        if not is_presence(payload) or len(text) > MAX_ANNOUNCEMENT:
            return
        peer_id = payload["peerId"]
        if self.announced is not None and self.announced["payload"]["peerId"] != peer_id:
            return
        if payload["status"] == "online":
            self.announced = message
            room.say_online(self, peer_id, text)
        else:
            self.announced = None
            room.say_offline(self, peer_id, text)

    def wait_for_others(self, room: Room) -> None:
        """Holds this peer back while another one is far behind: what it sends meanwhile waits in its own program. One
        that does not read at all is closed, and the room goes on."""
        deadline = time.monotonic() + PATIENCE
        for other in room.group.members():
            while other is not self and is_behind(other) and not self.wait_stop(0.01):
                if time.monotonic() > deadline:
                    other.close(1013, "it reads too slowly")
                    break


def is_behind(peer: WebsocketsCtrlBase) -> bool:
    """Whether so much waits for a peer that it is time to stop producing."""
    pressure = peer.pressure
    return pressure.messages > Peer.max_out_messages // 2 or pressure.bytes > Peer.max_out_bytes // 2


def read_message(text: str | bytes) -> dict[str, Any] | None:
    """Returns the object of a message, or None if it is none that may be passed on."""
    if not isinstance(text, str):
        return None
    try:
        message = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):  # RecursionError: "[[[[..." nested too deep
        return None
    if not isinstance(message, dict):
        return None
    words = (message.get("module", message.get("component")), message.get("type"))
    return message if all(isinstance(word, str) and word for word in words) else None


def refuse(constant: str) -> None:
    """Python reads NaN and Infinity, browsers do not: they are no JSON."""
    raise ValueError(f"{constant} is no JSON")


def is_announcement(message: dict[str, Any]) -> bool:
    return (message.get("module", message.get("component")), message["type"]) == ("system", "announce")


def is_presence(payload: Any) -> bool:
    """Whether this is the whole payload of an announcement."""
    return (
        isinstance(payload, dict)
        and isinstance(payload.get("peerId"), str)
        and payload["peerId"] != ""
        and payload.get("role") in ("hero", "sidekick")
        and payload.get("status") in ("online", "offline")
        and isinstance(payload.get("version"), str)
        and isinstance(payload.get("timestamp"), int | float)
    )


def offline_text(announced: dict[str, Any]) -> str:
    """What a peer would have said, had it said goodbye. Of its own words only those that are known: Python reads 1e999
    as a number, too, and would write what is no JSON."""
    payload = {name: announced["payload"][name] for name in ("peerId", "role", "version")}
    payload |= {"status": "offline", "timestamp": int(time.time() * 1000)}
    word = "module" if "module" in announced else "component"
    return json.dumps({"id": 0, word: "system", "type": "announce", "payload": payload})
