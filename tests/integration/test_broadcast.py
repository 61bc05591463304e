"""``broadcast`` with clients on real sockets: everybody gets it, nobody waits for the slow, frames are made once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from krait_ws import broadcast as module
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, broadcast
from tests.integration.support import PATIENCE, TEXT, RawClient, eventually

Serve = Callable[..., SiteServer]
LARGE = "large " * 400


class Members:
    """The controllers of one test, and the class that makes them."""

    def __init__(self, **attributes: Any) -> None:
        self.all: list[WebsocketsCtrlBase] = []
        members = self

        class Member(WebsocketsCtrlBase):
            def __init__(self) -> None:
                super().__init__(use_in_message_queue=False)
                members.all.append(self)

        for name, value in attributes.items():
            setattr(Member, name, value)
        self.controller = Member


@pytest.mark.parametrize("runs_on", ["thread", "greenlet", "loop"])
@pytest.mark.parametrize("message", ["hello", b"\x00\xff", LARGE], ids=["text", "binary", "large"])
def test_everybody_gets_the_message(serve: Serve, runs_on: str, message: str | bytes) -> None:
    members = Members(runs_on=runs_on)
    site = serve(members.controller)
    clients = [RawClient(site.port) for _ in range(20)]
    assert broadcast(members.all, message) == 20
    assert [client.receive() for client in clients] == [message] * 20
    for client in clients:
        client.close()


def test_several_threads_keep_their_own_order(serve: Serve) -> None:
    members = Members()
    site = serve(members.controller)
    clients = [RawClient(site.port) for _ in range(5)]

    def tell(name: str) -> None:
        for number in range(200):
            broadcast(members.all, f"{name} {number}")

    threads = [threading.Thread(target=tell, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for client in clients:
        received = [str(client.receive()) for _ in range(600)]
        for name in "abc":
            assert [text for text in received if text[0] == name] == [f"{name} {number}" for number in range(200)]
        client.close()
    for thread in threads:
        thread.join(PATIENCE)


def test_a_frame_is_compressed_once_and_the_next_message_can_be_inflated(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    deflate = module.deflate_shared

    def deflate_shared(frame: bytes, bits: int) -> bytes:
        made.append(deflate(frame, bits))
        return made[-1]

    monkeypatch.setattr(module, "deflate_shared", deflate_shared)
    members = Members(compress=True)
    site = serve(members.controller)
    url = site.url.replace("http", "ws", 1)
    with connect(url) as first, connect(url) as second, connect(url, compression=None) as plain:
        eventually(lambda: len(members.all) == 3)
        for number in range(5):
            # A message of one connection's own window lies between two that are shared.
            members.all[0].push_out_message(f"own {number} {LARGE}")
            assert broadcast(members.all, f"shared {number} {LARGE}") == 3
            assert first.recv(PATIENCE) == f"own {number} {LARGE}"
            for client in (first, second, plain):
                assert client.recv(PATIENCE) == f"shared {number} {LARGE}"
        assert len(made) == 5
        assert all(len(frame) < 100 for frame in made)


def test_a_compressed_message_can_be_taken_back(serve: Serve) -> None:
    members = Members(compress=True, compress_threshold=10)
    site = serve(members.controller)
    with connect(site.url.replace("http", "ws", 1)):
        member = eventually(lambda: members.all and members.all[0])
        eventually(lambda: member._krait.shared_window)
        holds, held = threading.Event(), threading.Event()

        def hold() -> None:
            holds.set()
            held.wait(PATIENCE)

        member._krait._runtime.call(hold)  # the loop takes nothing meanwhile
        try:
            assert holds.wait(PATIENCE), "before that it may be about to send what a new connection has"
            broadcast([member], LARGE)
            assert member.pressure[:2] == (1, len(member._krait.outgoing.frames[0]))
            assert member.pop_out_message() == LARGE
            assert member.pressure[:2] == (0, 0)
        finally:
            held.set()


@pytest.mark.parametrize(
    ("policy", "queued", "stays"),
    [("block", False, False), ("close", False, False), ("drop_new", False, True), ("drop_oldest", True, True)],
)
def test_a_slow_member_holds_up_nobody(serve: Serve, policy: str, queued: bool, stays: bool) -> None:
    members = Members(slow_consumer=policy, max_out_messages=2)
    site = serve(members.controller)
    slow, quick = RawClient(site.port), RawClient(site.port)
    held = threading.Event()
    members.all[0]._krait._runtime.call(held.wait)  # what is pushed stays in the mailboxes
    assert [broadcast(members.all[:1], str(number)) for number in range(2)] == [1, 1]
    assert broadcast(members.all, "last") == 1 + queued
    held.set()
    assert quick.receive() == "last"
    dropped = members.all[0].pressure.dropped
    assert dropped == (1 if stays else 0)
    if stays:
        assert [slow.receive(), slow.receive()] == (["1", "last"] if queued else ["0", "1"])
    else:
        assert members.all[0].close_code == 1013
    slow.close()
    quick.close()


def test_of_an_iterable_that_raises_nobody_has_the_message(serve: Serve) -> None:
    """Failed: those before it raised had it and were never sent it, nor what was pushed later, because the loop was
    thought to know."""
    members = Members()
    site = serve(members.controller)
    client = RawClient(site.port)

    def some() -> Iterator[WebsocketsCtrlBase]:
        yield members.all[0]
        raise RuntimeError("Set changed size during iteration")

    members.all[0].push_out_message("zero")
    assert client.receive() == "zero"
    with pytest.raises(RuntimeError):
        broadcast(some(), "one")
    members.all[0].push_out_message("two")
    assert client.receive() == "two"
    client.close()


def test_when_it_cannot_be_compressed_the_others_have_the_message(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(frame: bytes, window: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr("krait_ws.broadcast.deflate_shared", fails)
    members = Members()
    site = serve(members.controller, compress=True, compress_threshold=1)
    plain = RawClient(site.port)
    eventually(lambda: len(members.all) == 1)
    compressing = RawClient(site.port, headers=("Sec-WebSocket-Extensions: permessage-deflate",))
    eventually(lambda: len(members.all) == 2 and members.all[1]._krait.shared_window)
    with pytest.raises(MemoryError):
        broadcast(members.all, "one")
    members.all[0].push_out_message("two")
    assert [plain.receive(), plain.receive()] == ["one", "two"]
    plain.close()
    compressing.close()


def test_a_connection_that_is_over_takes_nothing(serve: Serve) -> None:
    members = Members()
    site = serve(members.controller)
    RawClient(site.port).close()
    client = RawClient(site.port)
    eventually(lambda: members.all[0].close_code)
    assert broadcast(members.all, "hello") == 1
    assert client.receive() == "hello"
    client.close()


@pytest.mark.parametrize("message", [None, 1, {"a": 1}, iter("abc")])
def test_another_type_is_refused(message: Any) -> None:
    with pytest.raises(TypeError, match=r"json\.dumps"):
        broadcast([], message)


def test_what_a_connection_carried_is_counted(serve: Serve) -> None:
    members = Members(runs_on="loop", on_in_message=lambda self, message: self.push_out_message(message))
    site = serve(members.controller)
    client = RawClient(site.port)
    for number in range(3):
        client.send_frame(TEXT, f"{number}")
        assert client.receive() == f"{number}"
    members.all[0].push_out_message(iter(["in ", "three ", "parts"]))
    session = members.all[0]._krait
    assert (session.messages_in, session.bytes_in) == (3, 3 * 7)
    # A message counts when the loop takes it, its bytes when they have gone.
    out = (4, 3 * 3 + 5 + 8 + 7)
    eventually(lambda: session.messages_out >= out[0] and session.bytes_out >= out[1])
    assert (session.messages_out, session.bytes_out) == out
    client.close()
