"""Groups of controllers: the last message of each key is replayed to a newcomer, then everything comes live.

Comes in: messages from any thread. Goes out: the same messages, in one order for all members. A group is what a chat
room, a presence list or an event stream of states is made of::

    states = Group()

    class Panel(WebsocketsCtrlBase):
        def on_thread_start(self):
            states.join(self)
            for message in self.messages():
                states.publish(message, key="lamp")

A group lives in one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from krait_ws.errors import GroupFullError
from krait_ws.protocol.frames import BYTES_LIKE, Message
from krait_ws.waiting import new_reentrant_lock
from krait_ws.websockets import WebsocketsCtrlBase, broadcast


class Group:
    """Controllers that hear the same messages. Every method may be called from any thread, and none waits for a slow
    member: what its full out-mailbox means is said by ``broadcast``.

    All members get the messages in one order, each message once. A controller whose connection has ended is a member no
    more.

    Args:
        max_keys: How many keys may have a last message. The replay must find room in the out-mailbox of a newcomer, so
            a larger number needs a larger ``max_out_messages`` in its class.
    """

    def __init__(self, max_keys: int = 512) -> None:
        if max_keys < 0:
            raise ValueError(f"max_keys: {max_keys} is below 0")
        self._max_keys = max_keys
        # Re-entrant, because sending can run a greenlet at once on this thread: that of a member whose connection it
        # ended. What such a greenlet does here waits in _unsent, so that the order stays one for all.
        self._lock = new_reentrant_lock()
        self._members: dict[int, WebsocketsCtrlBase] = {}  # by id; guarded by _lock, as is all below
        self._sweep_at = 64  # how many members make a join look for those that have ended
        self._last: dict[Hashable, Message] = {}
        self._unsent: deque[tuple[list[WebsocketsCtrlBase], Message]] = deque()
        self._is_sending = False

    def join(self, controller: WebsocketsCtrlBase) -> bool:
        """Makes a controller a member. First it gets the last message of every key, oldest key first, then all that is
        published from now on: nothing in between is lost or comes twice.

        Returns:
            ``False`` when it was a member before, and nothing is replayed, or when its connection has ended.
        """
        with self._lock:
            if id(controller) in self._members or controller.should_stop():
                return False
            if len(self._members) >= self._sweep_at:
                self._sweep_locked()
            self._members[id(controller)] = controller
            self._send_locked(([controller], message) for message in self._last.values())
            return True

    def leave(self, controller: WebsocketsCtrlBase) -> bool:
        """Ends a membership: the controller gets nothing that is published from now on.

        Returns:
            ``False`` when it was no member.
        """
        with self._lock:
            return self._members.pop(id(controller), None) is not None

    def publish(
        self,
        message: str | bytes | bytearray | memoryview,
        key: Hashable | None = None,
        but: WebsocketsCtrlBase | None = None,
    ) -> None:
        """Sends a message to every member: ``str`` as text, bytes-like as binary.

        Args:
            message: What to send.
            key: Whose last message this is from now on; ``None`` for one that is not replayed.
            but: A member that does not get it, for example the one that said it.

        Raises:
            TypeError: ``message`` is neither.
            UnicodeEncodeError: It is a text with a lone surrogate.
            GroupFullError: The key is new, and ``max_keys`` others have a last message. Nothing was sent.
        """
        message = _checked(message)
        with self._lock:
            if key is not None:
                if key not in self._last and len(self._last) >= self._max_keys:
                    raise GroupFullError(
                        f"{self._max_keys} keys have a last message, {key!r} would be one more: "
                        "forget those that are over, or give Group a larger max_keys"
                    )
                self._last[key] = message
            self._sweep_locked()
            self._send_locked([([member for member in self._members.values() if member is not but], message)])

    def forget(self, key: Hashable) -> bool:
        """The last message of a key is not replayed any more.

        Returns:
            ``False`` when it had none.
        """
        with self._lock:
            return self._last.pop(key, None) is not None

    def last(self) -> dict[Hashable, Message]:
        """A copy of the last messages by key, oldest key first: what a newcomer would get now."""
        with self._lock:
            return dict(self._last)

    def members(self) -> list[WebsocketsCtrlBase]:
        """Those whose connections have not ended, in the order in which they joined."""
        with self._lock:
            self._sweep_locked()
            return list(self._members.values())

    def _sweep_locked(self) -> None:
        """Lets go of members that have ended. A join does so only when they may be half of all, since it looks at each:
        a join then costs the same however many they are."""
        over = [key for key, member in self._members.items() if member.should_stop()]
        for key in over:
            del self._members[key]
        self._sweep_at = max(64, 2 * len(self._members))

    def _send_locked(self, messages: Iterable[tuple[list[WebsocketsCtrlBase], Message]]) -> None:
        self._unsent.extend(messages)
        if self._is_sending:
            return
        self._is_sending = True
        try:
            while self._unsent:
                broadcast(*self._unsent.popleft())
        finally:
            self._is_sending = False


def _checked(message: str | bytes | bytearray | memoryview) -> Message:
    """A message that can be kept and sent many times."""
    if isinstance(message, str):
        message.encode()
        return message
    if isinstance(message, BYTES_LIKE):
        return bytes(message)
    raise TypeError(f"a message is str or bytes-like, not {type(message).__name__}: make it one, with json.dumps")
