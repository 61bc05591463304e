"""The promises of the protocol state, checked for one input."""

from __future__ import annotations

import codecs
import random
import sys
import tracemalloc
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import PayloadTooBig
from websockets.protocol import State as ReferenceState
from websockets.server import ServerProtocol

from krait_ws.config import Config
from krait_ws.protocol.connection import ProtocolState
from krait_ws.protocol.deflate import Deflate, negotiate
from krait_ws.protocol.messages import Piece
from tests.fuzz.common import OFFERS, Failure
from tests.helpers import BINARY, CONTINUATION, PONG, TEXT


@dataclass(frozen=True)
class Setup:
    """How a protocol state is made."""

    limit: int
    offer: str = ""
    max_inflated: int = 4096
    streams: bool = False
    closing: bool = False

    def make(self) -> ProtocolState:
        config = Config(compress=True, max_inflated_size=self.max_inflated, max_message_size=self.limit)
        negotiated = negotiate(self.offer, config)
        deflate: Deflate | None = negotiated[0] if negotiated else None
        state = ProtocolState(self.limit, deflate, streams=self.streams)
        if self.closing:
            state.send_close(1000, "")
            state.take_control_frames()
        return state

    @property
    def most_given(self) -> int:
        """Bytes of the largest message."""
        return max(self.limit, self.max_inflated) if self.offer else self.limit


SETUPS = [
    Setup(limit, offer, inflated, streams, closing)
    for limit in (1, 125, 126, 1000, 70_000)
    for offer, inflated in (("", 4096), *((offer, inflated) for offer in OFFERS for inflated in (100, 4096, 1 << 20)))
    for streams in (False, True)
    for closing in (False, True)
    if not closing or limit == 1000
]


@dataclass
class Outcome:
    """What a peer's bytes lead to."""

    messages: list[str | bytes]
    partial: str | bytes  # of a message in pieces that has not ended
    close_code: int | None
    reason: str
    pongs: list[bytes]


def outcome(setup: Setup, chunks: list[bytes], *, in_buffer: bool = False) -> Outcome:
    """What ``chunks`` lead to, with every promise checked that one run can check."""
    state = setup.make()
    messages: list[str | bytes] = []
    parts: list[Any] = []
    pongs: list[bytes] = []
    buffer = bytearray(max(map(len, chunks), default=0))
    for chunk in chunks:
        data: bytes | memoryview = chunk
        if in_buffer:
            buffer[: len(chunk)] = chunk
            data = memoryview(buffer)[: len(chunk)]
        items = state.receive(data)
        if in_buffer:
            buffer[:] = b"\xa5" * len(buffer)
        _check_turn(setup, items)
        turns = 0
        while state.is_holding:
            turns += 1
            if turns > len(chunk) + 300:
                raise Failure("holds for ever")
            more = state.receive(b"")
            _check_turn(setup, more)
            items += more
        for item in items:
            if isinstance(item, Piece) != setup.streams:
                raise Failure(f"gave {type(item).__name__} with streams={setup.streams}")
            if isinstance(item, Piece):
                if item.is_first != (not parts):
                    raise Failure(f"is_first={item.is_first} after {len(parts)} pieces")
                parts.append(item.data)
                if item.is_last:
                    messages.append(type(item.data)().join(parts))
                    parts = []
            else:
                size = len(item.encode()) if isinstance(item, str) else len(item)
                if size > setup.most_given:
                    raise Failure(f"gave a message of {size} bytes with {setup}")
                messages.append(item)
        if setup.closing and items:
            raise Failure("gave a message after our close frame")
        _check_kept(setup, state, len(chunk))
        pongs += _pongs(state.take_control_frames())
    end = Outcome(messages, parts[0][:0].join(parts) if parts else b"", state.close_code, state.close_reason, pongs)
    if (code := end.close_code) is not None and not (1000 <= code <= 1014 or 3000 <= code <= 4999):
        raise Failure(f"close code {code}")
    return end


def _check_turn(setup: Setup, items: list[Any]) -> None:
    """What one turn gives."""
    sizes = [len(item.data if isinstance(item, Piece) else item) for item in items]
    if len(items) > 1024 or sum(sizes) > 2 * setup.most_given + (1 << 19):
        raise Failure(f"gave {len(items)} items of {sum(sizes)} characters in one turn with {setup}")


def _check_kept(setup: Setup, state: Any, size: int) -> None:
    """What the state keeps between two reads."""
    kept = len(state._buffered) + len(state._payload or b"")
    inflater = getattr(state._deflate, "_inflater", None)
    if state.close_code is None:
        kept += len(getattr(inflater, "unused_data", b"")) + len(getattr(inflater, "unconsumed_tail", b""))
    if kept > setup.most_given + size + 300:
        raise Failure(f"keeps {kept} bytes with {setup}")
    if len(state._owed or ()) > 64:
        raise Failure(f"owes {len(state._owed)} control frames")


def _pongs(data: bytes) -> list[bytes]:
    found = []
    while data:
        first, size = data[0], data[1]
        if first & 0x70 or not first & 0x80 or size > 125 or len(data) < 2 + size:
            raise Failure(f"owes something that is no control frame: {data[:20].hex()}")
        if first & 0x0F == PONG:
            found.append(data[2 : 2 + size])
        data = data[2 + size :]
    return found


