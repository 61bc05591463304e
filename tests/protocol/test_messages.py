"""From frames to messages (RFC 6455 sections 5 and 8.1): fragments, masks, lengths, UTF-8 and the size limit.

Each input is given whole, byte by byte and cut at every place, as bytes and in a receive buffer that is used again.
"""

from __future__ import annotations

import codecs
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.protocol import State as ReferenceState
from websockets.server import ServerProtocol

from krait_ws.protocol.connection import ProtocolState, State
from tests.helpers import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, close_frame, frame, server_frames, splits

LIMIT = 1 << 20
Message = str | bytes


@dataclass(frozen=True)
class Outcome:
    """What a peer's bytes lead to."""

    messages: list[Message]
    close_code: int | None
    pongs: list[bytes]


def receive(chunks: list[bytes], limit: int = LIMIT) -> Outcome:
    """What the chunks lead to, each given as bytes."""
    protocol = ProtocolState(limit)
    messages: list[Message] = []
    sent = b""
    for chunk in chunks:
        messages += protocol.receive(chunk)
        sent += protocol.take_control_frames()
    return _outcome(protocol, messages, sent)


def receive_in_buffer(chunks: list[bytes], limit: int = LIMIT) -> Outcome:
    """The same through one buffer, as the network loop has it: what a message holds must be a copy."""
    protocol = ProtocolState(limit)
    messages: list[Message] = []
    sent = b""
    buffer = bytearray(max(map(len, chunks), default=0))
    view = memoryview(buffer)
    for chunk in chunks:
        buffer[: len(chunk)] = chunk
        messages += protocol.receive(view[: len(chunk)])
        sent += protocol.take_control_frames()
        buffer[:] = b"\xa5" * len(buffer)
    return _outcome(protocol, messages, sent)


def _outcome(protocol: ProtocolState, messages: list[Message], sent: bytes) -> Outcome:
    assert all(type(message) in (str, bytes) for message in messages)
    return Outcome(
        messages, protocol.close_code, [payload for opcode, payload in server_frames(sent) if opcode == PONG]
    )


def check_every_split(data: bytes, expected: Outcome, limit: int = LIMIT) -> None:
    for chunks in splits(data):
        assert receive(chunks, limit) == expected, chunks
        assert receive_in_buffer(chunks, limit) == expected, chunks


EURO = "€".encode()

GOOD = [
    pytest.param(bytes.fromhex("818537fa213d7f9f4d5158"), ["Hello"], id="masked text of section 5.7"),
    pytest.param(frame(TEXT), [""], id="empty text"),
    pytest.param(frame(BINARY), [b""], id="empty binary"),
    pytest.param(frame(BINARY, b"\x00\xff\x80"), [b"\x00\xff\x80"], id="binary is any bytes"),
    pytest.param(frame(TEXT, b"x", mask=bytes(4)), ["x"], id="mask of zeros"),
    pytest.param(frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT, b"c"), ["a", b"b", "c"], id="three in a row"),
    pytest.param(frame(TEXT, b"a" * 125), ["a" * 125], id="125 bytes"),
    pytest.param(frame(TEXT, b"a" * 126), ["a" * 126], id="126 bytes"),
    pytest.param(frame(BINARY, b"a" * 127), [b"a" * 127], id="127 bytes"),
    pytest.param(frame(TEXT, "é€😀\U0010ffff\0".encode()), ["é€😀\U0010ffff\0"], id="characters of all lengths"),
    pytest.param(
        frame(TEXT, b"Hel", fin=False) + frame(CONTINUATION, b"lo", mask=b"\x01\x02\x03\x04"),
        ["Hello"],
        id="two fragments, each with its mask",
    ),
    pytest.param(
        frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c"),
        [b"abc"],
        id="three fragments",
    ),
    pytest.param(
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION), [""], id="only empty fragments"
    ),
    pytest.param(
        frame(BINARY, fin=False) + frame(CONTINUATION, b"x") + frame(BINARY), [b"x", b""], id="empty first fragment"
    ),
    pytest.param(frame(TEXT, b"x", fin=False) + frame(CONTINUATION), ["x"], id="empty last fragment"),
    pytest.param(
        frame(TEXT, EURO[:1], fin=False) + frame(CONTINUATION, EURO[1:2], fin=False) + frame(CONTINUATION, EURO[2:]),
        ["€"],
        id="a character in three fragments",
    ),
    pytest.param(
        frame(TEXT, EURO[:1], fin=False)
        + frame(CONTINUATION, fin=False)
        + frame(CONTINUATION, EURO[1:] + b"!")
        + frame(TEXT, b"next"),
        ["€!", "next"],
        id="a character around an empty fragment",
    ),
    pytest.param(
        frame(TEXT, b"a", fin=False)
        + frame(CONTINUATION, b"b")
        + frame(TEXT, b"c", fin=False)
        + frame(CONTINUATION, b"d"),
        ["ab", "cd"],
        id="two fragmented messages",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "messages"), GOOD)
