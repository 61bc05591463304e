"""Both pollers alone: what they report of a TCP connection, and what they stop to report."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import pytest
from gevent.hub import get_hub

from krait_ws.core import LoopCore
from krait_ws.network.poller import (
    HANGUP,
    READ,
    WRITE,
    EpollPoller,
    Poller,
    Ready,
    WatcherPoller,
    new_poller,
)
from tests.helpers import own_thread, pause
from tests.network.support import Owner, reset, spin, tcp_pair, turns, until_readable

NEEDS_EPOLL = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
KINDS = pytest.mark.parametrize("kind", [pytest.param("epoll", marks=NEEDS_EPOLL), "watchers"])
ONE_KIND = [pytest.param("epoll", marks=NEEDS_EPOLL)]


class Turns(LoopCore):
    """The loop's part of polling, which fails where an owner does; notes who was served in each turn."""

    def __init__(self) -> None:
        super().__init__(1024)
        self.turns: list[list[Any]] = [[]]

    def serve(self, owner: Ready, events: int) -> None:
        owner.on_ready(events)
        self._run_soon()

    def _run_soon(self) -> None:
        self.turns.append([])

    def _failed(self, owner: Ready) -> None:
        raise AssertionError("an owner failed")


@contextmanager
def polling(kind: str, loop: Turns | None = None) -> Iterator[Poller]:
    poller = new_poller(kind, get_hub(), loop or Turns())
    try:
        yield poller
    finally:
        poller.close()


@KINDS
@own_thread
def test_reading(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner(lambda events: ours.recv(100))
        poller.watch(ours.fileno(), owner, READ)
        turns()
        assert owner.events == []
        peer.send(b"one")
        spin(lambda: owner.events, "the bytes")
        assert owner.events == [READ]
        peer.send(b"two")
        spin(lambda: len(owner.events) == 2, "more bytes")
        turns()
        assert owner.events == [READ, READ]


@KINDS
@own_thread
def test_bytes_that_are_not_read_are_reported_again(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, READ)
        peer.send(b"x")
        spin(lambda: len(owner.events) >= 3, "the same bytes, again and again")
        assert set(owner.events) == {READ}


@KINDS
@own_thread
def test_writing_and_both(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, WRITE)
        spin(lambda: owner.events, "room to write")
        assert set(owner.events) == {WRITE}
        peer.send(b"x")
        poller.watch(ours.fileno(), owner, READ | WRITE)
        spin(lambda: READ | WRITE in owner.events or {READ, WRITE} <= set(owner.events), "both")


@KINDS
@own_thread
def test_a_full_socket_is_writable_when_the_peer_has_read(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, WRITE)

        def fill() -> bool:
            """The system may go on to move bytes to the peer's side for a while, and then there is room again."""
            with suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 16))
            owner.events.clear()
            turns()
            return owner.events == []

        spin(fill, "the socket is full, and is not reported")
        peer.setblocking(False)

        def drain() -> bool:
            try:
                while peer.recv(1 << 20):
                    pass
            except BlockingIOError:
                pass
            return bool(owner.events)

        spin(drain, "room to write")
        assert set(owner.events) == {WRITE}


@KINDS
@own_thread
def test_what_is_not_watched_is_not_reported(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, 0)
        peer.send(b"x")
        turns()
        assert owner.events == []
        poller.watch(ours.fileno(), owner, READ)
        spin(lambda: owner.events, "the bytes that waited")
        poller.watch(ours.fileno(), owner, 0)
        seen = len(owner.events)
        turns()
        assert len(owner.events) == seen


