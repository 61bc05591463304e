"""Engine.IO 3 and Socket.IO 2, as far as the clients of a director speak it, on a plain controller.

A packet is a text that begins with its type: 0 open, 1 close, 2 ping, 3 pong, 4 message. In a message stands a packet
of Socket.IO: 0 connect, 1 disconnect, 2 event. Today's python-socketio speaks Engine.IO 4 only; for new applications it
is the better choice.
"""

from __future__ import annotations

import json
import secrets
import threading
import time

from krait_ws.websockets import WebsocketsCtrlBase

from ._data import read_json
from ._house import event, house

PING_INTERVAL = 25.0  # seconds; it is the client that pings
PING_TIMEOUT = 60.0  # seconds


class Clients:
    """The connections by their client id, so that a plain request can speak for one.

    Thread: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}  # guarded by _lock

    def add(self, client: Client) -> None:
        with self._lock:
            self._clients[client.client_id] = client

    def remove(self, client: Client) -> None:
        with self._lock:
            del self._clients[client.client_id]

    def find(self, client_id: str) -> Client | None:
        with self._lock:
            return self._clients.get(client_id)


clients = Clients()


class Client(WebsocketsCtrlBase):
    """One program, or one page, that follows the items of the house."""

    slow_consumer = "close"  # one that comes back gets the state of all; one that missed a change would be wrong
    max_message_size = 64 * 1024  # bytes

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.client_id = secrets.token_hex(16)
        self.may_follow = False  # set by the plain request for a subscription
        self._expires = time.monotonic() + seconds  # when the token does

    def on_thread_start(self) -> None:
        """Greets, then serves until the client goes, falls silent, or its token is too old."""
        opening = {
            "sid": secrets.token_hex(10),
            "upgrades": [],
            "pingInterval": int(PING_INTERVAL * 1000),
            "pingTimeout": int(PING_TIMEOUT * 1000),
        }
        clients.add(self)
        try:
            self.push_out_message("0" + json.dumps(opening))
            self.push_out_message("40")
            self.push_out_message(event("clientId", self.client_id))
            while (packet := self.next_packet()) is not None:
                self.take(packet)
        finally:
            clients.remove(self)

    def next_packet(self) -> str | bytes | None:
        """The next packet, or None when it is over."""
        valid = self._expires - time.monotonic()
        packet = self.pop_in_message(timeout=max(0.0, min(valid, PING_INTERVAL + PING_TIMEOUT)))
        if time.monotonic() >= self._expires:
            self.close(4401, "the token has expired")
        elif packet is None:
            self.close(1001, "no ping came")
        else:
            return packet
        return None

    def take(self, packet: str | bytes) -> None:
        """Answers a ping, does what an event asks for. What it does not know is dropped."""
        if not isinstance(packet, str):
            return
        if packet.startswith("2"):
            self.push_out_message("3" + packet[1:])
        elif packet.startswith("42"):
            self.take_event(packet[2:])
        elif packet in ("1", "41"):
            self.close()

    def take_event(self, text: str) -> None:
        """The client starts the subscription that a plain request has given it."""
        if read_json(text) == ["startSubscription", house.subscription] and self.may_follow:
            house.follow(self)
