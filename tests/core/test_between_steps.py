"""What a handler's thread does with its connection while the loop is between two steps, and the other way round.

Each of these orders comes by itself once in a very long time; here they are brought about.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from krait_ws.waiting import monotonic
from tests.core.support import Bench, bench, compiled_only, texts
from tests.helpers import DEADLINE, PONG, Task, frame, own_thread, until
from tests.network.support import new_loop, spin, turns

pytestmark = compiled_only


@own_thread
def test_what_came_behind_the_handshake_comes_first() -> None:
    stream = texts("first", "second")
    for cut in (len(texts("first")), 3):  # a whole frame, and part of one
        with new_loop() as loop, bench(loop, stream[:cut]) as made:
            made.peer.sendall(stream[cut:])
            popped = made.puppet.begin(lambda made=made: [made.puppet.pop_in_message(None) for _ in range(2)])
            made.puppet.until_waiting()
            spin(popped.done, "both messages")
            assert popped.result() == ["first", "second"]
            assert made.puppet.close_code is None


@own_thread
def test_an_answer_does_not_pass_what_the_loop_has_in_its_hands() -> None:
    with new_loop() as loop, bench(loop) as made:
        made.peer.sendall(texts("one"))
        assert made.begin_pop().result(DEADLINE) == "one"
        made.until_returned()
        made.session.outgoing._has_fragments = True  # so that the connection's own code takes what is sent next
        take = made.connection._take
        answered: list[Any] = []

        def take_slowly(size: int) -> list[bytes]:
            frames = take(size)
            if frames and not answered:
                answered.append(made.puppet.do(lambda: made.puppet.pop_in_message(None)))
                made.push("behind")
            return frames

        made.connection._take = take_slowly
        made.peer.sendall(texts("two"))
        made.push("before")
        spin(lambda: b"behind" in made.arrived() and b"before" in made.arrived(), "both answers")
        assert answered == ["two"]
        assert made.arrived().index(b"before") < made.arrived().index(b"behind")


def held_up_while_it_tells(made: Bench, meanwhile: Callable[[], None]) -> Any:
    """The handler has answers that the loop is to send. When it says so and waits, ``meanwhile`` runs."""
    made.peer.sendall(texts("one", "two"))
    assert made.begin_pop().result(DEADLINE) == "one"
    made.push("put off")  # for there is another message to answer
    assert made.puppet.do(lambda: made.puppet.pop_in_message(None)) == "two"
    made.session.outgoing._has_fragments = True  # so that it is the loop that sends what comes next
    tell = made.session.outgoing.on_output
    told: list[bool] = []

    def tell_slowly() -> None:
        tell()
        if not told:
            told.append(True)
            meanwhile()

    made.session.outgoing.on_output = tell_slowly
    popped = made.puppet.begin(lambda: made.puppet.pop_in_message(None))
    until(lambda: told, "the loop is told")
    return popped


@own_thread
def test_a_handler_from_which_the_connection_is_taken_as_it_begins_to_wait_waits_on() -> None:
    """Failed: its pop found no message, and the handler thought that the connection had ended."""
    with new_loop() as loop, bench(loop) as made:

        def meanwhile() -> None:
            loop.tick()
            loop.tick()
            assert not made.connection.is_lent

        popped = held_up_while_it_tells(made, meanwhile)
        made.puppet.until_waiting()
        assert not popped.done()
        made.peer.sendall(texts("three"))
        spin(popped.done, "the message")
        assert popped.result() == "three"


@own_thread
def test_a_handler_does_not_read_a_socket_that_has_taken_the_number_of_its_own() -> None:
    with new_loop() as loop, bench(loop) as made, ExitStack() as others:

        def meanwhile() -> None:
            number = made.connection._descriptor
            made.connection.abort()
            found: list[socket.socket] = []
            while not any(end.fileno() == number for end in found):
                pair = socket.socketpair()
                found += [others.enter_context(end) for end in pair]
            other = next(end for end in found if end.fileno() == number)
            peer = found[found.index(other) ^ 1]
            peer.sendall(b"for somebody else")
            owners.append(other)

        owners: list[socket.socket] = []
        popped = held_up_while_it_tells(made, meanwhile)
        assert popped.result(DEADLINE) is None
        assert owners[0].recv(100, socket.MSG_DONTWAIT) == b"for somebody else"


@own_thread
def test_what_a_handler_has_read_is_before_what_the_loop_reads() -> None:
    """A part of a message in fragments, while the loop sends what the peer did not take before."""
    with new_loop() as loop, bench(loop) as made:
        made.peer.sendall(texts("one"))
        assert made.begin_pop().result(DEADLINE) == "one"
        large = b"x" * (8 << 20)
        made.push(large)
        made.push("small")
        made.until_returned()
        spin(lambda: made.connection._unsent is not None, "more than the socket takes")
        popped = made.begin_pop()
        stream = frame(0x2, b"y" * 150, fin=False) + frame(0x0, b"y" * 50)
        made.peer.sendall(stream[:100])
        until(lambda: not made.connection.usual, "the handler has read a part of it")
        made.peer.sendall(stream[100:])
        spin_by_hand(made, lambda: made.arrived().endswith(b"small"))
        spin(popped.done, "the message")
        assert popped.result() == b"y" * 200
        assert made.puppet.close_code is None


def spin_by_hand(made: Bench, condition: Callable[[], bool]) -> None:
    """Serves sockets and nothing else."""

    def look() -> bool:
        made.arrived()
        made.loop._poller._poll()  # type: ignore[attr-defined]
        return condition()

    until(look, "all has come")


@own_thread
def test_a_handler_that_comes_back_while_its_answers_are_taken_from_it_keeps_its_connection() -> None:
    """Failed: the loop read its socket, and it too."""
    with new_loop() as loop, bench(loop) as made:
        made.peer.sendall(texts("one", "two"))
        assert made.begin_pop().result(DEADLINE) == "one"
        loop.tick()
        made.push("put off")
        assert made.puppet.do(lambda: made.puppet.pop_in_message(None)) == "two"
        tell = made.session.outgoing.on_output
        popped: list[Any] = []

        def tell_slowly() -> None:
            tell()
            popped.append(made.puppet.begin(lambda: made.puppet.pop_in_message(None)))
            made.puppet.until_waiting()

        made.session.outgoing.on_output = tell_slowly
        loop.tick()
        assert made.connection.is_lent
        made.peer.sendall(texts("three"))
        assert popped[0].result(DEADLINE) == "three"
        until(lambda: made.arrived().endswith(b"put off"), "what the handler had put off")


@own_thread
@pytest.mark.parametrize("how", ["returned", "unsent"])
def test_what_the_loop_watches_is_what_is_true_at_last(how: str) -> None:
    """While the loop tells the poller what to watch, the handler changes it."""
    with new_loop() as loop, bench(loop) as made:
        watch = loop.watch
        changes: list[Callable[[], None]] = []

        def watch_slowly(descriptor: int, owner: Any, events: int) -> None:
            while changes:
                changes.pop()()
            watch(descriptor, owner, events)

        loop.watch = watch_slowly  # type: ignore[method-assign]
        made.peer.sendall(texts("one"))
        assert made.begin_pop().result(DEADLINE) == "one"
        assert made.connection.is_lent
        if how == "returned":
            changes.append(lambda: made.puppet.do(made.puppet.pop_in_message))
            made.connection._watch()
            made.peer.sendall(texts("two"))
            spin(lambda: made.session.messages_in == 2, "the loop reads on")
        else:
            changes.append(lambda: made.push(b"x" * (8 << 20)))
            made.connection._watch()
            assert made.connection._unsent is not None
            spin(lambda: len(made.arrived()) > 8 << 20, "the loop sends the rest")


@own_thread
def test_messages_behind_a_pause_of_reading_are_read() -> None:
    """Reading is paused while the handler waits for its socket, and goes on while it waits for the loop."""
    with new_loop() as loop, bench(loop) as made:
        first = made.begin_pop(0.05)  # nothing comes: its connection is looked after by no tick
        assert first.result(DEADLINE) is None
        popped = made.begin_pop()
        made.connection._pause_reading()
        made.puppet.on_in_message("from elsewhere")
        assert popped.result(DEADLINE) == "from elsewhere"
        popped = made.puppet.begin(lambda: made.puppet.pop_in_message(None))
        made.puppet.until_waiting()
        made.connection.resume_reading()
        made.peer.sendall(texts("from the peer"))
        spin(popped.done, "the message")
        assert popped.result() == "from the peer"


@own_thread
def test_the_room_that_a_waiting_handler_makes_is_somebodys() -> None:
    """Another thread waits for room that the handler's put-off answers take: the handler sends them as it waits."""
    with new_loop() as loop, bench(loop, max_out_bytes=1000) as made:
        made.peer.sendall(texts("one", "two"))
        assert made.begin_pop().result(DEADLINE) == "one"
        made.push("put off")
        assert made.puppet.do(lambda: made.puppet.pop_in_message(None)) == "two"
        assert len(made.session.outgoing) == 1
        other = Task(lambda: made.puppet.push_out_message(b"x" * 1000)).until_blocked()
        popped = made.puppet.begin(lambda: made.puppet.pop_in_message(None))
        assert other.result() is True
        spin(lambda: made.arrived().endswith(b"x" * 1000), "both messages")
        made.peer.sendall(texts("three"))
        spin(popped.done, "the message")
        assert popped.result() == "three"


