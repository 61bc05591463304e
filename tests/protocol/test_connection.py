"""Control frames and the closing handshake (RFC 6455 sections 1.4, 5.5 and 7), without a socket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from krait_ws.protocol.connection import ProtocolState, State
from tests.helpers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame, server_frames, splits

LIMIT = 1 << 16


def new() -> ProtocolState:
    return ProtocolState(LIMIT)


def failed() -> ProtocolState:
    """After a fault of the peer, before our close frame."""
    protocol = new()
    protocol.receive(frame(TEXT, b"\xff"))
    return protocol


def fail_close(protocol: ProtocolState) -> bytes:
    """What the connection does after a fault: it says what was wrong, behind what is still to be sent."""
    assert protocol.close_code is not None
    protocol.send_close(protocol.close_code, protocol.close_reason)
    return protocol.take_control_frames()


def close_sent() -> ProtocolState:
    """After our close frame has gone out."""
    protocol = new()
    protocol.send_close(1001, "ours")
    assert server_frames(protocol.take_control_frames()) == [(CLOSE, b"\x03\xe9ours")]
    return protocol


def code_of(payload: bytes) -> int:
    return int.from_bytes(payload[:2], "big")


def test_it_begins_open() -> None:
    protocol = new()
    assert protocol.state is State.OPEN
    assert (protocol.close_code, protocol.close_reason) == (None, "")
    assert not protocol.owes
    assert protocol.take_control_frames() == b""


# ---- the peer closes


@pytest.mark.parametrize(
    ("data", "code", "reason", "echo"),
    [
        pytest.param(close_frame(), 1005, "", b"", id="no code"),
        pytest.param(close_frame(1000), 1000, "", b"\x03\xe8", id="1000"),
        pytest.param(close_frame(1001, b"away"), 1001, "away", b"\x03\xe9", id="with a reason"),
        pytest.param(close_frame(1000, "größer €".encode()), 1000, "größer €", b"\x03\xe8", id="UTF-8 reason"),
        pytest.param(close_frame(4999, b"r" * 123), 4999, "r" * 123, b"\x13\x87", id="longest reason"),
        *(
            pytest.param(close_frame(code), code, "", code.to_bytes(2, "big"), id=f"code {code}")
            for code in (1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000)
        ),
    ],
)
def test_a_close_of_the_peer_is_echoed_once(data: bytes, code: int, reason: str, echo: bytes) -> None:
    for chunks in splits(data):
        protocol = new()
        for chunk in chunks:
            assert protocol.state is State.OPEN
            assert protocol.receive(chunk) == []
        assert protocol.state is State.CLOSED
        assert (protocol.close_code, protocol.close_reason) == (code, reason)
        assert protocol.owes
        [(opcode, payload)] = server_frames(protocol.take_control_frames())
        assert opcode == CLOSE
        assert payload[:2] == echo  # the echo carries the code; section 5.5.1 leaves the reason free
        assert not protocol.owes
        assert protocol.take_control_frames() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(CLOSE, b"\x03"), 1002, id="one byte"),
        *(
            pytest.param(close_frame(code), 1002, id=f"code {code}")
            for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
        ),
        pytest.param(close_frame(1000, b"\xff"), 1007, id="reason is no UTF-8"),
        pytest.param(close_frame(1000, "€".encode()[:2]), 1007, id="reason ends inside a character"),
        pytest.param(frame(CLOSE, b"\x03\xe8" + b"r" * 124), 1002, id="126 bytes"),
        pytest.param(frame(CLOSE, b"\x03\xe8", fin=False), 1002, id="fragmented"),
        pytest.param(frame(TEXT, b"\xff"), 1007, id="bad text"),
        pytest.param(frame(BINARY, b"x" * (LIMIT + 1))[:10], 1009, id="too big"),
    ],
)
def test_a_fault_is_answered_with_its_code_and_a_reason(data: bytes, code: int) -> None:
    for chunks in splits(data):
        protocol = new()
        for chunk in chunks:
            assert protocol.receive(chunk) == []
        assert protocol.state is State.FAILED
        assert protocol.close_code == code
        assert not protocol.owes, "messages that are queued go first"
        [(opcode, payload)] = server_frames(fail_close(protocol))
        assert protocol.state is State.CLOSED
        assert opcode == CLOSE
        assert code_of(payload) == code
        assert payload[2:].decode() == protocol.close_reason != ""


@pytest.mark.parametrize(
    "end", [close_frame(1000), close_frame(), frame(TEXT, b"\xff"), b"\xff\xff"], ids=["close", "bare", "text", "junk"]
)
@pytest.mark.parametrize(
    "late",
    [frame(TEXT, b"late"), frame(PING, b"late"), close_frame(1001), b"\xff\xff\xff", frame(CONTINUATION, b"x")],
    ids=["message", "ping", "second close", "junk", "continuation"],
)
def test_what_comes_after_the_end_is_ignored(end: bytes, late: bytes) -> None:
    data = frame(TEXT, b"before") + end + late
    for chunks in ([data], [data[: -len(late)], late]):
        protocol = new()
        messages = [message for chunk in chunks for message in protocol.receive(chunk)]
        assert messages == ["before"]
        code, reason = protocol.close_code, protocol.close_reason
        assert len(server_frames(fail_close(protocol))) == 1
        assert protocol.receive(late) == []
        assert not protocol.owes
        assert (protocol.close_code, protocol.close_reason) == (code, reason)


def test_a_close_between_fragments_ends_the_message_unfinished() -> None:
    data = frame(TEXT, b"a", fin=False) + close_frame(1000) + frame(CONTINUATION, b"b")
    for chunks in splits(data):
        protocol = new()
        assert [message for chunk in chunks for message in protocol.receive(chunk)] == []
        assert protocol.close_code == 1000


def test_after_a_fault_only_the_close_frame_is_sent() -> None:
    protocol = failed()
    assert protocol.receive(frame(PING) + close_frame(1000)) == []
    protocol.send_ping(b"p")
    assert not protocol.owes
    assert [opcode for opcode, _ in server_frames(fail_close(protocol))] == [CLOSE]
    protocol.send_close(1000, "")
    assert not protocol.owes
    assert protocol.close_code == 1007


def test_data_may_be_sent_until_a_close_frame_has_gone_or_come() -> None:
    assert new().may_send
    assert failed().may_send
    assert not close_sent().may_send
    for data in (close_frame(1000), close_frame()):
        protocol = new()
        protocol.receive(data)
        assert not protocol.may_send


# ---- we close


def test_our_close_waits_for_the_peers() -> None:
    protocol = close_sent()
    assert protocol.state is State.CLOSE_SENT
    assert (protocol.close_code, protocol.close_reason) == (1001, "ours")
    protocol.receive(close_frame(1001))
    assert protocol.state is State.CLOSED
    assert not protocol.owes, "a close frame is not answered twice"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(close_frame(1000, b"theirs"), id="another code"),
        pytest.param(close_frame(), id="no code"),
        pytest.param(close_frame(1005), id="a code that may not be sent"),
        pytest.param(frame(TEXT, b"\xff"), id="bad text"),
        pytest.param(b"\xff", id="junk"),
        pytest.param(frame(BINARY, size=1 << 40), id="too big"),
    ],
)
def test_after_our_close_the_first_code_stays_and_nothing_is_sent(data: bytes) -> None:
    for chunks in splits(data):
        protocol = close_sent()
        for chunk in chunks:
            assert protocol.receive(chunk) == []
        assert protocol.state is State.CLOSED
        assert (protocol.close_code, protocol.close_reason) == (1001, "ours")
        assert not protocol.owes


def test_after_our_close_messages_are_read_away() -> None:
    data = frame(TEXT, b"late") + frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b") + close_frame(1001)
    for chunks in splits(data):
        protocol = close_sent()
        assert [message for chunk in chunks for message in protocol.receive(chunk)] == []
        assert protocol.state is State.CLOSED


def test_a_message_that_was_half_there_when_we_closed_is_read_away() -> None:
    protocol = new()
    assert protocol.receive(frame(TEXT, b"a", fin=False)) == []
    protocol.send_close(1000, "")
    assert protocol.receive(frame(CONTINUATION, b"b") + close_frame(1000)) == []
    assert protocol.state is State.CLOSED
    assert protocol.close_code == 1000


def test_the_second_close_of_ours_does_nothing() -> None:
    protocol = close_sent()
    protocol.send_close(1011, "again")
    assert not protocol.owes
    assert (protocol.close_code, protocol.close_reason) == (1001, "ours")


def test_our_close_after_the_peers_does_nothing() -> None:
    protocol = new()
    protocol.receive(close_frame(1000))
    protocol.take_control_frames()
    protocol.send_close(1011, "late")
    assert not protocol.owes
    assert protocol.close_code == 1000


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (1000, "r" * 124)])
def test_a_close_that_cannot_be_sent_is_refused_and_changes_nothing(code: int, reason: str) -> None:
    protocol = new()
    with pytest.raises(ValueError, match=r"close code|close reason"):
        protocol.send_close(code, reason)
    assert protocol.state is State.OPEN
    assert protocol.close_code is None
    assert not protocol.owes


# ---- TCP ends


@pytest.mark.parametrize(
    ("begin", "code"),
    [
        pytest.param(new, 1006, id="while open"),
        pytest.param(close_sent, 1001, id="after our close"),
    ],
)
def test_the_end_of_tcp(begin: Callable[[], ProtocolState], code: int) -> None:
    protocol = begin()
    protocol.end_of_stream()
    assert protocol.state is State.CLOSED
    assert protocol.close_code == code
    assert not protocol.owes
    assert protocol.receive(frame(TEXT, b"late")) == []


@pytest.mark.parametrize(
    ("data", "code"), [(close_frame(1000), 1000), (close_frame(), 1005), (b"\xff", 1002)], ids=["1000", "none", "fault"]
)
def test_the_end_of_tcp_after_the_peers_close_keeps_its_code(data: bytes, code: int) -> None:
    protocol = new()
    protocol.receive(data)
    protocol.end_of_stream()
    assert protocol.close_code == code


# ---- pings


def test_a_ping_is_owed_a_pong_with_its_payload() -> None:
    protocol = new()
    protocol.receive(frame(PING, b"one") + frame(PING, b"two"))
    assert protocol.owes
    assert server_frames(protocol.take_control_frames()) == [(PONG, b"one"), (PONG, b"two")]
    assert not protocol.owes


def test_our_ping_waits_for_the_pong_that_answers_it() -> None:
    protocol = new()
    protocol.send_ping(b"one")
    assert server_frames(protocol.take_control_frames()) == [(PING, b"one")]
    protocol.receive(frame(PONG, b"other") + frame(PONG))
    assert protocol.ping_payload == b"one"
    protocol.receive(frame(PONG, b"one"))
    assert protocol.ping_payload is None


def test_a_pong_asks_for_nothing() -> None:
    protocol = new()
    assert protocol.receive(frame(PONG, b"unasked")) == []
    assert not protocol.owes


@pytest.mark.parametrize("at_once", [True, False], ids=["in one read", "read by read"])
def test_a_flood_of_pings_keeps_the_last_32_pongs(at_once: bool) -> None:
    pings = [frame(PING, str(number).encode()) for number in range(10_000)]
    protocol = new()
    for data in [b"".join(pings)] if at_once else pings:
        assert protocol.receive(data) == []
        while protocol.is_holding:
            assert protocol.receive(b"") == []
    pongs = server_frames(protocol.take_control_frames())
    assert pongs == [(PONG, str(number).encode()) for number in range(9_968, 10_000)]
    protocol.receive(frame(PING, b"next"))
    assert server_frames(protocol.take_control_frames()) == [(PONG, b"next")]


def test_pongs_that_are_owed_go_before_the_close_frame() -> None:
    protocol = new()
    protocol.receive(frame(PING, b"p") + close_frame(1000))
    assert server_frames(protocol.take_control_frames()) == [(PONG, b"p"), (CLOSE, b"\x03\xe8")]


def test_nothing_follows_our_close_frame_not_even_a_pong() -> None:
    protocol = close_sent()
    protocol.receive(frame(PING, b"p"))
    assert not protocol.owes
    assert protocol.take_control_frames() == b""
    assert protocol.state is State.CLOSE_SENT


def test_reserved_bits_are_refused_in_a_message_that_follows_a_good_one() -> None:
    protocol = new()
    assert protocol.receive(frame(TEXT, b"good") + frame(TEXT, b"bad", reserved=0x40)) == ["good"]
    assert protocol.close_code == 1002
