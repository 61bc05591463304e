"""A handler's thread that waits for its messages reads its own socket: what it, others and the peer may do meanwhile.

The same must hold where nothing is lent, so these tests run with both cores.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gevent
import pytest

from krait_ws.broadcast import broadcast
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.core.support import texts
from tests.helpers import until
from tests.integration.support import (
    BINARY,
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


class Noted(WebsocketsCtrlBase):
    """Notes what becomes of it. A message is answered, or it says what the handler does next."""

    runs_on = "thread"
    instances: list[Any] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.instances.append(self)
        self.busy = threading.Event()
        self.go_on = threading.Event()
        self.got: list[Any] = []
        self.stops = 0
        self.returned = threading.Event()

    def on_thread_start(self) -> None:
        for message in self.messages():
            self.got.append(message)
            if message == "busy":
                self.busy.set()
                assert self.go_on.wait(PATIENCE)
            elif message == "return":
                break
            elif message == "raise":
                self.push_out_message("last words")
                raise ValueError("as it was told")
            self.push_out_message(message)
        self.returned.set()

    def on_stop(self) -> None:
        self.stops += 1
        super().on_stop()


@pytest.fixture
def noted() -> Iterator[type[Noted]]:
    class Fresh(Noted):
        instances: list[Any] = []  # noqa: RUF012

    yield Fresh
    for controller in Fresh.instances:
        controller.go_on.set()


STATES = ["never popped", "waiting", "answering", "busy", "busy for long"]


def bring_to(state: str, client: RawClient, controller: Noted) -> None:
    """Brings a handler to a state. In the two last it has work until ``go_on``."""
    if state == "waiting":
        client.send(texts("hello"))
        client.expect("hello")
    elif state == "answering":
        for number in range(20):
            client.send(texts(str(number)))
            client.expect(str(number))
    elif state.startswith("busy"):
        client.send(texts("one", "busy"))
        client.expect("one")
        assert controller.busy.wait(PATIENCE)
        if state == "busy for long":
            client.send(frame(PING, b"is the loop there?"))
            assert client.receive_frame().opcode == PONG


def first(controllers: type[Noted]) -> Any:
    return eventually(lambda: controllers.instances and controllers.instances[0])


IN_EVERY_STATE = pytest.mark.parametrize("state", STATES)


@IN_EVERY_STATE
def test_a_ping_is_answered(serve: Serve, noted: type[Noted], state: str) -> None:
    with RawClient(serve(noted).port) as client:
        bring_to(state, client, first(noted))
        for number in range(5):
            client.send_frame(PING, str(number))
            received = client.receive_frame()
            assert (received.opcode, received.payload) == (PONG, str(number).encode())
        first(noted).go_on.set()
        if state.startswith("busy"):
            client.expect("busy")
        client.send(texts("after"))
        client.expect("after")


@IN_EVERY_STATE
def test_every_kind_of_frame_byte_by_byte(serve: Serve, noted: type[Noted], state: str) -> None:
    stream = (
        frame(TEXT, "ä short one")
        + frame(BINARY, b"x" * 300)
        + frame(TEXT, "in ", fin=False)
        + frame(PING, b"between")
        + frame(CONTINUATION, "fragments")
        + frame(PONG, b"unasked")
        + frame(BINARY, b"")
        + frame(TEXT, "the end")
    )
    with RawClient(serve(noted).port) as client:
        bring_to(state, client, first(noted))
        for number in range(len(stream)):
            client.send(stream[number : number + 1])
        first(noted).go_on.set()
        expected: list[Any] = ["busy"] if state.startswith("busy") else []
        expected += ["ä short one", b"x" * 300, "in fragments", b"", "the end"]
        pongs = 0
        while expected:
            received = client.receive_frame()
            if received.opcode == PONG:
                pongs += 1
                assert received.payload == b"between"
                continue
            payload: Any = received.payload.decode() if received.opcode == TEXT else received.payload
            assert payload == expected.pop(0)
        assert pongs == 1 or client.receive_frame().opcode == PONG


FAULTS = {
    "opcode": (frame(0x3, b"x"), 1002),
    "no mask": (frame(TEXT, "x", masked=False), 1002),
    "no UTF-8": (frame(TEXT, b"abc\xff"), 1007),
    "too large": (frame(BINARY, b"x" * 2000), 1009),
    "nothing to continue": (frame(CONTINUATION, b"x"), 1002),
    "reserved": (frame(TEXT, "x", reserved=2), 1002),
}


@IN_EVERY_STATE
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(serve: Serve, noted: type[Noted], state: str, fault: str) -> None:
    data, code = FAULTS[fault]
    with RawClient(serve(noted, max_message_size=1000).port) as client:
        controller = first(noted)
        bring_to(state, client, controller)
        client.send(frame(TEXT, "before") + data + frame(TEXT, "behind"))
        messages, got, _ = client.skip_to_close()
        assert got == code
        assert set(messages) <= {"before"}
        controller.go_on.set()
        eventually(controller.returned.is_set)
        assert "behind" not in controller.got
        assert controller.close_code == code
        eventually(lambda: controller.stops == 1)


@IN_EVERY_STATE
@pytest.mark.parametrize("how", ["close frame", "half close", "reset", "close frame in parts"])
def test_the_peer_goes(serve: Serve, noted: type[Noted], state: str, how: str) -> None:
    with RawClient(serve(noted).port) as client:
        controller = first(noted)
        bring_to(state, client, controller)
        if how == "close frame":
            client.send(close_frame(4001, "enough"))
            client.expect_close(4001, answer=False)
        elif how == "close frame in parts":
            for byte in close_frame(4001, "enough"):
                client.send(bytes([byte]))
            client.expect_close(4001, answer=False)
        elif how == "half close":
            client.half_close()
        else:
            client.reset()
        code = 4001 if how.startswith("close") else 1006
        eventually(lambda: controller.close_code == code, what=f"the close with {code}, not {controller.close_code}")
        controller.go_on.set()
        eventually(controller.returned.is_set)
        eventually(lambda: controller.stops == 1)
        assert controller.close_code == code


@IN_EVERY_STATE
def test_somebody_closes(serve: Serve, noted: type[Noted], state: str) -> None:
    with RawClient(serve(noted).port) as client:
        controller = first(noted)
        bring_to(state, client, controller)
        controller.push_out_message("from elsewhere")
        controller.close(4002, "that is all")
        client.expect("from elsewhere")
        client.send(texts("too late"))
        client.expect_close(4002)
        controller.go_on.set()
        eventually(controller.returned.is_set)
        assert "too late" not in controller.got
        assert controller.close_code == 4002
        eventually(lambda: controller.stops == 1)


@IN_EVERY_STATE
def test_the_server_stops(serve: Serve, noted: type[Noted], state: str) -> None:
    site = serve(noted)
    with RawClient(site.port) as client:
        controller = first(noted)
        bring_to(state, client, controller)
        stopping = threading.Thread(target=site.close)
        stopping.start()
        client.expect_close(1001)
        controller.go_on.set()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert controller.returned.is_set()
        assert controller.stops == 1


@pytest.mark.parametrize(("message", "code"), [("return", 1000), ("raise", 1011)])
@pytest.mark.parametrize("behind", [0, 20])
def test_a_handler_ends_with_its_answers_sent(
    serve: Serve, noted: type[Noted], message: str, code: int, behind: int
) -> None:
    """Also those that it has put off, for there were more messages to answer."""
    with RawClient(serve(noted).port) as client:
        bring_to("answering", client, first(noted))
        client.send(texts("one", "two", message, *("unread" for _ in range(behind))))
        client.expect("one")
        client.expect("two")
        if message == "raise":
            client.expect("last words")
        client.expect_close(code)
        assert first(noted).close_code == code


@pytest.mark.parametrize("state", ["waiting", "answering"])
def test_messages_from_elsewhere_while_the_handler_waits(serve: Serve, noted: type[Noted], state: str) -> None:
    """Several threads push, a broadcast goes out, and the client goes on; each one's messages keep their order."""
    with RawClient(serve(noted).port) as client:
        controller = first(noted)
        bring_to(state, client, controller)

        def push(name: str) -> None:
            for number in range(50):
                if name == "all":
                    assert broadcast([controller], f"{name} {number}") == 1
                else:
                    assert controller.push_out_message(f"{name} {number}")

        with ThreadPoolExecutor(3) as pool:
            for name in ("a", "b", "all"):
                pool.submit(push, name)
            for number in range(50):
                client.send(texts(f"echo {number}"))
        expected = Counter(dict.fromkeys(("a", "b", "all", "echo"), 0))
        for _ in range(200):
            message = client.receive()
            assert isinstance(message, str)
            name, number_ = message.split()
            assert int(number_) == expected[name]
            expected[name] += 1


