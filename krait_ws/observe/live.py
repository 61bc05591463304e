"""The dashboard's controller: sends what there is to see once a second, and closes connections when told to.

Comes in: ``{"show": id}`` tells more about one connection from now on, ``{"show": null}`` of none; ``{"close": id}``
closes one. Goes out: views, as JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from krait_ws.websockets import WebsocketsCtrlBase

_INTERVAL = 1.0  # seconds between two views
_ID = re.compile(r"[0-9a-f]{8}")
_POLICY = 1008  # close code: what came is no message of the dashboard's


class Source(Protocol):
    """Where views come from."""

    watched: dict[object, str]
    """The connections of which viewers want to know more, by viewer."""

    def view(self) -> dict[str, Any]:
        """What there is to see. Waits, in a greenlet."""

    def close_connection(self, connection: str, by: str) -> None:
        """Closes a connection, of whichever worker."""


class Live(WebsocketsCtrlBase):
    """Serves one viewer."""

    runs_on = "greenlet"
    slow_consumer = "drop_new"
    max_message_size = 256
    max_in_messages = 16
    max_out_messages = 2

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def on_thread_start(self) -> None:
        try:
            while not self.should_stop():
                view = self._source.view()
                view["shown"] = view["shown"].get(self._source.watched.get(self))
                self.push_out_message(json.dumps(view))
                self._listen(_INTERVAL)
        finally:
            self._source.watched.pop(self, None)

    def _listen(self, seconds: float) -> None:
        """Until the next view is due, or somebody wants something that is to be seen at once."""
        message = self.pop_in_message(seconds)
        if message is None:
            return
        wish = _wish(message)
        if wish is None:
            self.close(_POLICY, 'a message is {"show": id}, {"show": null} or {"close": id}')
            return
        what, connection = wish
        if what == "close":
            self._source.close_connection(connection, self.remote_addr or "")
        elif connection:
            self._source.watched[self] = connection
        else:
            self._source.watched.pop(self, None)


def _wish(message: str | bytes) -> tuple[str, str] | None:
    """What a message asks for: ``"show"`` or ``"close"`` and an id, which is empty for none."""
    try:
        data = json.loads(message)
    except ValueError:
        return None
    if not isinstance(data, dict) or len(data) != 1:
        return None
    what, connection = next(iter(data.items()))
    if what == "show" and connection is None:
        return what, ""
    if what in ("show", "close") and isinstance(connection, str) and _ID.fullmatch(connection):
        return what, connection
    return None
