"""Messages in parts: iterators pushed as one fragmented message, and incoming messages as iterators of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from krait_ws.config import Config
from krait_ws.errors import ConfigError, ConnectionEndedError
from krait_ws.mailbox import OutMailbox
from krait_ws.protocol.connection import ProtocolState
from krait_ws.protocol.frames import encode_text
from krait_ws.protocol.messages import Piece
from krait_ws.streams import push_stream
from krait_ws.testing import drive
from krait_ws.waiting import Signal
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import BINARY, CONTINUATION, DEADLINE, PING, TEXT, Task, frame, own_thread, splits


def sent(mailbox: OutMailbox) -> list[tuple[bool, int, bytes]]:
    """Fin, opcode and payload of the short frames in a mailbox."""
    return [(data[0] >= 0x80, data[0] & 0x0F, data[2:]) for data in mailbox.take(1 << 20)]


def popped(mailbox: OutMailbox) -> list[Any]:
    messages = []
    while (message := mailbox.pop()) is not None:
        messages.append(message)
    return messages


# ---- out


@pytest.mark.parametrize(
    ("chunks", "frames"),
    [
        (["a"], [(True, TEXT, b"a")]),
        (["a", "é"], [(False, TEXT, b"a"), (True, CONTINUATION, "é".encode())]),
        ([b"a", b"b", b"c"], [(False, BINARY, b"a"), (False, CONTINUATION, b"b"), (True, CONTINUATION, b"c")]),
        ([bytearray(b"a"), memoryview(b"b")], [(False, BINARY, b"a"), (True, CONTINUATION, b"b")]),
        ([""], [(True, TEXT, b"")]),
    ],
    ids=["one", "text", "binary", "bytes-like", "empty text"],
)
def test_an_iterator_is_one_message_in_fragments(chunks: list[Any], frames: list[tuple[bool, int, bytes]]) -> None:
    mailbox = OutMailbox(Config())
    assert push_stream(mailbox, iter(chunks)) is True
    assert sent(mailbox) == frames


def test_a_message_in_fragments_can_be_taken_back_whole() -> None:
    instance = WebsocketsCtrlBase()
    assert instance.push_out_message(iter(["a", "b", "c"])) is True
    assert instance.push_out_message("next") is True
    assert instance.pop_out_message() == "abc"
    assert instance.pop_out_message() == "next"


@pytest.mark.parametrize("chunks", [["a", b"b"], [b"a", "b"], ["a", None], [1]], ids=repr)
def test_chunks_of_another_type_are_refused(chunks: list[Any]) -> None:
    with pytest.raises(TypeError, match="all str or all bytes-like"):
        push_stream(OutMailbox(Config()), iter(chunks))


def test_an_iterator_without_chunks_is_no_message_and_nothing_happens() -> None:
    instance = WebsocketsCtrlBase()
    with pytest.raises(ValueError, match="without chunks"):
        instance.push_out_message(iter([]))
    assert not instance.should_stop()
    assert instance.push_out_message("next") is True


def test_what_an_iterator_raises_before_its_first_chunk_changes_nothing() -> None:
    def chunks() -> Iterator[str]:
        raise LookupError
        yield "never"

    instance = WebsocketsCtrlBase()
    with pytest.raises(LookupError):
        instance.push_out_message(chunks())
    assert not instance.should_stop()


def test_what_an_iterator_raises_after_its_first_chunk_ends_the_connection_with_1011() -> None:
    def chunks() -> Iterator[str]:
        yield "a"
        yield "b"
        raise LookupError("a secret")

    instance = WebsocketsCtrlBase()
    with pytest.raises(LookupError):
        instance.push_out_message(chunks())
    assert instance.close_code == 1011
    assert instance.close_reason == ""


@pytest.mark.parametrize("policy", ["block", "close", "drop_new", "drop_oldest"])
def test_nothing_comes_between_the_fragments_and_nothing_is_lost(policy: str) -> None:
    mailbox = OutMailbox(Config(slow_consumer=policy))

    def chunks() -> Iterator[str]:
        for number in range(3):
            yield str(number)
            assert mailbox.push(encode_text(f"between {number}")) is True

    assert push_stream(mailbox, chunks()) is True
    assert popped(mailbox) == ["012", "between 0", "between 1", "between 2"]


@pytest.mark.parametrize("policy", ["close", "drop_new", "drop_oldest"])
def test_a_fragment_waits_for_room_whatever_the_policy(policy: str) -> None:
    mailbox = OutMailbox(Config(slow_consumer=policy, max_out_messages=2))
    pushing = Task(lambda: push_stream(mailbox, iter("abcdef"))).until_blocked()
    data = []
    while pushing.is_running or len(mailbox):
        data += sent(mailbox)
    assert pushing.result() is True
    assert b"".join(payload for _, _, payload in data) == b"abcdef"
    assert [fin for fin, _, _ in data] == [False] * 5 + [True]
    assert mailbox.dropped == 0


def test_a_push_that_waits_for_room_comes_behind_a_stream_that_begins_meanwhile() -> None:
    """Failed: it found room between two fragments, where no other message may stand (RFC 6455 section 5.4)."""
    mailbox = OutMailbox(Config(max_out_messages=1))
    mailbox.push(encode_text("before"))
    waiting = Task(lambda: mailbox.push(encode_text("waits"))).until_blocked()
    go = Signal()

    def chunks() -> Iterator[str]:
        yield "a"
        yield "b"
        go.wait(DEADLINE)
        yield "c"

    streaming = Task(lambda: push_stream(mailbox, chunks())).until_blocked()
    data = sent(mailbox)  # both who wait for room are woken
    go.set()
    while streaming.is_running or waiting.is_running or len(mailbox):
        data += sent(mailbox)
    assert streaming.result() is True
    assert waiting.result() is True
    opcodes = [opcode for _, opcode, payload in data if payload in (b"a", b"b", b"c")]
    places = [number for number, (_, _, payload) in enumerate(data) if payload in (b"a", b"b", b"c")]
    assert opcodes == [TEXT, CONTINUATION, CONTINUATION]
    assert places[2] - places[0] == 2, data
    assert sorted(payload for _, _, payload in data) == [b"a", b"b", b"before", b"c", b"waits"]


def test_two_streams_come_one_after_the_other() -> None:
    mailbox = OutMailbox(Config())
    begun, go = Signal(), Signal()

    def slow() -> Iterator[str]:
        yield "a"
        begun.set()
        yield "b"
        go.wait(DEADLINE)
        yield "c"

    first = Task(lambda: push_stream(mailbox, slow()))
    assert begun.wait(DEADLINE)
    second = Task(lambda: push_stream(mailbox, iter("xyz"))).until_blocked()
    go.set()
    assert first.result() is True
    assert second.result() is True
    assert popped(mailbox) == ["abc", "xyz"]


def test_the_end_of_the_connection_ends_a_stream_and_what_waits_behind_it() -> None:
    instance = type("Controller", (WebsocketsCtrlBase,), {"max_out_messages": 1})()
    streaming = Task(lambda: instance.push_out_message(iter("abc"))).until_blocked()
    behind = Task(lambda: instance.push_out_message(iter("xyz"))).until_blocked()
    instance.close(4000)
    assert streaming.result() is False
    assert behind.result() is False
    assert instance.close_code == 4000


def test_a_push_that_waits_behind_a_stream_goes_through_when_it_ends() -> None:
    mailbox = OutMailbox(Config(max_out_messages=2))
    begun, go = Signal(), Signal()

    def slow() -> Iterator[str]:
        yield "a"
        begun.set()
        go.wait(DEADLINE)

    streaming = Task(lambda: push_stream(mailbox, slow()))
    assert begun.wait(DEADLINE)
    pushing = Task(lambda: [mailbox.push(encode_text(str(number))) for number in range(3)]).until_blocked()
    go.set()
    assert streaming.result() is True
    received: list[Any] = []
    while pushing.is_running or len(mailbox):
        received += popped(mailbox)
    assert pushing.result() == [True] * 3
    assert received == ["a", "0", "1", "2"]


# ---- in


@pytest.mark.parametrize(
    ("data", "joined"),
    [
        pytest.param(frame(TEXT, "a€b".encode()), ["a€b"], id="text"),
        pytest.param(frame(BINARY, b"\x00\xff"), [b"\x00\xff"], id="binary"),
        pytest.param(frame(TEXT), [""], id="empty"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(PING) + frame(CONTINUATION, b"b") + frame(BINARY, b"c"),
            ["ab", b"c"],
            id="fragments",
        ),
        pytest.param(frame(BINARY, b"x" * 300), [b"x" * 300], id="above the limit of whole messages"),
    ],
)
def test_pieces_join_to_the_message_however_they_are_cut(data: bytes, joined: list[Any]) -> None:
    for chunks in splits(data):
        protocol = ProtocolState(10, streams=True)
        pieces = [piece for chunk in chunks for piece in protocol.receive(chunk)]
        assert protocol.close_code is None
        messages: list[Any] = []
        for piece in pieces:
            assert isinstance(piece, Piece)
            if piece.is_first:
                messages.append(piece.data)
            else:
                messages[-1] += piece.data
        assert messages == joined
        assert sum(piece.is_first for piece in pieces) == sum(piece.is_last for piece in pieces) == len(joined)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"a\xff", fin=False), 1007),
        (frame(TEXT, "€".encode()[:2]), 1007),
        (frame(BINARY, b"a", fin=False) + frame(BINARY, b"b"), 1002),
    ],
    ids=["bad text", "text ends inside a character", "new message"],
)
def test_faults_in_pieces(data: bytes, code: int) -> None:
    for chunks in splits(data):
        protocol = ProtocolState(10, streams=True)
        for chunk in chunks:
            protocol.receive(chunk)
        assert protocol.close_code == code


class Streams(WebsocketsCtrlBase):
    stream_messages = True

    def on_thread_start(self) -> None:
        for message in self.messages():
            try:
                parts = list(message)
            except ConnectionEndedError:
                self.ended_inside = True
                return
            self.push_out_message(f"{'text' if message.is_text else 'binary'} {parts}")


@own_thread
def test_a_controller_gets_messages_as_streams() -> None:
    with drive(Streams()) as driver:
        for piece in (Piece("a", True, False), Piece("b", False, True), Piece(b"c", True, True)):
            driver.controller._krait.receive([piece])
        driver.expect("text ['a', 'b']")
        driver.expect("binary [b'c']")


@own_thread
def test_the_end_inside_a_message_is_told() -> None:
    with drive(Streams()) as driver:
        driver.controller._krait.receive([Piece("a", True, False)])
        driver.close()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.ended_inside is True  # type: ignore[attr-defined]


@own_thread
def test_taking_the_next_message_gives_up_the_rest_of_this_one() -> None:
    class Skips(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            first = self.pop_in_message(None)
            second = self.pop_in_message(None)
            self.push_out_message(f"{list(first)} {list(second)}")

    with drive(Skips()) as driver:
        pieces = [Piece("a", True, False), Piece("b", False, True), Piece("c", True, True)]
        driver.controller._krait.receive(pieces)
        driver.expect("[] ['c']")


@own_thread
def test_streams_cannot_be_read_on_the_loop() -> None:
    wrong = type("Wrong", (WebsocketsCtrlBase,), {"stream_messages": True, "runs_on": "loop"})
    with pytest.raises(ConfigError, match=r"Wrong.*stream_messages.*loop"), drive(wrong()):
        pass