def test_a_message_from_elsewhere_does_not_take_the_loops_eyes_off_the_socket(serve: Serve, noted: type[Noted]) -> None:
    """Failed: the handler kept its connection for as long as that message took it."""
    with RawClient(serve(noted).port) as client:
        controller = first(noted)
        bring_to("answering", client, controller)
        controller.wait_stop(0.1)  # until no tick looks after it
        controller.on_in_message("an order")
        client.expect("an order")
        controller.on_in_message("busy")
        assert controller.busy.wait(PATIENCE)
        client.send_frame(PING, "still there?")
        assert client.receive_frame().opcode == PONG
        controller.go_on.set()
        client.expect("busy")


def test_two_threads_take_the_messages_of_one_mailbox(serve: Serve) -> None:
    taken: queue.SimpleQueue[Any] = queue.SimpleQueue()

    class Two(WebsocketsCtrlBase):
        runs_on = "thread"

        def on_thread_start(self) -> None:
            other = threading.Thread(target=self.take)
            other.start()
            self.take()
            other.join()

        def take(self) -> None:
            for message in self.messages():
                taken.put(message)
                self.push_out_message(message)

    with RawClient(serve(Two).port) as client:
        sent = 0
        for size in (1, 1, 1, 5, 1, 50, 1, 1, 200, 1):
            client.send(texts(*map(str, range(sent, sent + size))))
            got = {int(client.receive()) for _ in range(size)}
            assert got == set(range(sent, sent + size))
            sent += size
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)
    assert sorted(int(taken.get(timeout=PATIENCE)) for _ in range(sent)) == list(range(sent))
    assert taken.empty()


