"""The two mailboxes: order, limits, waits, wake-ups and the four slow-consumer policies."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain
from typing import Any

import gevent
import pytest

from krait_ws.config import Config
from krait_ws.mailbox import InMailbox, OutMailbox
from krait_ws.protocol.frames import encode_binary, encode_text
from tests.helpers import DEADLINE, Task, own_thread


def frame_of(size: int) -> bytes:
    """A frame that has this many bytes altogether."""
    frame = encode_binary(bytes(size - 2))
    assert len(frame) == size
    return frame


class Calls:
    """Counts the calls that a mailbox makes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def new_out(**options: Any) -> tuple[OutMailbox, Calls, Calls]:
    mailbox = OutMailbox(Config(**options))
    mailbox.on_output, mailbox.on_overflow = output, overflow = Calls(), Calls()
    return mailbox, output, overflow


def take(mailbox: OutMailbox, size: int = 1 << 20) -> bytes:
    return b"".join(mailbox.take(size))


# ---- in


def test_messages_come_out_in_order() -> None:
    mailbox = InMailbox(Config())
    assert mailbox.put(["a", b"b"]) is True
    assert mailbox.put(["c"]) is True
    assert len(mailbox) == 3
    assert [mailbox.pop() for _ in range(4)] == ["a", b"b", "c", None]


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_an_empty_mailbox_gives_none_after_the_timeout(timeout: float) -> None:
    started = time.monotonic()
    assert InMailbox(Config()).pop(timeout) is None
    assert time.monotonic() - started >= timeout


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_put_wakes_a_waiting_pop(timeout: float | None) -> None:
    mailbox = InMailbox(Config())
    popping = Task(lambda: mailbox.pop(timeout)).until_blocked()
    mailbox.put(["message"])
    assert popping.result() == "message"


def test_each_of_several_pops_gets_one_message() -> None:
    mailbox = InMailbox(Config())
    popping = [Task(lambda: mailbox.pop(None)).until_blocked() for _ in range(5)]
    mailbox.put(["a", "b"])
    mailbox.put(["c", "d", "e"])
    assert sorted(task.result() for task in popping) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("timeout", [None, 30])
def test_close_wakes_every_waiting_pop(timeout: float | None) -> None:
    mailbox = InMailbox(Config())
    popping = [Task(lambda: mailbox.pop(timeout)).until_blocked() for _ in range(5)]
    mailbox.close()
    assert [task.result() for task in popping] == [None] * 5


def test_what_was_put_before_the_close_can_be_popped_after_it() -> None:
    mailbox = InMailbox(Config())
    mailbox.put(["a", "b"])
    mailbox.close()
    assert [mailbox.pop(None) for _ in range(3)] == ["a", "b", None]


def test_what_is_put_after_the_close_is_dropped() -> None:
    mailbox = InMailbox(Config(max_in_messages=1))
    mailbox.close()
    assert mailbox.put(["late"]) is True
    assert mailbox.pop(None) is None


def test_close_twice_does_nothing() -> None:
    mailbox = InMailbox(Config())
    mailbox.put(["a"])
    mailbox.close()
    mailbox.close()
    assert mailbox.pop() == "a"


@pytest.mark.parametrize(
    ("limits", "messages", "full"),
    [
        pytest.param({"max_in_messages": 3}, ["a"] * 2, False, id="two of three messages"),
        pytest.param({"max_in_messages": 3}, ["a"] * 3, True, id="three of three messages"),
        pytest.param({"max_in_messages": 3}, ["a"] * 30, True, id="one read may bring more"),
        pytest.param({"max_in_bytes": 10}, [b"x" * 9], False, id="nine of ten bytes"),
        pytest.param({"max_in_bytes": 10}, [b"x" * 10], True, id="ten of ten bytes"),
        pytest.param({"max_in_bytes": 10}, [b"\xff" * 9], False, id="nine bytes that are no ASCII"),
        pytest.param({"max_in_bytes": 10}, ["a" * 9], False, id="nine ASCII characters"),
        pytest.param({"max_in_bytes": 10}, ["\U0001f600" * 3], True, id="three characters of four bytes"),
    ],
)
def test_full_is_told_by_messages_and_by_bytes(limits: dict[str, int], messages: list[Any], full: bool) -> None:
    mailbox = InMailbox(Config(**limits))
    assert mailbox.put(messages) is not full
    assert mailbox.is_full is full
    assert [mailbox.pop() for _ in messages] == messages