def test_messages(data: bytes, messages: list[Message]) -> None:
    check_every_split(data, Outcome(messages, None, []))


@pytest.mark.parametrize(
    ("data", "messages", "pongs"),
    [
        pytest.param(frame(PING, b"hi"), [], [b"hi"], id="ping"),
        pytest.param(frame(PING), [], [b""], id="empty ping"),
        pytest.param(frame(PING, b"p" * 125), [], [b"p" * 125], id="largest ping"),
        pytest.param(frame(PONG, b"unasked"), [], [], id="a pong needs no answer"),
        pytest.param(frame(PING, b"1") + frame(PING, b"2"), [], [b"1", b"2"], id="two pings, in order"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(PING, b"1") + frame(PONG) + frame(CONTINUATION, b"b"),
            ["ab"],
            [b"1"],
            id="control frames between fragments",
        ),
        pytest.param(
            frame(TEXT, EURO[:2], fin=False) + frame(PING, b"\xff") + frame(CONTINUATION, EURO[2:]),
            ["€"],
            [b"\xff"],
            id="a ping inside a character",
        ),
    ],
)
def test_control_frames_between_messages(data: bytes, messages: list[Message], pongs: list[bytes]) -> None:
    check_every_split(data, Outcome(messages, None, pongs))


BAD = [
    *(
        pytest.param(frame(opcode, b"x", reserved=bit), 1002, id=f"opcode {opcode} with reserved bit {bit:#x}")
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
        for bit in (0x40, 0x20, 0x10, 0x70)
    ),
    *(
        pytest.param(frame(opcode, b"x"), 1002, id=f"unknown opcode {opcode}")
        for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF)
    ),
    *(
        pytest.param(frame(opcode, b"x", mask=None), 1002, id=f"opcode {opcode} without a mask")
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG)
    ),
    pytest.param(frame(TEXT, mask=None), 1002, id="empty text without a mask"),
    *(
        pytest.param(frame(opcode, b"xx", fin=False), 1002, id=f"fragmented control frame {opcode}")
        for opcode in (CLOSE, PING, PONG)
    ),
    *(
        pytest.param(frame(opcode, b"x" * 126), 1002, id=f"control frame {opcode} with 126 bytes")
        for opcode in (CLOSE, PING, PONG)
    ),
    pytest.param(frame(PING, b"x", width=2), 1002, id="control frame with a long length"),
    pytest.param(frame(TEXT, b"x", width=2), 1002, id="length 1 in two bytes"),
    pytest.param(frame(TEXT, b"x" * 125, width=2), 1002, id="length 125 in two bytes"),
    pytest.param(frame(BINARY, b"x", width=8), 1002, id="length 1 in eight bytes"),
    pytest.param(frame(BINARY, size=65535, width=8), 1002, id="length 65,535 in eight bytes"),
    pytest.param(frame(BINARY, size=0, width=8), 1002, id="length 0 in eight bytes"),
    pytest.param(frame(CONTINUATION, b"x"), 1002, id="continuation of nothing"),
    pytest.param(frame(CONTINUATION, b"x", fin=False), 1002, id="first fragment is a continuation"),
    pytest.param(frame(TEXT, b"\xff"), 1007, id="text is no UTF-8"),
    pytest.param(frame(TEXT, b"ok\x80"), 1007, id="text with a lone continuation byte"),
    pytest.param(frame(TEXT, EURO[:2]), 1007, id="text ends inside a character"),
    pytest.param(frame(TEXT, b"\xed\xa0\x80"), 1007, id="text with a surrogate"),
    pytest.param(frame(TEXT, b"\xc0\xaf"), 1007, id="text with an overlong slash"),
    pytest.param(frame(TEXT, b"\xf4\x90\x80\x80"), 1007, id="text beyond U+10FFFF"),
    pytest.param(frame(TEXT, b"a" * 200 + b"\xff"), 1007, id="longer text is no UTF-8"),
    pytest.param(frame(TEXT, b"a" * 199 + EURO[:1]), 1007, id="longer text ends inside a character"),
    pytest.param(frame(TEXT, EURO[:1], fin=False) + frame(CONTINUATION, b"x"), 1007, id="character not continued"),
    pytest.param(frame(TEXT, EURO[:2], fin=False) + frame(CONTINUATION), 1007, id="character never ended"),
]


