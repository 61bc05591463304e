"""What the loop reads of a connection: all that has come, whatever its size and wherever it was cut, and once.

Small messages and the beginning of large ones come through the buffer of all; what is not whole yet is held for its
connection, and taken over by the reader in Python when anything unusual comes.
"""

from __future__ import annotations

import random
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from krait_ws.config import Config
from krait_ws.network.connection import READ_SIZE, Connection
from krait_ws.network.loop import BUFFER_SIZE, Loop
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import BINARY, PING, PONG, TEXT, Task, close_frame, frame, own_thread, server_frames, upgrade_request
from tests.network.support import new_loop, spin, tcp_pair, turns

POLLERS = pytest.mark.parametrize("poller", ["epoll", "watchers"])
MIB = 1 << 20


class Collector(WebsocketsCtrlBase):
    """Keeps what comes."""

    runs_on = "loop"

    def __init__(self) -> None:
        super().__init__(use_in_message_queue=False)
        self.got: list[Any] = []
        self.codes: list[int] = []

    def on_in_message(self, message: Any) -> None:
        self.got.append(message)

    def on_close(self, code: int, reason: str) -> None:
        self.codes.append(code)


class Made:
    """A collector's connection, and its peer."""

    def __init__(self, loop: Loop, ours: socket.socket, peer: socket.socket, config: Config) -> None:
        self.peer = peer
        self.controller = Collector()
        self.session = self.controller._krait
        self.over: list[Any] = []
        self.session.accept(loop, config, upgrade_request(), None, self.over.append)  # type: ignore[arg-type]
        self.connection = Connection(loop, ours, self.session, b"")

    def send(self, *parts: bytes) -> Task:
        """The peer sends from a thread of its own, and waits there while the socket is full."""
        return Task(lambda: [self.peer.sendall(part) for part in parts])

    def until_got(self, expected: list[Any]) -> None:
        spin(lambda: len(self.controller.got) >= len(expected) or self.over, "the messages")
        turns()
        assert [len(message) for message in self.controller.got] == [len(message) for message in expected]
        assert self.controller.got == expected


@contextmanager
def collecting(loop: Loop, **config: Any) -> Iterator[Made]:
    with tcp_pair() as (ours, peer):
        made = Made(loop, ours, peer, Config(**config))
        try:
            yield made
        finally:
            made.connection.abort()
            spin(lambda: made.over, "the end")


