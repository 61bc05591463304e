"""Attacks through frames: floods, bombs, peers that do not read, do not close, or are gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from krait_ws.protocol.connection import ProtocolState
from tests.attacks.support import (
    DEFLATE,
    Attacked,
    compressed,
    flood,
    many,
    memory,
    plain_frame,
    send_for,
    zeros,
)
from tests.integration.support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ServerIsGone,
    close_frame,
    eventually,
    frame,
)

Attack = Callable[..., Attacked]
MB = 1 << 20


def code_of(client: object) -> int:
    """The code with which the server closes; other frames before it are skipped."""
    while (received := client.receive_frame()).opcode != CLOSE:  # type: ignore[attr-defined]
        pass
    return int.from_bytes(received.payload[:2], "big")


# ---- floods: others are served meanwhile, memory stays bounded


@pytest.mark.parametrize("path", ["/sink", "/handler", "/pieces"])
@pytest.mark.parametrize(
    ("begin", "data"),
    [
        pytest.param(b"", many(PING, b"x" * 125), id="pings"),
        pytest.param(b"", many(PONG), id="pongs"),
        pytest.param(frame(TEXT, "a", fin=False), many(CONTINUATION, fin=False), id="empty fragments"),
        pytest.param(frame(TEXT, "a", fin=False), many(PING) + many(CONTINUATION, fin=False), id="pings in fragments"),
        pytest.param(b"", many(BINARY), id="empty messages"),
        pytest.param(b"", many(TEXT, b"x"), id="tiny messages"),
        pytest.param(b"", plain_frame(BINARY, bytes(20_000)) + many(BINARY), id="tiny ones behind a large one"),
    ],
)
def test_floods(attack: Attack, path: str, begin: bytes, data: bytes) -> None:
    attacked = attack()
    if path != "/sink" and data[0] & 0x0F in (TEXT, BINARY):
        data = data[: len(data) // 8 // 6 * 6]
    before = memory()
    with flood(attacked, data, path=path, clients=3, count=5, begin=begin):
        for _ in range(3):
            attacked.serves_others()
    assert memory() - before < 100 * MB


@pytest.mark.parametrize("payload", [b"\0", compressed([b"x"]), b""], ids=["empty", "one byte", "nothing at all"])
def test_floods_of_tiny_compressed_messages(attack: Attack, payload: bytes) -> None:
    attacked = attack(compress=True)
    with flood(attacked, many(BINARY, payload, reserved=4), headers=DEFLATE, clients=3, count=5):
        for _ in range(3):
            attacked.serves_others()


@pytest.mark.parametrize("count", [510, 511, 512, 513, 1023, 1024, 3000])
@pytest.mark.parametrize("end", [close_frame(1000), frame(0xB), b""], ids=["close", "fault", "nothing"])
def test_the_loop_rests_after_a_flood(attack: Attack, count: int, end: bytes) -> None:
    """What is left of a read for later turns must not keep the loop busy when there are none."""
    attacked = attack(close_timeout=30.0, ping_interval=60.0)
    with attacked.client("/sink") as client:
        client.send(many(PONG, size=6 * count) + end)
        if end:
            code_of(client)
        else:
            client.send_frame(PING, b"still there?")
            assert client.receive_frame().payload == b"still there?"
        pause = threading.Event()

        def rests() -> bool:
            started, spent = time.monotonic(), time.process_time()
            pause.wait(0.2)
            return time.process_time() - spent < 0.1 * (time.monotonic() - started)

        eventually(rests, 10, "next to nothing is done once the rest of what was begun is")


# ---- bombs


def test_a_bomb_of_a_gigabyte_costs_at_most_the_limit(attack: Attack) -> None:
    attacked = attack(compress=True, max_message_size=4 * MB)
    bomb = zeros(1024)
    assert len(bomb) < 1.1 * MB
    before = memory()
    with attacked.client("/sink", DEFLATE) as client:
        send_for(client, plain_frame(BINARY, bomb, reserved=4), 1)
        with suppress(ServerIsGone, ConnectionError):
            assert code_of(client) == 1009
    assert memory() - before < 32 * MB


@pytest.mark.parametrize("path", ["/sink", "/idle", "/pieces"])
def test_many_bombs_below_the_limit_in_one_packet_are_bounded_together(attack: Attack, path: str) -> None:
    attacked = attack(compress=True)
    limit = attacked.server.server.config.max_inflated_size
    one = plain_frame(TEXT, compressed([b"a" * (limit - 4), "\U0001f600".encode()]), reserved=4)
    before = memory()
    with attacked.client(path, (DEFLATE[0] + "; client_no_context_takeover",)) as client:
        client.sock.settimeout(1.0)
        send_for(client, one * 60, 2)
        attacked.serves_others()
        assert memory() - before < 100 * MB


@pytest.mark.parametrize("path", ["/sink", "/pieces"])
def test_a_deflate_stream_that_ends_takes_no_memory_afterwards(attack: Attack, path: str) -> None:
    """zlib keeps all that comes behind the end of its stream."""
    attacked = attack(compress=True)
    before = memory()
    with attacked.client(path, DEFLATE) as client:
        client.send(plain_frame(BINARY, compressed([b"hello"], last_block=True), reserved=4))
        send_for(client, plain_frame(BINARY, b"\xff" * MB, reserved=4), 60)
        attacked.serves_others()
    assert memory() - before < 40 * MB


def test_messages_behind_the_end_of_a_deflate_stream_arrive(attack: Attack) -> None:
    attacked = attack(compress=True, compress_threshold=1 << 20, ping_interval=60.0)
    with attacked.client("/loop", (DEFLATE[0] + "; client_no_context_takeover",)) as client:
        for last_block in (True, False, True, False):
            client.send(plain_frame(TEXT, compressed([b"hello"], last_block=last_block), reserved=4))
            client.expect("hello")


def test_a_header_that_announces_much_costs_nothing(attack: Attack) -> None:
    attacked = attack(ping_interval=60.0)
    before = memory()
    for size in (1 << 62, (1 << 63) - 1, 1 << 40, 2 * MB):
        with attacked.client("/handler") as client:
            client.send(bytes((0x82, 0xFF)) + size.to_bytes(8, "big") + bytes(4))
            assert code_of(client) == 1009
    assert memory() - before < 16 * MB
    state = ProtocolState(MB, streams=True)
    state.receive(bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + bytes(4))
    assert state.bytes_expected == 1 << 62


def test_an_endless_message_to_a_reader_of_pieces_is_bounded(attack: Attack) -> None:
    attacked = attack()
    before = memory()
    endless = bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + bytes(4)
    with flood(attacked, bytes(1 << 16), path="/pieces", clients=2, count=500, begin=endless):
        attacked.serves_others()
        assert memory() - before < 64 * MB


# ---- peers that do not read, do not close, or are gone


@pytest.mark.parametrize("path", ["/pushes", "/loop", "/handler"])
def test_a_peer_that_never_reads_is_dropped(attack: Attack, path: str) -> None:
    attacked = attack()
    before = memory()
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(attacked.client(path, receive_buffer=4096))
            client.sock.settimeout(1.0)
            send_for(client, plain_frame(BINARY, bytes(60_000)), 300 if path != "/pushes" else 0)
        attacked.serves_others()
        assert memory() - before < 200 * MB
        eventually(lambda: not attacked.sessions, what="all are dropped though none of them reads or closes")


def test_half_open_peers_are_dropped(attack: Attack) -> None:
    """To the server a client that answers nothing is the same as one whose cable was cut."""
    attacked = attack()
    with ExitStack() as stack:
        for number in range(50):
            client = stack.enter_context(attacked.client(("/idle", "/loop", "/pieces")[number % 3]))
            client.send(frame(TEXT, "begun", fin=False)[: number % 8])
        eventually(lambda: not attacked.sessions, what="all are dropped")
        attacked.serves_others()


@pytest.mark.parametrize("end", ["close frame and FIN", "FIN", "RST", "silence"])
def test_a_peer_that_leaves_while_nobody_takes_its_messages_is_noticed(attack: Attack, end: str) -> None:
    """Reading is paused then: neither a FIN nor a missing pong may go unseen."""
    attacked = attack(max_in_messages=10)
    with ExitStack() as stack:
        for _ in range(5):
            # Behind the handshake: reading is paused before a slow client could be lost for its silence.
            client = stack.enter_context(attacked.client("/idle", behind=many(TEXT, b"x", size=7000)))
            match end:
                case "close frame and FIN":
                    client.send(close_frame(1000))
                    client.close()
                case "FIN":
                    client.close()
                case "RST":
                    client.reset()
        if end != "silence":
            eventually(lambda: not attacked.sessions, what="all have left")
        attacked.serves_others()


def test_frames_after_close_are_ignored(attack: Attack) -> None:
    attacked = attack(ping_interval=60.0)
    with attacked.client("/handler") as client:
        client.send(close_frame(1000) + many(TEXT, b"late"))
        with suppress(ConnectionError):
            assert code_of(client) == 1000
            send_for(client, many(TEXT, b"later"), 200)
            with pytest.raises(ServerIsGone):
                client.receive_frame()
        eventually(lambda: not attacked.sessions)


@pytest.mark.parametrize("floods", [False, True], ids=["silent", "floods on"])
def test_a_peer_that_closes_but_keeps_tcp_is_cut_off(attack: Attack, floods: bool) -> None:
    attacked = attack(close_timeout=0.5)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(attacked.client("/idle"))
            client.sock.settimeout(0.5)
            client.send(close_frame(1000))
            if floods:
                send_for(client, many(PING, b"x" * 100), 20)
        eventually(lambda: not attacked.sessions, what="all are cut off")


def test_a_peer_that_never_answers_close_is_cut_off(attack: Attack) -> None:
    attacked = attack(close_timeout=0.5, ping_interval=60.0)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(attacked.client("/idle"))
        for session in list(attacked.server.server.sessions):
            session.controller.close(1000)
        assert code_of(client) == 1000
        eventually(lambda: not attacked.sessions, what="all are cut off")


def test_connects_that_end_in_every_rude_way(attack: Attack) -> None:
    attacked = attack(ping_interval=60.0)
    before = memory()
    for number in range(600):
        with attacked.client(("/idle", "/loop", "/handler", "/pieces")[number % 4]) as client:
            client.send(frame(TEXT, "x" * 200, fin=number % 3 > 0)[: 5 + number])
            if number % 2:
                client.reset()
    eventually(lambda: not attacked.sessions)
    assert memory() - before < 64 * MB
