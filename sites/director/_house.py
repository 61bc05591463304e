"""The items of a house, and who follows them: first the state of all, then each change.

They live in this process; with several worker processes each would have a house of its own.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krait_ws.groups import Group
from krait_ws.websockets import WebsocketsCtrlBase, broadcast

Variables = dict[str, int]


@dataclass(frozen=True)
class Item:
    """Something of the house. A scene changes other items: item id -> variables."""

    name: str
    kind: str  # "light", "lock" or "scene"
    scene: Mapping[int, Variables]


ITEMS = {
    5: Item("Kitchen", "light", {}),
    6: Item("Hall", "light", {}),
    7: Item("Front door", "lock", {}),
    8: Item("Good night", "scene", {5: {"LIGHT_LEVEL": 0}, 6: {"LIGHT_LEVEL": 5}, 7: {"RelayState": 0}}),
}


class House:
    """What state the items are in. Thread: every method may be called from any thread."""

    def __init__(self) -> None:
        # Who follows hears an event of this name. All hear the same, so a change is encoded once for all of them.
        self.subscription = secrets.token_hex(16)
        self._lock = threading.RLock()  # held while somebody comes in, so that no change is missed or heard twice
        self._group = Group(max_keys=0)
        self._states: dict[int, Variables] = {  # guarded by _lock
            5: {"LIGHT_LEVEL": 80},
            6: {"LIGHT_LEVEL": 0},
            7: {"RelayState": 1},
        }

    def follow(self, controller: WebsocketsCtrlBase) -> None:
        """The controller gets the state of all items, as a list, and from then on every change."""
        with self._lock:
            if self._group.join(controller):
                broadcast([controller], self._event({"status": "OK"}))
                broadcast([controller], self._event([data_of(item, state) for item, state in self._states.items()]))

    def change(self, changes: Mapping[int, Variables]) -> None:
        """Sets variables of items, and tells it: of one item as an object, of several as a list."""
        with self._lock:
            for item, variables in changes.items():
                self._states[item].update(variables)
            data = [data_of(item, self._states[item]) for item in changes]
            self._group.publish(self._event(data if len(data) > 1 else data[0]))

    def state(self, item: int) -> Variables:
        """A copy of an item's variables; a scene has none."""
        with self._lock:
            return dict(self._states.get(item, {}))

    def command(self, item: int, command: str, level: object = None) -> bool:
        """Does what a person asked for. Returns False for what this item does not know."""
        with self._lock:
            lit = self.state(item).get("LIGHT_LEVEL", 0) > 0
            locked = self.state(item).get("RelayState") == 0
            match ITEMS[item].kind, command:
                case "light", "SET_LEVEL" if type(level) is int and 0 <= level <= 100:
                    self.change({item: {"LIGHT_LEVEL": level}})
                case "light", "ON" | "OFF" | "TOGGLE":
                    on = command == "ON" or (command == "TOGGLE" and not lit)
                    self.change({item: {"LIGHT_LEVEL": 100 if on else 0}})
                case "lock", "OPEN" | "CLOSE" | "TOGGLE":  # a lock's relay is open when the door is locked
                    lock = command == "OPEN" or (command == "TOGGLE" and not locked)
                    self.change({item: {"RelayState": 0 if lock else 1}})
                case "scene", "ACTIVATE":
                    self.change(ITEMS[item].scene)
                case _:
                    return False
        return True

    def _event(self, data: object) -> str:
        return event(self.subscription, data)


def data_of(item: int, state: Variables) -> dict[str, Any]:
    return {"iddevice": item, "data": dict(state)}


def event(name: str, data: object) -> str:
    """A Socket.IO event as an Engine.IO message."""
    return "42" + json.dumps([name, data])


house = House()