def test_room_is_told_once_when_half_of_the_limit_is_reached() -> None:
    mailbox = InMailbox(Config(max_in_messages=10))
    mailbox.on_room = room = Calls()
    mailbox.put(["a"] * 10)
    told = []
    for _ in range(10):
        mailbox.pop()
        told.append(room.count)
    assert told == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert not mailbox.is_full
    mailbox.put(["a"] * 10)
    for _ in range(10):
        mailbox.pop()
    assert room.count == 2


def test_room_in_bytes_counts_too() -> None:
    mailbox = InMailbox(Config(max_in_bytes=100))
    mailbox.on_room = room = Calls()
    mailbox.put([b"x" * 90, b"x" * 10])
    mailbox.pop()
    assert room.count == 1
    assert not mailbox.is_full


def test_a_mailbox_that_was_never_full_tells_of_no_room() -> None:
    mailbox = InMailbox(Config(max_in_messages=10))
    mailbox.on_room = room = Calls()
    mailbox.put(["a"] * 9)
    for _ in range(9):
        mailbox.pop()
    assert room.count == 0


def test_wait_for_room_waits_until_there_is_room() -> None:
    mailbox = InMailbox(Config(max_in_messages=2))
    mailbox.wait_for_room()
    mailbox.put(["a", "b"])
    waiting = Task(mailbox.wait_for_room).until_blocked()
    mailbox.pop()
    waiting.result()


def test_wait_for_room_ends_with_the_mailbox() -> None:
    mailbox = InMailbox(Config(max_in_messages=1))
    mailbox.put(["a"])
    waiting = Task(mailbox.wait_for_room).until_blocked()
    mailbox.close()
    waiting.result()
    mailbox.wait_for_room()


@own_thread
def test_threads_and_greenlets_pop_from_one_mailbox() -> None:
    mailbox = InMailbox(Config())
    greenlets = [gevent.spawn(mailbox.pop, 30) for _ in range(3)]
    gevent.sleep(0)
    threads = [Task(lambda: mailbox.pop(None)).until_blocked() for _ in range(3)]
    Task(lambda: mailbox.put(["a", "b", "c", "d", "e", "f"])).result()
    gevent.joinall(greenlets, timeout=DEADLINE)
    assert sorted([greenlet.value for greenlet in greenlets] + [task.result() for task in threads]) == [*"abcdef"]


@own_thread
def test_a_greenlet_that_is_killed_while_it_waits_takes_no_message_with_it() -> None:
    mailbox = InMailbox(Config())
    first, second = gevent.spawn(mailbox.pop, 30), gevent.spawn(mailbox.pop, 30)
    gevent.sleep(0)
    first.kill(block=False)
    mailbox.put(["a"])  # wakes the first, which will not run any more
    assert second.get(timeout=DEADLINE) == "a"


@own_thread
def test_the_network_loop_can_pop_but_not_wait() -> None:
    mailbox = InMailbox(Config())
    results: list[Any] = []

    def on_the_loop() -> None:
        results.append(mailbox.pop(0))
        try:
            mailbox.pop(None)
        except RuntimeError:
            results.append("refused")

    gevent.get_hub().loop.run_callback(on_the_loop)
    gevent.sleep(0.001)
    assert results == [None, "refused"]


def test_many_producers_and_poppers_lose_and_double_nothing() -> None:
    mailbox = InMailbox(Config(max_in_messages=50))
    sent = [[f"{producer}:{number}" for number in range(500)] for producer in range(4)]

    def pop_all() -> list[Any]:
        popped = []
        while (message := mailbox.pop(None)) is not None:
            popped.append(message)
        return popped

    poppers = [Task(pop_all) for _ in range(4)]
    producers = [Task(lambda part=part: [mailbox.put([message]) for message in part]) for part in sent]
    for producer in producers:
        producer.result()
    mailbox.close()
    lists = [popper.result() for popper in poppers]
    assert Counter(message for popped in lists for message in popped) == Counter(chain.from_iterable(sent))
    for popped in lists:
        for producer in range(4):
            numbers = [int(message.split(":")[1]) for message in popped if message.startswith(f"{producer}:")]
            assert numbers == sorted(numbers)


# ---- out


def test_frames_are_taken_in_order_and_together() -> None:
    mailbox, _, _ = new_out()
    assert mailbox.push(encode_text("a")) is True
    assert mailbox.push(encode_text("b")) is True
    assert len(mailbox) == 2
    assert mailbox.pressure.bytes == 6
    assert take(mailbox) == encode_text("a") + encode_text("b")
    assert take(mailbox) == b""
    assert mailbox.pressure.bytes == len(mailbox) == 0