@pytest.mark.parametrize(("data", "code"), BAD)
def test_faults_of_the_peer(data: bytes, code: int) -> None:
    check_every_split(data, Outcome([], code, []))


@pytest.mark.parametrize(("data", "code"), BAD)
def test_what_was_whole_before_a_fault_counts_and_nothing_after_it(data: bytes, code: int) -> None:
    around = frame(TEXT, b"before") + frame(PING, b"p") + data + frame(TEXT, b"after") + frame(PING, b"q")
    expected = Outcome(["before"], code, [b"p"])
    for chunks in ([around], [around[index : index + 1] for index in range(len(around))]):
        assert receive(chunks) == expected
        assert receive_in_buffer(chunks) == expected


@pytest.mark.parametrize(
    ("second", "code"),
    [
        pytest.param(frame(TEXT, b"b"), 1002, id="new text"),
        pytest.param(frame(BINARY, b"b"), 1002, id="new binary"),
        pytest.param(frame(TEXT), 1002, id="new empty text"),
        pytest.param(frame(TEXT, b"b", fin=False), 1002, id="new first fragment"),
        pytest.param(frame(CONTINUATION, b"b", reserved=0x40), 1002, id="continuation with a reserved bit"),
        pytest.param(frame(CONTINUATION, b"b", mask=None), 1002, id="continuation without a mask"),
    ],
)
@pytest.mark.parametrize(
    "first", [frame(TEXT, b"a", fin=False), frame(BINARY, fin=False)], ids=["text", "empty binary"]
)
def test_faults_inside_a_fragmented_message(first: bytes, second: bytes, code: int) -> None:
    check_every_split(first + second, Outcome([], code, []))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"a\xff", fin=False), 1007, id="bad text in the first fragment"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\xff", fin=False), 1007, id="bad text in the second"
        ),
        pytest.param(frame(TEXT, b"\xff" * 10)[:-9], 1007, id="bad first byte of ten"),
        pytest.param(frame(TEXT, b"\xff" + b"a" * 999)[: 8 + 1], 1007, id="bad first byte of a thousand"),
        pytest.param(b"\xc1", 1002, id="reserved bit, one byte"),
        pytest.param(b"\x83", 1002, id="unknown opcode, one byte"),
        pytest.param(b"\x09", 1002, id="fragmented ping, one byte"),
        pytest.param(b"\x80", 1002, id="continuation of nothing, one byte"),
        pytest.param(b"\x81\x05", 1002, id="no mask, two bytes"),
        pytest.param(b"\x89\xfe", 1002, id="long ping, two bytes"),
        pytest.param(b"\x81\xfe\x00\x7d", 1002, id="length not shortest, without its mask"),
        pytest.param(b"\x82\xff" + (1 << 63).to_bytes(8, "big"), 1002, id="2^63 bytes announced"),
        pytest.param(b"\x82\xff" + b"\xff" * 8, 1002, id="2^64 - 1 bytes announced"),
        pytest.param(b"\x82\xff" + (1 << 62).to_bytes(8, "big"), 1009, id="2^62 bytes announced"),
        pytest.param(b"\x81\xff" + (LIMIT + 1).to_bytes(8, "big"), 1009, id="one byte too many announced"),
    ],
)
def test_a_fault_is_known_as_soon_as_it_can_be(data: bytes, code: int) -> None:
    """Also: no rest of the frame is waited for."""
    check_every_split(data, Outcome([], code, []))