def filling(size: int) -> tuple[bytes, list[Any]]:
    """Frames of exactly ``size`` bytes, and their messages."""
    messages = ["x" * 26] * (size // 32 - 1)
    messages.append("y" * (size - 32 * len(messages) - 6))
    return b"".join(frame(TEXT, message.encode()) for message in messages), messages


@POLLERS
@pytest.mark.parametrize("size", [READ_SIZE - 1, READ_SIZE, READ_SIZE + 1, 2 * READ_SIZE, BUFFER_SIZE, BUFFER_SIZE + 1])
@own_thread
def test_more_than_one_read_waits_in_the_socket(poller: str, size: int) -> None:
    data, messages = filling(size)
    with new_loop(poller) as loop, collecting(loop) as made:
        sent = made.send(data)  # the loop stands still meanwhile
        made.until_got(messages)
        sent.result()


@POLLERS
@own_thread
def test_the_end_comes_with_the_last_bytes(poller: str) -> None:
    for size in (60, READ_SIZE, 4 * READ_SIZE):
        data, messages = filling(size)
        with new_loop(poller) as loop, collecting(loop) as made:
            made.peer.sendall(data)
            made.peer.shutdown(socket.SHUT_WR)
            made.until_got(messages)
            spin(lambda made=made: made.over, "the end of the stream")
            assert made.controller.close_code == 1006


def large(size: int) -> Iterator[tuple[int, Any]]:
    yield BINARY, random.Random(size).randbytes(size)
    yield TEXT, "a" * size
    yield TEXT, ("aä€\U0001f40d" * size)[: size // 3]


SIZES = [125, 126, 4096, 65_535, 65_536, 128 * 1024, 256 * 1024 - 14, 256 * 1024, 256 * 1024 + 1, MIB, 5 * MIB]


@POLLERS
@own_thread
def test_large_messages_cut_anywhere_with_pings_between(poller: str) -> None:
    chance = random.Random(7)
    expected: list[Any] = []
    stream = bytearray()
    for size in [*SIZES, *SIZES[::-1], *chance.sample(SIZES, len(SIZES))]:
        for opcode, message in large(size):
            payload = message.encode() if opcode == TEXT else message
            stream += frame(opcode, payload)
            expected.append(message)
            stream += frame(PING, str(len(expected)).encode())
    cuts = sorted(chance.sample(range(len(stream)), 300))
    parts = [bytes(stream[start:end]) for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    with new_loop(poller) as loop, collecting(loop, max_message_size=16 * MIB) as made:
        pongs = bytearray()

        def listen() -> None:
            while len(server_frames(bytes(pongs))) < len(expected):
                pongs.extend(made.peer.recv(1 << 16))

        listening = Task(listen)
        sent = made.send(*parts)
        spin(lambda: not listening.is_running, "the pongs")
        made.until_got(expected)
        sent.result()
        answers = [(opcode, int(payload)) for opcode, payload in server_frames(bytes(pongs))]
        assert answers == [(PONG, number) for number in range(1, len(expected) + 1)]


@POLLERS
@own_thread
def test_a_large_message_byte_by_byte_at_its_ends(poller: str) -> None:
    message = random.Random(1).randbytes(70_000)
    data = frame(BINARY, message)
    with new_loop(poller) as loop, collecting(loop) as made:
        for cut in range(20):
            made.peer.sendall(data[cut : cut + 1])
            turns(2)
        made.peer.sendall(data[20:-20])
        for cut in range(len(data) - 20, len(data)):
            made.peer.sendall(data[cut : cut + 1])
            turns(2)
        made.peer.sendall(frame(TEXT, b"behind"))
        made.until_got([message, "behind"])


@POLLERS
@own_thread
def test_text_that_is_none_fails_before_its_end(poller: str) -> None:
    for bad in (b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"):
        for ahead in (0, 1, 2, 3, 4, 7, 8, 9, 3000, 20_000, 300_000):
            data = frame(TEXT, b"a" * ahead + bad + b"b" * 400_000)
            with new_loop(poller) as loop, collecting(loop) as made:
                made.peer.sendall(data[: 14 + ahead + len(bad)])
                spin(lambda made=made: made.controller.close_code, "the fault is noticed")
                assert made.controller.close_code == 1007, (bad, ahead)
                assert made.controller.got == []


@POLLERS
@own_thread
def test_a_peer_that_goes_in_the_middle_of_a_message(poller: str) -> None:
    data = frame(BINARY, b"x" * 300_000)
    for sent in (1, 5, 13, 14, 15, 5000, 200_000):
        with new_loop(poller) as loop, collecting(loop) as made:
            made.peer.sendall(frame(TEXT, b"whole") + data[:sent])
            spin(lambda made=made: made.controller.got, "the message before")
            turns(3)
            made.peer.shutdown(socket.SHUT_WR)
            spin(lambda made=made: made.over, "the end of the stream")
            assert made.controller.got == ["whole"]
            assert made.controller.close_code == 1006


@POLLERS
@own_thread
def test_a_close_of_ours_in_the_middle_of_a_message(poller: str) -> None:
    data = frame(BINARY, b"x" * 300_000)
    for part in (3, 200_000):
        with new_loop(poller) as loop, collecting(loop) as made:
            made.peer.sendall(data[:part])
            turns()
            made.controller.close(4000, "enough")
            turns()
            made.peer.sendall(data[part:] + close_frame(4000, b"enough"))
            spin(lambda made=made: made.over, "the peer's close frame behind the message")
            assert made.controller.close_code == 4000
            assert server_frames(made.peer.recv(1000)) == [(8, (4000).to_bytes(2, "big") + b"enough")]


@POLLERS
@own_thread
def test_a_message_that_is_not_whole_while_reading_is_paused(poller: str) -> None:
    message = random.Random(2).randbytes(900_000)
    data = frame(BINARY, message)
    with new_loop(poller) as loop, collecting(loop) as made:
        made.peer.sendall(data[:100_000])
        turns()
        made.connection._pause_reading()
        sent = made.send(data[100_000:], frame(TEXT, b"behind"))
        turns()
        assert made.controller.got == []
        made.connection.resume_reading()
        made.until_got([message, "behind"])
        sent.result()


@own_thread
def test_what_is_announced_and_does_not_come_takes_no_memory() -> None:
    count = 1000
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with new_loop() as loop, ExitStack() as stack:
            data = frame(BINARY, b"x" * MIB)[:200]
            made = [stack.enter_context(collecting(loop)) for _ in range(count)]
            turns()
            before = resident()
            for one in made:
                one.peer.sendall(data)
            spin(lambda: all(one.session.bytes_in == len(data) for one in made), "the beginnings")
            assert (resident() - before) / count < 12_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


@own_thread
def test_the_beginning_of_a_message_does_not_keep_the_memory_of_a_large_one() -> None:
    """Failed: it lay in the buffer of the message before, which was never given back."""
    count = 40
    large = frame(BINARY, b"x" * 2 * MIB)
    shorter = frame(BINARY, b"x" * (2 * MIB - 64))
    with new_loop() as loop, ExitStack() as stack:
        made = [stack.enter_context(collecting(loop, max_message_size=4 * MIB)) for _ in range(count)]

        def take(one: Made, data: bytes) -> None:
            expected = one.session.bytes_in + len(data)
            sent = one.send(data)
            spin(lambda: one.session.bytes_in == expected, "the bytes")
            sent.result()
            one.controller.got.clear()

        for one in made[:2]:
            take(one, large)
        before = resident()
        for one in made:
            take(one, large)
            take(one, shorter + large[:1])
        assert resident() - before < count * MIB // 4


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
