"""Chat rooms: state shared by the threads of all members, guarded by one lock.

The rooms live in this process; with several worker processes the members of different workers do not meet.
"""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime

from krait_ws.websockets import WebsocketsCtrlBase, broadcast

MAX_NAME_CHARS = 32
MAX_TEXT_CHARS = 2000
MAX_PEOPLE = 100  # in a room; each join sends the list of people to all of them

ROOM = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def clean_name(raw: str) -> str | None:
    """Returns the name with its blanks tidied up, or None if it is no valid name."""
    name = " ".join(raw.split())
    return name if 1 <= len(name) <= MAX_NAME_CHARS and name.isprintable() else None


def clean_room(raw: str) -> str | None:
    """Returns the room in lower case, or None if it is no valid room."""
    room = raw.lower()
    return room if ROOM.fullmatch(room) else None


class Rooms:
    """Who is in which room.

    Thread: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Both guarded by _lock. A room without members is removed; the version counts joins and leaves.
        self._rooms: dict[str, dict[str, ChatMember]] = {}
        self._version = 0

    def enter(self, member: ChatMember) -> str | None:
        """Adds a member to its room. Returns None, or why it cannot come in."""
        with self._lock:
            members = self._rooms.get(member.room, {})
            if member.key in members:
                return "the name is taken"
            if len(members) >= MAX_PEOPLE:
                return "the room is full"
            members[member.key] = member
            self._rooms[member.room] = members
            self._version += 1
            return None

    def leave(self, member: ChatMember) -> None:
        """Removes a member that has entered."""
        with self._lock:
            members = self._rooms[member.room]
            del members[member.key]
            if not members:
                del self._rooms[member.room]
            self._version += 1

    def look(self, room: str) -> tuple[int, list[ChatMember]]:
        """Returns the version and a copy of the members: push to the copy, without the lock."""
        with self._lock:
            return self._version, list(self._rooms.get(room, {}).values())


rooms = Rooms()


class ChatMember(WebsocketsCtrlBase):
    """One person in one room."""

    # A member who reads slowly loses the oldest messages and stays; with "block" the connection would close.
    slow_consumer = "drop_oldest"
    max_message_size = 32 * 1024  # bytes; MAX_TEXT_CHARS take at most 12 each in JSON

    def __init__(self, room: str, name: str) -> None:
        super().__init__()
        self.room = room
        self.name = name
        self.key = name.casefold()  # "Ann" and "ann" are one person

    def on_thread_start(self) -> None:
        """Comes in, tells the room, passes messages on, and leaves whatever happens."""
        refusal = rooms.enter(self)
        if refusal is not None:
            self.tell_me_error(refusal)
            self.close(1008, refusal)
            return
        try:
            self.tell_room(type="join", name=self.name)
            self.tell_room_people()
            for message in self.messages():
                self.pass_on(message)
        finally:
            rooms.leave(self)
            self.tell_room(type="leave", name=self.name)
            self.tell_room_people()

    def pass_on(self, message: str | bytes) -> None:
        """Sends a message of this person to the whole room, this person included."""
        text = read_text(message)
        if text is None:
            self.tell_me_error('expected {"type": "message", "text": "..."}')
        elif not 1 <= len(text) <= MAX_TEXT_CHARS:
            self.tell_me_error(f"a message has 1 to {MAX_TEXT_CHARS} characters, this one has {len(text)}")
        else:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            self.tell_room(type="message", name=self.name, text=text, at=now)

    def tell_me_error(self, text: str) -> None:
        """Sends an error to this person alone."""
        self.push_out_message(json.dumps({"type": "error", "text": text}))

    def tell_room(self, **message: object) -> None:
        """Sends a message to everybody in the room."""
        _version, members = rooms.look(self.room)
        broadcast(members, json.dumps(message))

    def tell_room_people(self) -> None:
        """Sends the list of people; as two threads may overtake each other, the highest version counts."""
        version, members = rooms.look(self.room)
        people = [member.name for member in members]
        broadcast(members, json.dumps({"type": "people", "people": people, "version": version}))


def read_text(message: str | bytes) -> str | None:
    """Returns the text of a `{"type": "message", "text": ...}`, stripped, or None if it is something else."""
    try:
        data = json.loads(message)
    except (ValueError, RecursionError):  # RecursionError: "[[[[..." nested too deep
        return None
    if not isinstance(data, dict) or data.get("type") != "message":
        return None
    text = data.get("text")
    return text.strip() if isinstance(text, str) else None