@own_thread
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_answers_are_not_put_off_until_the_mailbox_is_full(limit: int) -> None:
    """The policy of a full mailbox is for clients that are slow."""
    with new_loop() as loop, bench(loop, max_out_messages=limit, slow_consumer="close") as made:
        made.peer.sendall(texts(*map(str, range(9))))
        assert made.begin_pop().result(DEADLINE) == "0"
        tell = made.session.outgoing.on_output
        told: list[bool] = []

        def count() -> None:
            told.append(True)
            tell()

        made.session.outgoing.on_output = count
        for number in range(limit):
            assert made.push(str(number))
        assert told, "the mailbox is full, and nobody was told to empty it"


@own_thread
def test_what_comes_after_the_end_is_no_message() -> None:
    with new_loop() as loop, bench(loop) as made:

        def meanwhile() -> None:
            made.session.end(1000)
            made.peer.sendall(texts("too late"))

        assert held_up_while_it_tells(made, meanwhile).result(DEADLINE) is None
        turns()
        assert made.puppet.do(made.puppet.pop_in_message) is None


@own_thread
def test_a_part_of_a_message_is_heard_when_it_comes() -> None:
    """Failed: a peer that took longer for a message than for the pings in its time was lost."""
    with new_loop() as loop, bench(loop) as made:
        stream = texts("x" * 5000)
        popped = made.begin_pop()
        for start in range(0, len(stream) - 1, 1000):
            before = made.connection.heard_at
            made.peer.sendall(stream[start : min(start + 1000, len(stream) - 1)])
            spin(lambda before=before: made.connection.heard_at > before, "the part is heard")
        assert not popped.done()
        made.peer.sendall(stream[-1:])
        spin(popped.done, "the message")
        assert popped.result() == "x" * 5000


