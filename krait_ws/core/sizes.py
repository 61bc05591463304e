"""What a message takes in memory, and what a mailbox calls that nobody has connected."""

from __future__ import annotations

from krait_ws.protocol.messages import Item, Piece


def memory_size(item: Item) -> int:
    """Bytes that a message, or a piece of one, holds at most: four a character when a text is not ASCII."""
    if type(item) is bytes:
        return len(item)
    data = item.data if isinstance(item, Piece) else item
    return len(data) if isinstance(data, bytes) or data.isascii() else 4 * len(data)


def no_one() -> None:
    """What a mailbox calls that nobody has connected."""