def test_one_thread_takes_the_messages_of_two_connections(serve: Serve) -> None:
    """It carries them from one to the other, and waits for each in turn."""
    ends: list[Any] = []

    class End(WebsocketsCtrlBase):
        runs_on = "thread"

        def on_thread_start(self) -> None:
            is_first = not ends  # before the test knows of it, and connects the other
            ends.append(self)
            if is_first:
                self.wait_stop()
                return
            while not any(end.should_stop() for end in ends):
                for here, there in (ends, reversed(ends)):
                    while (message := here.pop_in_message(0.005)) is not None:
                        there.push_out_message(message)

    site = serve(End)
    with RawClient(site.port) as left:
        eventually(lambda: len(ends) == 1)
        with RawClient(site.port) as right:
            for number in range(20):
                left.send(texts(f"a {number}", f"b {number}"))
                right.send(texts(f"c {number}"))
                right.expect(f"a {number}")
                right.expect(f"b {number}")
                left.expect(f"c {number}")
            left.send_frame(PING, "p")
            assert left.receive_frame().opcode == PONG


def test_pop_with_a_timeout(serve: Serve) -> None:
    """Not before its time, and what comes later is still there."""
    waits: list[float] = []

    class Pops(WebsocketsCtrlBase):
        runs_on = "thread"

        def on_thread_start(self) -> None:
            for timeout in (0.0, 0.001, 0.05, 0.2, -1.0):
                started = time.monotonic()
                assert self.pop_in_message(timeout) is None
                waits.append(time.monotonic() - started - timeout)
            self.push_out_message("nothing came")
            assert self.pop_in_message(PATIENCE) == "something"
            assert self.pop_in_message(0) is None
            self.push_out_message("it came")
            assert self.pop_in_message(None) == "something else"

    with RawClient(serve(Pops).port) as client:
        client.expect("nothing came")
        client.send(texts("something"))
        client.expect("it came")
        client.send(texts("something else"))
        client.expect_close(1000)
    assert min(waits) >= 0


def test_a_handler_that_takes_no_more_holds_up_its_client_only(serve: Serve) -> None:
    """Its mailbox is full, and TCP pushes back; pings are read until then."""
    release = threading.Event()
    sizes: list[int] = []

    class TakesOne(WebsocketsCtrlBase):
        runs_on = "thread"

        def on_thread_start(self) -> None:
            assert self.pop_in_message(None) == "one"
            self.push_out_message("got one")
            assert release.wait(PATIENCE)
            incoming = self._krait.incoming
            assert incoming is not None
            eventually(lambda: incoming.is_full, what="the loop has read on, if it was held up itself until now")
            sizes.append(len(incoming))
            count = 0
            while self.pop_in_message(None) != "last":
                count += 1
            self.push_out_message(str(count))

    try:
        with RawClient(serve(TakesOne, max_in_messages=50).port, receive_buffer=4096) as client:
            client.send(texts("one"))
            client.expect("got one")
            client.send(frame(PING, b"p"))
            assert client.receive_frame().opcode == PONG
            chunk = texts("x" * 1000)
            sent, rest = client.send_until_blocked(chunk, 64 << 20)
            release.set()
            client.send(rest + texts("last"))
            client.expect(str(sent))
            client.expect_close(1000)
        assert 50 <= sizes[0] <= 50 + 17  # its limit, and what one read gave
    finally:
        release.set()


