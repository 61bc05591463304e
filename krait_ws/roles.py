"""What a session asks of those around it: its controller, its connection and the server's loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from krait_ws.session import Session


class Hooks(Protocol):
    """What a session calls on its controller."""

    def on_start(self) -> None: ...
    def on_thread_start(self) -> None: ...
    def on_in_message_internal(self, message: Any) -> None: ...
    def on_stop(self) -> None: ...


class Transport(Protocol):
    """What a session asks of its connection. Called on the network loop only."""

    def flush(self) -> None:
        """Send whatever there is to send."""

    def send_now(self) -> None:
        """The out-mailbox has something to take."""

    def resume_reading(self) -> None:
        """There is room for messages again."""

    def limit_turn(self, frames: int) -> None:
        """Read at most so many frames in one turn."""

    def send_ping(self) -> None:
        """Send a ping; ``Session.pong_received`` hears of its answer."""

    def close(self, code: int, reason: str) -> None:
        """Send what is queued, then close."""

    def abort(self) -> None:
        """Let go of the socket at once."""


class Runtime(Protocol):
    """What a session needs of the network loop."""

    hub: Any
    in_hook: Session | None
    """Whose hook runs on the loop at the moment."""

    def call(self, function: Callable[[], Any]) -> None:
        """Runs ``function`` on the loop soon. Thread: any."""

    def call_later(self, seconds: float, function: Callable[[], Any]) -> Any:
        """Runs ``function`` on the loop after ``seconds``. Thread: the loop."""