@pytest.mark.parametrize("size", [1 << 62, 1 << 40, 1 << 63, LIMIT + 1], ids=["2^62", "2^40", "2^63", "1 MiB + 1"])
def test_an_announced_length_takes_no_memory(size: int) -> None:
    protocol = ProtocolState(LIMIT)
    tracemalloc.start()
    try:
        protocol.receive(frame(BINARY, b"x" * 100, size=size, width=8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert protocol.close_code in (1002, 1009)
    assert peak < 64 * 1024


def test_a_length_within_the_limit_takes_no_memory_either_before_the_bytes_are_there() -> None:
    protocol = ProtocolState(1 << 30)
    tracemalloc.start()
    try:
        protocol.receive(frame(BINARY, b"x" * 100, size=1 << 30))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert protocol.state is State.OPEN
    assert protocol.bytes_expected == (1 << 30) - 100
    assert peak < 64 * 1024


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(frame(BINARY, b"x" * 10), Outcome([b"x" * 10], None, []), id="exactly the limit"),
        pytest.param(frame(BINARY, b"x" * 11), Outcome([], 1009, []), id="one more"),
        pytest.param(frame(TEXT, "é".encode() * 6), Outcome([], 1009, []), id="bytes count, not characters"),
        pytest.param(
            frame(BINARY, b"x" * 5, fin=False) + frame(CONTINUATION, b"x" * 5), Outcome([b"x" * 10], None, []),
            id="fragments of exactly the limit",
        ),
        pytest.param(
            frame(BINARY, b"x" * 5, fin=False) + frame(CONTINUATION, b"x" * 6), Outcome([], 1009, []),
            id="fragments of one more",
        ),
        pytest.param(
            frame(TEXT, b"x" * 9, fin=False) + frame(CONTINUATION, b"x", fin=False) * 2,
            Outcome([], 1009, []),
            id="fragments without an end",
        ),
        pytest.param(frame(BINARY, b"x" * 10) * 3, Outcome([b"x" * 10] * 3, None, []), id="each message counts alone"),
        pytest.param(
            (frame(BINARY, b"x" * 6, fin=False) + frame(CONTINUATION, b"x" * 4)) * 2,
            Outcome([b"x" * 10] * 2, None, []),
            id="each fragmented message counts alone",
        ),
        pytest.param(
            frame(PING, b"p" * 11) + frame(BINARY, b"x" * 10), Outcome([b"x" * 10], None, [b"p" * 11]),
            id="pings do not count",
        ),
    ],
)  # fmt: skip
def test_the_size_limit(data: bytes, expected: Outcome) -> None:
    check_every_split(data, expected, limit=10)


def test_the_limit_for_fragments_holds_as_soon_as_a_head_announces_it() -> None:
    data = frame(BINARY, b"x" * 6, fin=False) + frame(CONTINUATION, b"x" * 5)[:2]
    check_every_split(data, Outcome([], 1009, []), limit=10)


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(size, chunk) for size in (65535, 65536, 200_000) for chunk in (3, 4096, 65536, 1 << 20)]
    + [(65535, 1), (65536, 1)],  # byte by byte the largest would only be slow
)
def test_large_messages_in_pieces(size: int, chunk: int) -> None:
    """The mask must go on where the last piece ended."""
    payload = bytes(index * 7 % 251 for index in range(size))
    data = frame(BINARY, payload) + frame(TEXT, b"next")
    chunks = [data[start : start + chunk] for start in range(0, len(data), chunk)]
    assert receive_in_buffer(chunks) == Outcome([payload, "next"], None, [])


def test_bytes_expected_is_what_is_missing_of_a_frame() -> None:
    protocol = ProtocolState(LIMIT)
    data = frame(BINARY, b"x" * 1000)
    assert protocol.bytes_expected == 0
    protocol.receive(data[:108])
    assert protocol.bytes_expected == 900
    protocol.receive(data[108:])
    assert protocol.bytes_expected == 0


# ---- turns: one call takes no more time than a turn of the loop may


def turns(data: bytes) -> tuple[ProtocolState, list[list[Message]]]:
    """What each call gives of data that came in one read."""
    protocol = ProtocolState(LIMIT)
    given = [protocol.receive(data)]
    while protocol.is_holding:
        assert len(given) < 100, "it holds for ever"
        given.append(protocol.receive(b""))
    return protocol, given


@pytest.mark.parametrize(
    "one",
    [frame(TEXT, b"a"), frame(BINARY, b"a" * 200), frame(TEXT, b"a", fin=False) + frame(CONTINUATION)],
    ids=["short", "longer", "fragments"],
)
def test_many_frames_in_one_read_are_given_in_turns(one: bytes) -> None:
    protocol, given = turns(one * 5000)
    assert sum(map(len, given)) == 5000
    assert len(given) > 4
    assert max(map(len, given)) <= 1024
    assert protocol.close_code is None


@pytest.mark.parametrize("count", range(500, 525))
@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(close_frame(1000), 1000, id="close"),
        pytest.param(b"\xff", 1002, id="fault"),
        pytest.param(close_frame(1000) + frame(TEXT, b"late") * 600, 1000, id="close and more"),
        pytest.param(b"\xff" + frame(TEXT, b"late") * 600, 1002, id="fault and more"),
    ],
)
def test_a_turn_may_end_anywhere(count: int, end: bytes, code: int | None) -> None:
    """Failed where the close frame was the last frame of a turn: the closed connection said for ever that it held more,
    and the network loop span until the connection was cut off."""
    protocol, given = turns(frame(TEXT, b"a") * count + end)
    assert sum(map(len, given)) == count
    assert protocol.close_code == code


# ---- against the decoder of the websockets library