def check(setup: Setup, data: bytes, cuts: random.Random) -> None:
    """Every promise for one input.

    Raises:
        Failure: One is broken.
    """
    whole = outcome(setup, [data])
    ways = {"random": cut(data, cuts), "random, again": cut(data, cuts)}
    if len(data) < 3000:
        ways["byte by byte"] = [data[index : index + 1] for index in range(len(data))]
    for way, chunks in ways.items():
        _compare(setup, whole, outcome(setup, chunks), f"whole and {way}")
    _compare(setup, whole, outcome(setup, [data], in_buffer=True), "bytes and a buffer")
    if setup.limit > 125 and not setup.offer and not setup.streams and not setup.closing:
        _compare_reference(whole, data, setup.limit)


def _compare(setup: Setup, one: Outcome, other: Outcome, what: str) -> None:
    # Where compressed data breaks several rules in one frame, a cut decides which is seen first.
    if setup.offer and {one.close_code, other.close_code} == {None, 1007}:
        return  # zlib notices a reference beyond the agreed window only when the output was cut before it
    either = (None,) if not setup.offer else (1002, 1007, 1009)
    if one.close_code != other.close_code and not (one.close_code in either and other.close_code in either):
        raise Failure(f"{what} differ: {one.close_code} {one.reason!r} and {other.close_code} {other.reason!r}")
    if one.messages != other.messages:
        raise Failure(f"{what} differ: messages {_shown(one.messages)} and {_shown(other.messages)}")
    failed = one.close_code is not None
    if not failed and len(one.partial) != len(other.partial):
        raise Failure(f"{what} differ: {len(one.partial)} and {len(other.partial)} in the message that has not ended")
    if max(len(one.pongs), len(other.pongs)) <= 32 and one.pongs != other.pongs:
        raise Failure(f"{what} differ: pongs {one.pongs} and {other.pongs}")


def _compare_reference(ours: Outcome, data: bytes, limit: int) -> None:
    """With the sans-I/O protocol of ``websockets``, which is laxer: it takes lengths that are not minimal, and text
    is checked by who calls it. Its limit holds for control frames too, so it must not be below theirs."""
    protocol = ServerProtocol(state=ReferenceState.OPEN, max_size=limit)
    protocol.receive_data(data)
    messages: list[str | bytes] = []
    payload, text, bad_text = b"", False, False
    decoder = codecs.getincrementaldecoder("utf-8")()
    for event in protocol.events_received():
        if event.opcode in (TEXT, BINARY):  # type: ignore[union-attr]
            payload, text = b"", event.opcode == TEXT  # type: ignore[union-attr]
            decoder.reset()
        if event.opcode in (TEXT, BINARY, CONTINUATION):  # type: ignore[union-attr]
            payload += bytes(event.data)  # type: ignore[union-attr]
            try:
                if text:
                    decoder.decode(bytes(event.data), event.fin)  # type: ignore[union-attr]
            except UnicodeDecodeError:
                bad_text = True
                break
            if event.fin:  # type: ignore[union-attr]
                messages.append(payload.decode() if text else payload)
    if isinstance(protocol.parser_exc, PayloadTooBig):
        return  # it counts a control frame between fragments as a part of the message, which it is not
    if ours.close_code is None:
        if bad_text or protocol.parser_exc is not None:
            raise Failure(f"websockets refuses what we take: {protocol.parser_exc or 'text is not UTF-8'}")
        if ours.messages != messages:
            raise Failure(f"websockets gives {_shown(messages)}, we give {_shown(ours.messages)}")
        return
    if ours.messages != messages[: len(ours.messages)]:
        raise Failure(f"websockets gives {_shown(messages)}, we give {_shown(ours.messages)} before the end")
    closed = protocol.close_rcvd is not None or protocol.close_sent is not None
    stricter = "shortest form" in ours.reason or ours.close_code == 1007
    if not (closed or bad_text or protocol.parser_exc is not None or stricter or _announces_more(ours)):
        raise Failure(f"websockets takes what we refuse: {ours.close_code} {ours.reason!r}")


def _announces_more(ours: Outcome) -> bool:
    """We look at the first byte of a head, and at a length, before the rest of the head is here."""
    return ours.close_code in (1002, 1009)


def _shown(messages: list[Any]) -> str:
    return f"{len(messages)} messages, last {messages[-1][:40]!r}" if messages else "no message"


def cut(data: bytes, cuts: random.Random) -> list[bytes]:
    chunks = []
    position = 0
    while position < len(data):
        size = cuts.choice((1, 2, 3, 5, 7, 14, 100, 125, 1000, 16384))
        chunks.append(data[position : position + size])
        position += size
    return chunks


def memory_problem(setup: Setup, data: bytes) -> str | None:
    """Whether one read spends more than its input and the limits explain."""
    state = setup.make()
    tracemalloc.start()
    try:
        given = sum(sys.getsizeof(item.data if isinstance(item, Piece) else item) for item in state.receive(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = 2 * given + 20 * len(data) + 6 * setup.most_given + (1 << 17)
    return f"one read of {len(data)} bytes took {peak} bytes of memory, not {allowed}" if peak > allowed else None
