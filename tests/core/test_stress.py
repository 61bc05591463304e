"""Many clients at once, their frames of every kind cut anywhere, against handlers that are quick, slow or elsewhere.

Whatever each of them does, the answers to one client come in the order of its messages, whole and once; so do the
messages of each thread that pushes from elsewhere, and the pongs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.broadcast import broadcast
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]

CLIENTS = 12
MESSAGES = 400


class Fickle(WebsocketsCtrlBase):
    """Echoes, in a manner that changes with each message."""

    runs_on = "thread"
    members: set[Any] = set()  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(len(self.members))
        self.hears_broadcasts = len(self.members) % 2 == 0
        if self.hears_broadcasts:
            # A broadcast does not wait: it closes a connection whose mailbox is full, and the handler fills a small one
            # whenever the loop has not had its turn.
            self.max_out_messages, self.max_out_bytes = 100_000, 1 << 30
        self.members.add(self)

    def on_thread_start(self) -> None:
        answers: list[Any] = []
        while True:
            timeout = self.random.choice([None, None, None, 0, 0.0005, 0.03])
            message = self.pop_in_message(timeout)
            if message is None:
                if self.should_stop():
                    return
                continue
            self.whim()
            answers.append(message)
            if self.random.random() < 0.8:
                for answer in answers:
                    self.answer(answer)
                answers.clear()
            elif message == "last":
                for answer in answers:
                    self.answer(answer)

    def answer(self, message: Any) -> None:
        if isinstance(message, str) and len(message) > 20 and self.random.random() < 0.1:
            self.push_out_message(iter([message[:7], message[7:]]))
        else:
            self.push_out_message(message)

    def whim(self) -> None:
        chance = self.random.random()
        if chance < 0.02:
            self.wait_stop(0.03)  # longer than a tick
        elif chance < 0.05:
            self.wait_stop(0.002)
        elif chance < 0.1:
            until = time.monotonic() + 0.001
            while time.monotonic() < until:
                pass


class Speaker:
    """One client: a thread sends, the caller's receives and checks."""

    def __init__(self, port: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.client = RawClient(port, receive_buffer=self.random.choice([4096, None, None]), timeout=3 * PATIENCE)
        self.answers: list[str | bytes] = []
        self.pings: list[bytes] = []
        self.stream = self.frames()
        self.errors: list[BaseException] = []

    def frames(self) -> bytes:
        stream = bytearray()
        for number in range(MESSAGES):
            kind = self.random.random()
            size = self.random.choice([0, 3, 3, 3, 100, 100, 130, 3000, 5000, 40_000 if kind < 0.5 else 10])
            if kind < 0.1:
                ping = f"ping {number}".encode()
                self.pings.append(ping)
                stream += frame(PING, ping)
            message: str | bytes = f"{number} " + "ä" * size if kind < 0.5 else f"{number} ".encode() + b"z" * size
            opcode = TEXT if isinstance(message, str) else BINARY
            data = message.encode() if isinstance(message, str) else message
            self.answers.append(message)
            if kind > 0.9:
                cut = self.random.randrange(len(data) + 1)
                stream += frame(opcode, data[:cut], fin=False) + frame(PONG, b"unasked")
                stream += frame(CONTINUATION, data[cut:])
            else:
                stream += frame(opcode, data)
        self.answers.append("last")
        return bytes(stream + frame(TEXT, "last"))

    def send(self) -> None:
        at = 0
        while at < len(self.stream):
            size = self.random.choice([1, 2, 7, 50, 500, 3000, 20_000])
            self.client.send(self.stream[at : at + size])
            at += size
            if self.random.random() < 0.2:
                time.sleep(self.random.choice([0, 0.0005, 0.003]))  # different cuts, nothing depends on it

    def receive(self) -> None:
        heard: dict[str, int] = {}
        joined = b""
        opcode = 0
        answers, pings = iter(self.answers), iter(self.pings)
        while True:
            received = self.client.receive_frame()
            if received.opcode == PONG:
                assert received.payload == next(pings)
                continue
            if received.opcode == PING:
                continue  # the answer would come into the middle of what the other thread sends
            opcode = received.opcode or opcode
            joined += received.payload
            if not received.fin:
                continue
            message: str | bytes = joined.decode() if opcode == TEXT else joined
            joined = b""
            if isinstance(message, str) and message.startswith("from "):
                _, name, number = message.split()
                assert int(number) > heard.get(name, -1)
                heard[name] = int(number)
                continue
            expected = next(answers)
            assert message == expected, f"{message[:30]!r} instead of {expected[:30]!r}"
            if message == "last":
                break
        assert next(answers, None) is None

    def run(self) -> None:
        try:
            sender = threading.Thread(target=self.send)
            sender.start()
            try:
                self.receive()
            finally:
                if self.errors:
                    self.client.close()
                sender.join(PATIENCE)
            self.leave()
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.client.close()

    def leave(self) -> None:
        how = self.random.choice(["close", "reset", "half"])
        if how == "close":
            self.client.send(close_frame(1000))
            while self.client.receive_frame().opcode != CLOSE:
                pass
        elif how == "reset":
            self.client.reset()
        else:
            self.client.half_close()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("poller", ["epoll", "watchers"])
def test_everything_at_once(serve: Serve, seed: int, poller: str) -> None:
    class Members(Fickle):
        members: set[Any] = set()  # noqa: RUF012

    limits = {"max_out_messages": 40, "max_in_messages": 60, "push_timeout": 120, "handshake_timeout": 120}
    site = serve(Members, poller=poller, **limits)
    over = threading.Event()

    def push_from_elsewhere(name: str) -> None:
        number = 0
        while not over.wait(0.002):
            for member in list(Members.members):
                if member.pressure.messages < 10:  # else a slow client would get ever more
                    if name == "all":
                        if member.hears_broadcasts:
                            broadcast([member], f"from {name} {number}")
                    else:
                        member.push_out_message(f"from {name} {number}")
                if number % 20 == 0:
                    member.ping()
            number += 1

    others = [threading.Thread(target=push_from_elsewhere, args=(name,)) for name in ("all", "one")]
    speakers = [Speaker(site.port, seed * 100 + number) for number in range(CLIENTS)]
    threads = [threading.Thread(target=speaker.run) for speaker in speakers]
    for thread in [*others, *threads]:
        thread.start()
    for thread in threads:
        thread.join(60)
    stuck = [number for number, thread in enumerate(threads) if thread.is_alive()]
    over.set()
    for thread in others:
        thread.join(PATIENCE)
    assert not stuck
    for speaker in speakers:
        if speaker.errors:
            raise speaker.errors[0]
    eventually(lambda: all(member.close_code in (1000, 1006) for member in Members.members))
    for member in Members.members:
        assert member.wait_stopped(PATIENCE)