def test_a_handler_that_begins_to_use_gevent(serve: Serve) -> None:
    """Its thread has a hub from then on, and waits in it."""

    class Mixed(WebsocketsCtrlBase):
        runs_on = "thread"

        def on_thread_start(self) -> None:
            for message in self.messages():
                if message == "gevent":
                    gevent.sleep(0.001)
                elif message == "spawn":
                    gevent.joinall([gevent.spawn(self.push_out_message, f"spawned {n}") for n in range(3)])
                elif message == "end":
                    gevent.get_hub().destroy(destroy_loop=True)
                self.push_out_message(message)

    with RawClient(serve(Mixed).port) as client:
        for message in ("one", "two", "gevent", "three", "spawn", "four"):
            client.send(texts(message))
            if message == "spawn":
                for number in range(3):
                    client.expect(f"spawned {number}")
            client.expect(message)
        client.send(texts(*map(str, range(100))))
        for number in range(100):
            client.expect(str(number))
        client.send(texts("end", "five"))
        client.expect("end")
        client.expect("five")
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)


@pytest.mark.parametrize("state", ["waiting", "busy"])
def test_a_peer_that_answers_pings_lives(serve: Serve, noted: type[Noted], state: str) -> None:
    """Whoever has the connection when they come."""
    with RawClient(serve(noted, ping_interval=0.2, ping_timeout=PATIENCE).port) as client:
        client.send(texts("one", state))
        awaited = {"one"} if state == "busy" else {"one", state}
        pings = 0
        while awaited or pings < 3:
            received = client.receive_frame()
            if received.opcode == PING:
                client.send_frame(PONG, received.payload)
                pings += 1
            else:
                awaited.remove(received.payload.decode())
        eventually(lambda: first(noted).latency is not None)
        assert first(noted).close_code is None
        first(noted).go_on.set()


@pytest.mark.parametrize("state", ["waiting", "busy"])
def test_a_silent_peer_is_lost(serve: Serve, noted: type[Noted], state: str) -> None:
    with RawClient(serve(noted, ping_interval=0.2, ping_timeout=0.2).port) as client:
        controller = first(noted)
        client.send(texts("one", state))
        eventually(lambda: controller.close_code == 1006)
        controller.go_on.set()
        eventually(controller.returned.is_set)


@pytest.mark.parametrize("kind", ["on_in_message", "on_in_message_internal"])
@pytest.mark.parametrize("pops", [False, True])
def test_hooks_in_a_thread_see_all_in_order(serve: Serve, kind: str, pops: bool) -> None:
    seen: list[Any] = []

    class Hooked(WebsocketsCtrlBase):
        runs_on = "thread"

        def take(self, message: Any) -> None:
            seen.append(message)
            if pops:
                getattr(super(), kind)(message)
            else:
                self.push_out_message(message)

    def handle(self: Any) -> None:
        for message in self.messages():
            self.push_out_message(message)

    members: dict[str, Any] = {kind: Hooked.take}
    if pops:
        members["on_thread_start"] = handle
    controller = type("Hooking", (Hooked,), members)
    with RawClient(serve(controller, max_in_messages=8).port) as client:
        client.send(texts(*map(str, range(300))))
        for number in range(300):
            client.expect(str(number))
        for number in range(300, 330):
            client.send(texts(str(number)))
            client.expect(str(number))
    assert seen == [str(number) for number in range(330)]


def test_large_answers_to_a_client_that_reads_late(serve: Serve, noted: type[Noted]) -> None:
    """More than the socket takes at once, whoever sends it: nothing passes anything."""
    sizes = [10, 200_000, 5, 70_000, 3_000_000, 1, 1, 65_536, 900_000, 2]
    with RawClient(serve(noted, max_message_size=4 << 20).port, receive_buffer=8192) as client:
        bring_to("answering", client, first(noted))
        sender = threading.Thread(
            target=lambda: [client.send(frame(BINARY, bytes([n]) * size)) for n, size in enumerate(sizes)]
        )
        sender.start()
        for number, size in enumerate(sizes):
            client.expect(bytes([number]) * size)
        sender.join(PATIENCE)


@pytest.mark.parametrize("policy", ["close", "drop_new", "drop_oldest", "block"])
def test_no_policy_strikes_a_client_that_reads(serve: Serve, policy: str) -> None:
    """A handler that puts off its answers puts off a few."""

    class Ticks(WebsocketsCtrlBase):
        runs_on = "thread"
        slow_consumer = policy
        max_out_messages = 4

        def on_thread_start(self) -> None:
            for message in self.messages():
                for number in range(8):
                    self.push_out_message(f"{message} {number}")
                    until(lambda: len(self._krait.outgoing) < 4, "the loop takes what there is")

    with RawClient(serve(Ticks).port) as client:
        for number in range(10):
            client.send(texts(*(f"{number}-{n}" for n in range(3))))
            for n in range(3):
                for answer in range(8):
                    client.expect(f"{number}-{n} {answer}")