@KINDS
@own_thread
def test_the_end_of_the_stream_is_readable(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        read: list[bytes] = []
        owner = Owner(lambda events: read.append(ours.recv(100)))
        poller.watch(ours.fileno(), owner, READ)
        peer.shutdown(socket.SHUT_WR)
        spin(lambda: read, "the end")
        assert read[0] == b""
        assert owner.events[0] & READ


@KINDS
@own_thread
def test_a_reset_is_readable(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, READ)
        reset(peer)
        spin(lambda: owner.events, "the reset")
        assert owner.events[0] & READ
        with pytest.raises(ConnectionResetError):
            ours.recv(1)


@pytest.mark.parametrize("kind", ONE_KIND)
@own_thread
def test_a_hang_up_is_reported_where_reading_is_not_watched(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner(lambda events: poller.watch(ours.fileno(), owner, 0))
        poller.watch(ours.fileno(), owner, HANGUP)
        peer.send(b"last words")
        turns()
        assert owner.events == [], "bytes alone are no hang-up"
        peer.shutdown(socket.SHUT_WR)
        spin(lambda: owner.events, "the hang-up")
        turns()
        assert owner.events == [HANGUP], "alone, and once: nothing is watched any more"
        assert ours.recv(100) == b"last words"


@pytest.mark.parametrize("kind", ONE_KIND)
@own_thread
def test_a_hang_up_beside_writing(kind: str) -> None:
    """Failed: it came as an error's READ and WRITE, and cost the connection what its peer had sent last."""
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        peer.shutdown(socket.SHUT_WR)
        until_readable(ours)
        poller.watch(ours.fileno(), owner, HANGUP | WRITE)
        spin(lambda: owner.events, "either")
        assert set(owner.events) == {HANGUP | WRITE}


@pytest.mark.parametrize("kind", ONE_KIND)
@own_thread
@pytest.mark.parametrize("watched", [0, HANGUP], ids=["nothing", "hang-up"])
def test_a_reset_is_reported_whatever_is_watched(kind: str, watched: int) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner(lambda events: poller.forget(ours.fileno()))
        poller.watch(ours.fileno(), owner, watched)
        reset(peer)
        spin(lambda: owner.events, "the reset")
        assert owner.events == [READ | WRITE]


@own_thread
def test_watchers_know_no_hang_up() -> None:
    with polling("watchers") as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, HANGUP)
        peer.shutdown(socket.SHUT_WR)
        turns()
        assert owner.events == []
        poller.watch(ours.fileno(), owner, READ)
        spin(lambda: owner.events, "the end, once reading is watched")


@KINDS
@own_thread
def test_a_forgotten_socket_is_not_reported(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner()
        poller.watch(ours.fileno(), owner, READ)
        poller.forget(ours.fileno())
        poller.forget(ours.fileno())
        peer.send(b"x")
        turns()
        assert owner.events == []


@KINDS
@own_thread
def test_a_descriptor_that_is_used_again_belongs_to_its_new_owner(kind: str) -> None:
    with polling(kind) as poller, tcp_pair() as (ours, _), tcp_pair() as (other, peer):
        old = Owner()
        descriptor = ours.fileno()
        poller.watch(descriptor, old, READ)
        poller.forget(descriptor)
        os.dup2(other.fileno(), descriptor)  # closes the old one
        new = Owner(lambda events: ours.recv(100))
        poller.watch(descriptor, new, READ)
        peer.send(b"x")
        spin(lambda: new.events, "the new owner's bytes")
        assert old.events == []


@KINDS
@own_thread
def test_an_owner_may_forget_sockets_of_the_same_batch(kind: str) -> None:
    """Each of two ready sockets' owners forgets the other: one at least is served, and nothing fails."""
    with polling(kind) as poller, tcp_pair() as (one, one_peer), tcp_pair() as (two, two_peer):
        first = Owner(lambda events: (poller.forget(one.fileno()), poller.forget(two.fileno())))
        second = Owner(lambda events: (poller.forget(one.fileno()), poller.forget(two.fileno())))
        poller.watch(one.fileno(), first, READ)
        poller.watch(two.fileno(), second, READ)
        one_peer.send(b"x")
        two_peer.send(b"x")
        spin(lambda: first.events or second.events, "one of them")
        turns()
        assert len(first.events) <= 1
        assert len(second.events) <= 1


@KINDS
@own_thread
def test_more_sockets_than_a_batch_are_all_served(kind: str) -> None:
    count = 300
    with polling(kind) as poller, ExitStack() as exits:
        owners = []
        for _ in range(count):
            ours, theirs = (exits.enter_context(sock) for sock in socket.socketpair())
            ours.setblocking(False)
            owner = Owner(lambda events, ours=ours: ours.recv(100))
            poller.watch(ours.fileno(), owner, READ)
            owners.append(owner)
            theirs.send(b"x")
        spin(lambda: all(owner.events for owner in owners), "every socket")


@pytest.mark.parametrize("kind", ONE_KIND)
@own_thread
def test_sockets_that_are_ready_together_come_in_one_batch(kind: str) -> None:
    loop = Turns()
    with polling(kind, loop) as poller, tcp_pair() as (one, one_peer), tcp_pair() as (two, two_peer):
        owners = {
            sock: Owner(lambda events, sock=sock: (sock.recv(100), loop.turns[-1].append(sock))) for sock in (one, two)
        }
        one_peer.send(b"x")
        two_peer.send(b"x")
        for sock in owners:
            until_readable(sock)
        for sock, owner in owners.items():
            poller.watch(sock.fileno(), owner, READ)
        spin(lambda: loop.turns[0], "a turn")
        assert set(loop.turns[0]) == {one, two}


@pytest.mark.parametrize("kind", ONE_KIND)
@own_thread
def test_sockets_that_are_never_empty_leave_the_hub_its_turns(kind: str) -> None:
    """Failed: what 20 busy connections sent was looked at eight times before anything else had its turn."""
    with polling(kind) as poller, tcp_pair() as (ours, peer):
        owner = Owner(lambda events: pause(0.01))
        poller.watch(ours.fileno(), owner, READ)
        peer.send(b"x")
        spin(lambda: owner.events, "the byte, which nobody takes")
        before = len(owner.events)
        turns(5)
        assert len(owner.events) - before <= 15
        poller.forget(ours.fileno())


@own_thread
def test_which_poller_is_taken() -> None:
    hub = get_hub()

    def kind_of(name: str) -> type:
        poller = new_poller(name, hub, Turns())
        poller.close()
        return type(poller)

    assert kind_of("watchers") is WatcherPoller
    if sys.platform == "linux":
        assert kind_of("epoll") is EpollPoller
        assert kind_of("auto") is EpollPoller
    else:
        assert kind_of("auto") is WatcherPoller
    gevent.sleep(0)