@own_thread
def test_waiting_for_the_socket_takes_no_more_stack_than_any_other_wait() -> None:
    """A page more of the stack, for what may come, would be a fifth of what an idle connection takes."""
    with new_loop() as loop, bench(loop) as made:
        popped = made.begin_pop()
        for_its_socket = made.puppet.stack_in_use()
        made.peer.sendall(texts("done"))
        assert popped.result(DEADLINE) == "done"
        stopped = made.puppet.begin(made.puppet.wait_stop)
        made.puppet.until_waiting()
        for_the_end = made.puppet.stack_in_use()
        made.connection.abort()
        assert stopped.result(DEADLINE)
        assert for_its_socket < for_the_end + 1024


@own_thread
def test_what_has_come_and_is_not_read_is_known() -> None:
    with new_loop() as loop, bench(loop) as made:
        assert not made.connection.has_unread()
        made.peer.sendall(texts("one")[:1])
        until(made.connection.has_unread, "it is there; the loop stands still")
        made.peer.sendall(texts("one")[1:])
        assert made.puppet.begin(lambda: made.puppet.pop_in_message(None)).result(DEADLINE) == "one"
        until(lambda: not made.connection.has_unread(), "it is read")
    assert not made.connection.has_unread()


@own_thread
def test_a_pong_that_lay_with_the_loop_answers_the_ping_that_was_not_sent_because_of_it() -> None:
    """The thread read it while the loop stood still. Failed: the keepalive waited for an answer to the second ping."""
    with new_loop() as loop, bench(loop) as made:
        made.begin_pop()
        made.connection.send_ping()
        until(lambda: len(made.arrived()) == 10, "the ping")
        made.peer.sendall(frame(PONG, made.arrived()[2:]))
        until(lambda: made.connection._unread, "its thread has handed the pong over")
        pinged_at = monotonic()
        made.connection.send_ping()
        spin(lambda: not made.connection._unread, "the loop takes it")
        assert len(made.arrived()) == 10, "no second ping"
        assert made.connection.heard_at >= pinged_at