@pytest.mark.parametrize(
    ("sizes", "max_bytes", "taken"),
    [
        ([10, 10, 10], 30, [30]),
        ([10, 10, 10], 29, [20, 10]),
        ([10, 10, 10], 10, [10, 10, 10]),
        ([50, 10, 10], 20, [50, 20]),
        ([5, 50, 5], 20, [5, 50, 5]),
    ],
    ids=["all fit", "one left", "one each", "a larger one goes alone", "a larger one between"],
)
def test_how_much_one_take_takes(sizes: list[int], max_bytes: int, taken: list[int]) -> None:
    mailbox, _, _ = new_out()
    for size in sizes:
        mailbox.push(frame_of(size))
    assert [len(take(mailbox, max_bytes)) for _ in taken] == taken
    assert take(mailbox) == b""


def test_the_loop_is_told_once_until_it_has_taken_all() -> None:
    mailbox, output, _ = new_out()
    for _ in range(3):
        mailbox.push(frame_of(10))
    assert output.count == 1
    take(mailbox, 10)
    mailbox.push(frame_of(10))
    assert output.count == 1, "the loop goes on taking until there is nothing"
    while take(mailbox):
        pass
    mailbox.push(frame_of(10))
    assert output.count == 2


def test_a_message_can_be_taken_back() -> None:
    mailbox, output, _ = new_out()
    mailbox.push(encode_text("text"))
    mailbox.push(encode_binary(b"binary"))
    assert mailbox.pop() == "text"
    assert mailbox.pop() == b"binary"
    assert mailbox.pop() is None
    mailbox.push(encode_text("next"))
    assert output.count == 2, "the loop found nothing and must be told again"


def test_after_the_close_nothing_is_pushed_but_what_was_there_is_sent() -> None:
    mailbox, _, _ = new_out()
    mailbox.push(encode_text("before"))
    mailbox.close()
    assert mailbox.push(encode_text("after")) is False
    assert take(mailbox) == encode_text("before")


@pytest.mark.parametrize("policy", ["block", "close", "drop_new", "drop_oldest"])
def test_after_the_close_no_policy_takes_anything(policy: str) -> None:
    mailbox, _, overflow = new_out(slow_consumer=policy, max_out_messages=1, push_timeout=30)
    mailbox.push(encode_text("before"))
    mailbox.close()
    assert mailbox.push(encode_text("after")) is False
    assert take(mailbox) == encode_text("before")
    assert overflow.count == 0


@pytest.mark.parametrize(
    ("limits", "fits"), [({"max_out_messages": 3}, 3), ({"max_out_bytes": 30}, 3), ({"max_out_bytes": 39}, 3)]
)
def test_drop_new(limits: dict[str, int], fits: int) -> None:
    mailbox, _, overflow = new_out(slow_consumer="drop_new", **limits)
    frames = [encode_binary(bytes((number,)) * 8) for number in range(5)]
    assert [mailbox.push(frame) for frame in frames] == [True] * fits + [False] * (5 - fits)
    assert take(mailbox) == b"".join(frames[:fits])
    assert mailbox.dropped == 5 - fits
    assert overflow.count == 0


@pytest.mark.parametrize(("limits", "fits"), [({"max_out_messages": 3}, 3), ({"max_out_bytes": 30}, 3)])
def test_drop_oldest(limits: dict[str, int], fits: int) -> None:
    mailbox, _, overflow = new_out(slow_consumer="drop_oldest", **limits)
    frames = [encode_binary(bytes((number,)) * 8) for number in range(5)]
    assert [mailbox.push(frame) for frame in frames] == [True] * 5
    assert mailbox.pressure.bytes == fits * 10
    assert take(mailbox) == b"".join(frames[-fits:])
    assert mailbox.dropped == 5 - fits
    assert overflow.count == 0


def test_drop_oldest_makes_as_much_room_as_it_needs() -> None:
    mailbox, _, _ = new_out(slow_consumer="drop_oldest", max_out_bytes=40)
    for _ in range(4):
        mailbox.push(frame_of(10))
    assert mailbox.push(frame_of(25)) is True
    assert mailbox.pressure.bytes == 35
    assert mailbox.dropped == 3


