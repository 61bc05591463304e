"""Where a stream is, and what its callbacks get."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from krait_ws.client.errors import ClientError
from krait_ws.client.link import Link


class Status(enum.Enum):
    """Where an ``EventStream`` is; drawn in its docstring."""

    NOT_STARTED = "not started"
    INITIALIZING = "initializing"
    SYNCING = "syncing"
    CONNECTED = "connected"
    LOST_CONNECTION = "lost connection"
    RECONNECTING = "reconnecting"
    RECONNECT_FAILED = "reconnect failed"
    DISCONNECTED = "disconnected"


OPEN = frozenset({Status.SYNCING, Status.CONNECTED})
ENDS = frozenset({Status.RECONNECT_FAILED, Status.DISCONNECTED})


@dataclass(frozen=True)
class Event:
    """What a callback gets.

    Attributes:
        data: The message: ``str`` or ``bytes``; from ``Subscriptions`` what was made of it.
        replayed: Whether it came while the stream was SYNCING: a state that the server repeats, no news.
        received_at: When it arrived, in UTC.
    """

    data: Any
    replayed: bool
    received_at: datetime


class State:
    """What the stream's thread tells all others. Every attribute is guarded by ``changed``; a single one may be read
    without it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.status = Status.NOT_STARTED
        self.error: ClientError | None = None
        self.link: Link | None = None  # the one to send with, while the status is one of OPEN
        self.last_event_at: datetime | None = None