def reference(data: bytes, limit: int) -> Outcome:
    """What ``websockets`` makes of the frames; it checks no UTF-8 of messages, so that is done here."""
    protocol = ServerProtocol(state=ReferenceState.OPEN, max_size=limit)
    protocol.receive_data(data)
    messages: list[Message] = []
    pongs: list[bytes] = []
    payload, text = b"", False
    decoder = codecs.getincrementaldecoder("utf-8")()
    for event in protocol.events_received():
        if event.opcode == PING:
            pongs.append(bytes(event.data))
        if event.opcode in (TEXT, BINARY):
            payload, text = b"", event.opcode == TEXT
            decoder.reset()
        if event.opcode in (TEXT, BINARY, CONTINUATION):
            payload += event.data
            try:
                if text:
                    decoder.decode(bytes(event.data), event.fin)
            except UnicodeDecodeError:
                return Outcome(messages, 1007, pongs)
            if event.fin:
                messages.append(payload.decode() if text else payload)
    close = protocol.close_rcvd or protocol.close_sent
    return Outcome(messages, None if close is None else int(close.code), pongs)


masks = st.sampled_from([MASK, bytes(4), b"\xff\x00\x80\x01"])
payloads = (
    st.binary(max_size=20)
    | st.text(max_size=20).map(str.encode)
    | st.sampled_from([b"a" * 125, b"a" * 126, b"a" * 300])
)
control_frames = (
    st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=5), mask=masks)
    | st.builds(close_frame, st.sampled_from([None, 1000, 1005, 2999, 3000, 4999]))
    | st.builds(close_frame, st.sampled_from([1000, 3000]), st.sampled_from([b"bye", b"\xff", b"\xe2\x82"]))
)
data_frames = st.builds(
    frame, st.sampled_from([TEXT, TEXT, BINARY, CONTINUATION]), payloads, fin=st.booleans(), mask=masks
)
broken_frames = st.builds(
    frame,
    st.integers(0, 15),
    st.sampled_from([b"", b"\x03\xe8", b"\x00", b"abc", b"\xff\xff"]),
    fin=st.booleans(),
    reserved=st.sampled_from([0, 0, 0x10, 0x40]),
    mask=st.sampled_from([MASK, MASK, None]),
)


@st.composite
def good_messages(draw: st.DrawFn, pings: bool = True) -> bytes:
    """A message in fragments, with pings between them."""
    text = draw(st.booleans())
    payload = draw(st.text(max_size=30).map(str.encode) if text else st.binary(max_size=30))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    parts = [payload[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    data = b""
    for index, part in enumerate(parts):
        opcode = CONTINUATION if index else TEXT if text else BINARY
        data += frame(opcode, part, fin=index == len(parts) - 1, mask=draw(masks))
        if pings and draw(st.booleans()):
            data += frame(PING, draw(st.binary(max_size=3)))
    return data


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in cuts})
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


any_frames = st.lists(good_messages() | data_frames | control_frames | broken_frames, max_size=12).map(b"".join)
any_cuts = st.lists(st.integers(0, 4000), max_size=12)


@given(st.lists(good_messages(), max_size=8).map(b"".join), any_cuts)
def test_whole_messages_decode_as_the_reference_decodes_them(data: bytes, cuts: list[int]) -> None:
    expected = reference(data, LIMIT)
    assert expected.close_code is None
    assert receive(cut(data, cuts)) == expected
    assert receive_in_buffer(cut(data, cuts)) == expected


@given(any_frames, any_cuts)
def test_any_sequence_of_frames_decodes_as_the_reference_decodes_it(data: bytes, cuts: list[int]) -> None:
    expected = reference(data, LIMIT)
    assert receive(cut(data, cuts)) == expected
    assert receive_in_buffer(cut(data, cuts)) == expected


@given(st.lists(good_messages(pings=False), max_size=6).map(b"".join), any_cuts, st.integers(1, 40))
def test_the_size_limit_is_that_of_the_reference(data: bytes, cuts: list[int], limit: int) -> None:
    """Without pings: the reference counts them, but they are no part of a message."""
    expected = reference(data, limit)
    assert receive(cut(data, cuts), limit) == expected
    assert receive_in_buffer(cut(data, cuts), limit) == expected


@given(st.binary(max_size=200) | any_frames, any_cuts, st.integers(1, 200))
def test_however_bytes_are_cut_they_mean_the_same_and_never_raise(data: bytes, cuts: list[int], limit: int) -> None:
    whole = receive([data], limit)
    assert receive(cut(data, cuts), limit) == whole
    assert receive_in_buffer([data[index : index + 1] for index in range(len(data))], limit) == whole
