"""The devices of the hub, their states, and the stream of what happens to them.

Each state is the last message of its device in a ``Group``: who subscribes gets all of them, then each change as it
happens. The states live in this process.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from datetime import datetime
from xml.sax.saxutils import escape, quoteattr

from krait_ws.groups import Group
from krait_ws.websockets import WebsocketsCtrlBase

HEARTBEAT = 30.0
"""Seconds between two signs of life."""


@dataclass(frozen=True)
class Device:
    """Something that can be switched.

    Attributes:
        address: Names it on the wire.
        name: Names it to people.
        dims: Whether it knows more than off and on.
    """

    address: str
    name: str
    dims: bool = False

    def level(self, command: str, value: int | None = None) -> int:
        """The state that a command asks for, 0 (off) to 255 (on).

        Raises:
            ValueError: The device cannot do that.
        """
        if command == "DOF" and value is None:
            return 0
        if command != "DON":
            raise ValueError(f"{self.name} knows DON and DOF, not {command}")
        if value is None:
            return 255
        if not self.dims or not 0 <= value <= 255:
            raise ValueError(f"{self.name} takes " + ("0 to 255" if self.dims else "no level"))
        return value


class Hub:
    """Devices and who watches them. Thread: any."""

    def __init__(self, devices: list[Device]) -> None:
        self.devices = {device.address: device for device in devices}
        self.subscribers = Group(max_keys=len(devices))
        self._lock = threading.Lock()
        self._levels: dict[str, int] = {}  # guarded by _lock
        self._numbers = itertools.count(1)  # guarded by _lock
        for device in devices:
            self.set_level(device, 0)

    def set_level(self, device: Device, level: int) -> None:
        """Switches a device and tells everybody. The lock makes the order of the states that of their numbers."""
        with self._lock:
            self._levels[device.address] = level
            message = event("ST", level, device.address, next(self._numbers))
            self.subscribers.publish(message, key=device.address)

    def levels(self) -> dict[str, int]:
        """A copy of all states by address."""
        with self._lock:
            return dict(self._levels)


class Subscriber(WebsocketsCtrlBase):
    """Gets every state as it is now, then every change. It is not asked anything."""

    # A state that is dropped would be missed for ever. A subscriber who is closed comes back to a fresh replay.
    slow_consumer = "close"

    def on_thread_start(self) -> None:
        """Joins; from then on others push to this connection, and this thread only gives signs of life."""
        hub.subscribers.join(self)
        while not self.should_stop():
            if self.pop_in_message(timeout=HEARTBEAT) is not None:
                self.close(1008, "this stream is to be read only")
            else:
                self.push_out_message(event("_0", HEARTBEAT))


def event(control: str, action: float, address: str = "", number: int = 0) -> str:
    """One event as the XML document that clients expect."""
    at = quoteattr(datetime.now().astimezone().isoformat())
    kind = ' uom="100" prec="0"' if address else ""
    return (
        f'<?xml version="1.0"?><Event seqnum="{number}" sid="uuid:1" timestamp={at}><control>{control}</control>'
        f"<action{kind}>{action:g}</action><node>{escape(address)}</node><eventInfo></eventInfo></Event>"
    )


hub = Hub(
    [
        Device("10 A1 01 1", "Hall lamp"),
        Device("10 A1 02 1", "Kitchen lamp", dims=True),
        Device("10 A1 03 1", "Bedroom lamp", dims=True),
        Device("10 A1 04 1", "Garden pump"),
    ]
)
