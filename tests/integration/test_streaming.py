"""Messages in parts: 100 MB out and 64 MB in without their ever being in memory, and every way for that to end."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from krait_ws.errors import ConnectionEndedError
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    POLLERS,
    PONG,
    TEXT,
    Gate,
    RawClient,
    close_frame,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
CHUNK = 64 * 1024
SMALL = 24 << 20
"""Bytes that a transfer may hold at most: the mailboxes' 4 MB, several times."""


@contextmanager
def small_memory() -> Iterator[None]:
    """What is allocated inside stays below ``SMALL`` at every moment; client and server together."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < SMALL, f"{peak >> 20} MB at once"


def receive_message(client: RawClient) -> tuple[list[bytes], int]:
    """The frames of the next message, control frames left out; and its opcode."""
    frames = []
    opcode = None
    while True:
        received = client.receive_frame()
        if received.opcode >= CLOSE:
            assert received.opcode != CLOSE, received
            continue
        assert received.opcode == (CONTINUATION if frames else received.opcode)
        opcode = opcode or received.opcode
        frames.append(received.payload)
        if received.fin:
            return frames, opcode


# ---- out


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_a_download_of_100_mb_is_never_in_memory(serve: Serve, poller: str, runs_on: str) -> None:
    count = (100 << 20) // CHUNK

    class Download(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            assert self.push_out_message(number.to_bytes(8, "big") * (CHUNK // 8) for number in range(count))

    site = serve(Download, runs_on=runs_on, poller=poller)
    with small_memory(), RawClient(site.port) as client:
        for number in range(count):
            received = client.receive_frame()
            assert received.opcode == (BINARY if number == 0 else CONTINUATION)
            assert received.fin == (number == count - 1)
            assert received.payload == number.to_bytes(8, "big") * (CHUNK // 8)
        client.expect_close(1000)


@HANDLERS
def test_nothing_is_taken_from_the_iterator_while_there_is_no_room(serve: Serve, runs_on: str) -> None:
    taken: list[int] = []

    class Download(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def chunks() -> Iterator[bytes]:
                for number in range(1000):
                    taken.append(number)
                    yield bytes(CHUNK)

            self.push_out_message(chunks())

    site = serve(Download, runs_on=runs_on, max_out_messages=4)
    with RawClient(site.port, receive_buffer=4096) as client:
        client.receive_frame()
        (session,) = site.server.sessions
        eventually(lambda: session.outgoing.blocked, what="a push that waits")
        assert len(taken) < 500
        client.close()


@HANDLERS
@pytest.mark.parametrize("policy", ["block", "drop_new", "drop_oldest"])
def test_text_in_chunks_whatever_the_policy(serve: Serve, policy: str, runs_on: str) -> None:
    chunks = ["ä€😀" * 1000, "", "end"] * 100

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            assert self.push_out_message(iter(chunks))
            self.wait_stop()

    site = serve(Talker, runs_on=runs_on, slow_consumer=policy, max_out_messages=4)
    with RawClient(site.port) as client:
        frames, opcode = receive_message(client)
    assert opcode == TEXT
    assert b"".join(frames).decode() == "".join(chunks)


@HANDLERS
def test_pushes_of_other_threads_come_behind_the_message(serve: Serve, runs_on: str) -> None:
    pushed: list[bool] = []

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def push(name: str) -> None:
                pushed.extend(self.push_out_message(f"{name} {number}") for number in range(50))

            def chunks() -> Iterator[bytes]:
                for _ in range(10):
                    yield b"before "
                threads = [threading.Thread(target=push, args=(name,)) for name in "ab"]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()  # none of them waits for this message
                for _ in range(10):
                    yield b"after "

            self.push_out_message("first")
            assert self.push_out_message(chunks())
            self.push_out_message("last")

    with RawClient(serve(Talker, runs_on=runs_on).port) as client:
        client.expect("first")
        frames, opcode = receive_message(client)
        assert opcode == BINARY
        assert b"".join(frames) == b"before " * 10 + b"after " * 10
        others = [client.receive() for _ in range(100)]
        client.expect("last")
        client.expect_close(1000)
    assert pushed == [True] * 100
    for name in "ab":
        assert [text for text in others if str(text)[0] == name] == [f"{name} {number}" for number in range(50)]


def test_streams_of_several_threads_keep_apart(serve: Serve) -> None:
    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def push(name: bytes) -> None:
                for _ in range(10):
                    assert self.push_out_message(name for _ in range(20))

            threads = [threading.Thread(target=push, args=(name,)) for name in (b"a", b"b", b"c")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    with RawClient(serve(Talker).port) as client:
        messages = [b"".join(receive_message(client)[0]) for _ in range(30)]
        client.expect_close(1000)
    assert sorted(messages) == sorted([name * 20 for name in (b"a", b"b", b"c")] * 10)


@HANDLERS
def test_pings_are_answered_between_the_fragments(serve: Serve, runs_on: str) -> None:
    gate = Gate()

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def chunks() -> Iterator[str]:
                yield "one"
                yield "two"
                gate.wait()
                yield "three"

            self.push_out_message(chunks())

    with RawClient(serve(Talker, runs_on=runs_on).port) as client:
        first = client.receive_frame()
        assert (first.opcode, first.fin, first.payload) == (TEXT, False, b"one")
        client.send_frame(PING, b"still there?")
        assert client.receive_frame().opcode == PONG
        gate.open()
        assert [client.receive_frame().payload for _ in range(2)] == [b"two", b"three"]
        client.expect_close(1000)


@HANDLERS
@pytest.mark.parametrize("is_caught", [False, True], ids=["not caught", "caught"])
def test_an_iterator_that_raises_inside_its_message_ends_the_connection(
    serve: Serve, caplog: pytest.LogCaptureFixture, is_caught: bool, runs_on: str
) -> None:
    results: list[Any] = []

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def chunks() -> Iterator[str]:
                yield "one"
                yield "two"
                yield "three"
                raise LookupError("no fourth")

            try:
                self.push_out_message(chunks())
            except LookupError:
                if not is_caught:
                    raise
                results.append(self.push_out_message("more"))

    with RawClient(serve(Talker, runs_on=runs_on).port) as client:
        fragments = []
        while (received := client.receive_frame()).opcode != CLOSE:
            assert not received.fin
            fragments.append(received.payload)
        assert received.payload == (1011).to_bytes(2, "big"), "nothing is told of what happened"
        client.send(close_frame(1011))
        client.expect_end()
    assert fragments == [b"one", b"two", b"three"][: len(fragments)]
    assert fragments
    eventually(lambda: results == [False] * is_caught)
    logged = 0 if is_caught else 1  # by the handler, when the connection has ended
    eventually(lambda: len([record for record in caplog.records if record.exc_info]) == logged)


@HANDLERS
@pytest.mark.parametrize("count", [0, 1], ids=["at its first chunk", "at its second chunk"])
def test_an_iterator_that_raises_before_anything_was_sent_harms_nothing(serve: Serve, count: int, runs_on: str) -> None:
    """The first chunk is sent when it is known whether it is the last: so nothing has gone yet."""

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            def chunks() -> Iterator[str]:
                yield from ["one"] * count
                raise LookupError("no more")

            with pytest.raises(LookupError):
                self.push_out_message(chunks())
            self.push_out_message("sorry")

    with RawClient(serve(Talker, runs_on=runs_on).port) as client:
        client.expect("sorry")
        client.expect_close(1000)


@HANDLERS
def test_a_client_that_leaves_inside_a_download(serve: Serve, runs_on: str) -> None:
    results: list[Any] = []

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            results.append(self.push_out_message(bytes(CHUNK) for _ in itertools.count()))

    site = serve(Talker, runs_on=runs_on)
    with RawClient(site.port) as client:
        client.receive_frame()
        client.reset()
    eventually(lambda: results)
    assert results == [False]
    eventually(lambda: not site.server.sessions)


# ---- in


@HANDLERS
@pytest.mark.parametrize("shape", ["fragments", "one frame"])
def test_an_upload_of_64_mb_is_never_in_memory(serve: Serve, shape: str, runs_on: str) -> None:
    total = 64 << 20
    pattern = bytes(range(256)) * (CHUNK // 256)

    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            stream = self.pop_in_message(None)
            size = 0
            right = not stream.is_text
            for chunk in stream:
                start = size % 256
                right = right and chunk == (pattern * (len(chunk) // CHUNK + 2))[start : start + len(chunk)]
                size += len(chunk)
            self.push_out_message(f"{size} {right}")

    site = serve(Upload, runs_on=runs_on)
    with small_memory(), RawClient(site.port) as client:
        if shape == "fragments":
            client.send_frame(BINARY, b"", fin=False)
            part = frame(CONTINUATION, pattern, fin=False)
            for _ in range(total // CHUNK):
                client.send(part)
            client.send_frame(CONTINUATION)
        else:
            client.send(b"\x82\xff" + total.to_bytes(8, "big") + bytes(4))  # its masking key is zero
            for _ in range(total // CHUNK):
                client.send(pattern)
        client.expect(f"{total} True")


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_a_reader_that_is_slow_stops_the_sender(serve: Serve, poller: str, runs_on: str) -> None:
    gate = Gate()

    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            for stream in self.messages():
                size = len(next(stream))
                gate.wait()
                self.push_out_message(str(size + sum(map(len, stream))))

    site = serve(Upload, runs_on=runs_on, poller=poller, max_in_bytes=1 << 20)
    with RawClient(site.port) as client:
        client.send_frame(BINARY, b"begin", fin=False)
        count, rest = client.send_until_blocked(frame(CONTINUATION, bytes(CHUNK), fin=False), 64 << 20)
        gate.open()
        client.send(rest)
        client.send_frame(CONTINUATION)
        client.expect(str(len(b"begin") + count * CHUNK))


@HANDLERS
def test_text_is_cut_between_characters(serve: Serve, runs_on: str) -> None:
    text = "aä€😀" * 500
    data = text.encode()

    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            for stream in self.messages():
                assert stream.is_text
                chunks = list(stream)
                assert all(isinstance(chunk, str) for chunk in chunks)
                self.push_out_message("".join(chunks))

    with RawClient(serve(Upload, runs_on=runs_on).port) as client:
        for step in (1, 3, 7, 1000):
            parts = [data[start : start + step] for start in range(0, len(data), step)]
            sent = frame(TEXT, parts[0], fin=False)
            sent += b"".join(frame(CONTINUATION, part, fin=False) for part in parts[1:]) + frame(CONTINUATION)
            client.send(sent)
            client.expect(text)
        whole = frame(TEXT, data)
        for start in range(0, len(whole), 501):  # and the frame itself cut by TCP
            client.send(whole[start : start + 501])
        client.expect(text)


@HANDLERS
@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3"], ids=["no byte of it", "surrogate", "cut off"])
def test_text_that_is_no_utf8(serve: Serve, bad: bytes, runs_on: str) -> None:
    seen: list[Any] = []

    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            try:
                seen.extend(self.pop_in_message(None))
            except ConnectionEndedError as error:
                seen.append(error)

    with RawClient(serve(Upload, runs_on=runs_on).port) as client:
        client.send(frame(TEXT, "good", fin=False) + frame(CONTINUATION, bad))
        client.expect_close(1007)
    eventually(lambda: seen and isinstance(seen[-1], ConnectionEndedError))
    assert "".join(seen[:-1]) == "good"


@HANDLERS
@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close, "close frame"])
def test_a_connection_that_ends_inside_a_message(serve: Serve, leave: Any, runs_on: str) -> None:
    seen: list[Any] = []
    begun = threading.Event()

    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            stream = self.pop_in_message(None)
            try:
                for chunk in stream:
                    seen.append(chunk)
                    begun.set()
            except ConnectionEndedError as error:
                seen.append(error)
            seen.append(next(stream, "nothing more"))
            seen.append(self.pop_in_message(None))

    site = serve(Upload, runs_on=runs_on)
    with RawClient(site.port) as client:
        client.send_frame(BINARY, b"half", fin=False)
        assert begun.wait(20)
        if leave == "close frame":
            client.send(close_frame(1000))
            client.expect_close(1000, answer=False)
        else:
            leave(client)
        eventually(lambda: len(seen) == 4)
    assert seen[0] == b"half"
    assert isinstance(seen[1], ConnectionEndedError)
    assert seen[2:] == ["nothing more", None]


@HANDLERS
def test_the_next_message_after_one_that_is_given_up(serve: Serve, runs_on: str) -> None:
    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            given_up = self.pop_in_message(None)
            self.push_out_message(b"first: " + next(given_up))
            following = self.pop_in_message(None)
            self.push_out_message(f"second: {''.join(following)}")
            self.push_out_message(f"of the first: {list(given_up)}")
            untouched = self.pop_in_message(None)
            self.push_out_message(b"fourth: " + b"".join(self.pop_in_message(None)))
            assert list(untouched) == []

    with RawClient(serve(Upload, runs_on=runs_on).port) as client:
        client.send_frame(BINARY, b"begin", fin=False)
        client.expect(b"first: begin")
        client.send(frame(CONTINUATION, bytes(CHUNK), fin=False) * 10 + frame(CONTINUATION, b"end"))
        client.send_frame(TEXT, "all of it")
        client.expect("second: all of it")
        client.expect("of the first: []")
        client.send(frame(BINARY, b"never read") + frame(BINARY, b"read"))
        client.expect(b"fourth: read")
        client.expect_close(1000)


@HANDLERS
def test_the_event_model_gets_streams_too(serve: Serve, runs_on: str) -> None:
    class Upload(WebsocketsCtrlBase):
        stream_messages = True

        def on_in_message(self, message: Any) -> None:
            self.push_out_message(str(sum(map(len, message))))

    with RawClient(serve(Upload, runs_on=runs_on).port) as client:
        client.send_frame(BINARY, b"12345")
        client.expect("5")
        client.send(frame(TEXT, "ab", fin=False) + frame(CONTINUATION, "cd") + frame(TEXT, ""))
        client.expect("4")
        client.expect("0")


@HANDLERS
def test_what_comes_in_in_parts_goes_out_in_parts(serve: Serve, runs_on: str) -> None:
    """An echo of any size."""

    class Echo(WebsocketsCtrlBase):
        stream_messages = True

        def on_thread_start(self) -> None:
            for stream in self.messages():
                self.push_out_message(stream)

    with RawClient(serve(Echo, runs_on=runs_on).port) as client:
        for payload in (b"", b"x", bytes(range(256)) * 8192):
            client.send_frame(BINARY, payload)
            frames, opcode = receive_message(client)
            assert opcode == BINARY
            assert b"".join(frames) == payload