def test_close_ends_the_connection_at_once() -> None:
    mailbox, _, overflow = new_out(slow_consumer="close", max_out_messages=1, push_timeout=30)
    assert mailbox.push(frame_of(10)) is True
    assert mailbox.push(frame_of(10)) is False
    assert overflow.count == 1


@pytest.mark.parametrize("policy", ["block", "close", "drop_new", "drop_oldest"])
def test_a_frame_above_the_limit_passes_alone(policy: str) -> None:
    mailbox, _, overflow = new_out(slow_consumer=policy, max_out_bytes=10)
    assert mailbox.push(frame_of(100)) is True
    assert len(take(mailbox)) == 100
    assert overflow.count == 0


def test_block_waits_until_there_is_room() -> None:
    mailbox, output, overflow = new_out(slow_consumer="block", max_out_messages=1, push_timeout=30)
    mailbox.push(encode_text("first"))
    pushing = Task(lambda: mailbox.push(encode_text("second"))).until_blocked()
    assert take(mailbox) == encode_text("first")
    assert pushing.result() is True
    assert output.count == 2
    assert take(mailbox) == encode_text("second")
    assert mailbox.blocked == 1
    assert overflow.count == 0


def test_taking_back_makes_room_too() -> None:
    mailbox, _, _ = new_out(max_out_messages=1)
    mailbox.push(encode_text("first"))
    pushing = Task(lambda: mailbox.push(encode_text("second"))).until_blocked()
    assert mailbox.pop() == "first"
    assert pushing.result() is True


def test_close_wakes_every_blocked_push() -> None:
    mailbox, _, overflow = new_out(max_out_messages=1)
    mailbox.push(encode_text("first"))
    pushing = [Task(lambda: mailbox.push(encode_text("late"))).until_blocked() for _ in range(5)]
    mailbox.close()
    assert [task.result() for task in pushing] == [False] * 5
    assert overflow.count == 0
    assert take(mailbox) == encode_text("first")


@pytest.mark.parametrize("push_timeout", [0, 0.02])
def test_a_push_that_is_blocked_too_long_ends_the_connection(push_timeout: float) -> None:
    mailbox, _, overflow = new_out(max_out_messages=1, push_timeout=push_timeout)
    mailbox.push(encode_text("first"))
    started = time.monotonic()
    assert mailbox.push(encode_text("second")) is False
    assert time.monotonic() - started >= push_timeout
    assert overflow.count == 1
    assert take(mailbox) == encode_text("first")


@own_thread
def test_on_the_network_loop_a_full_mailbox_ends_the_connection_instead_of_blocking() -> None:
    mailbox, _, overflow = new_out(max_out_messages=1)
    mailbox.push(encode_text("first"))
    results: list[bool] = []
    gevent.get_hub().loop.run_callback(lambda: results.append(mailbox.push(encode_text("second"))))
    gevent.sleep(0.001)
    assert results == [False]
    assert overflow.count == 1


@own_thread
def test_a_blocked_greenlet_lets_the_hub_run() -> None:
    mailbox, _, _ = new_out(max_out_messages=1)
    mailbox.push(encode_text("first"))
    pushing = gevent.spawn(mailbox.push, encode_text("second"))
    gevent.sleep(0)
    assert gevent.spawn(take, mailbox).get(timeout=DEADLINE) == encode_text("first")
    assert pushing.get(timeout=DEADLINE) is True


def test_it_is_congested_above_half() -> None:
    mailbox, _, _ = new_out(max_out_messages=4)
    congested = []
    for _ in range(4):
        congested.append(mailbox.is_congested)
        mailbox.push(frame_of(10))
    assert congested == [False, False, False, True]


def test_many_pushers_against_a_small_mailbox_lose_nothing() -> None:
    mailbox, _, overflow = new_out(max_out_messages=3, push_timeout=30)
    expected = [[encode_text(f"{pusher}:{number:03}") for number in range(200)] for pusher in range(4)]
    pushers = [Task(lambda part=part: [mailbox.push(frame) for frame in part]) for part in expected]

    def take_all() -> list[bytes]:
        taken: list[bytes] = []
        deadline = time.monotonic() + DEADLINE
        while len(taken) < 800 and time.monotonic() < deadline:
            data = take(mailbox)
            size = len(expected[0][0])
            taken += [data[start : start + size] for start in range(0, len(data), size)]
        return taken

    taken = Task(take_all).result(2 * DEADLINE)
    assert all(all(pusher.result()) for pusher in pushers)
    assert overflow.count == 0
    for part in expected:
        assert [frame for frame in taken if frame in set(part)] == part
