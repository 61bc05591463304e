"""Makes what a client may send, and breaks it."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

from tests.fuzz.checks import Setup
from tests.helpers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame


class Frames:
    """Frames as a client may send them, and some that it may not."""

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def make(self, setup: Setup) -> bytes:
        pick = self._random
        compressor = zlib.compressobj(6, zlib.DEFLATED, -(9 if "=9" in setup.offer else 12))
        parts = []
        for _ in range(pick.choice((1, 2, 3, 5, 10, 40))):
            kind = pick.random()
            if kind < 0.25:
                parts.append(self._control())
            elif kind < 0.35 and setup.offer:
                parts.append(self._hostile_deflate())
            else:
                parts += self._message(setup, compressor)
        data = b"".join(parts)
        return self.broken(data) if pick.random() < 0.5 else data

    def _message(self, setup: Setup, compressor: Any) -> list[bytes]:
        pick = self._random
        is_text = pick.random() < 0.5
        payload = self._text() if is_text else pick.randbytes(self._size(setup))
        opcode, reserved = TEXT if is_text else BINARY, 0
        if setup.offer and pick.random() < 0.6:
            if pick.random() < 0.5:
                payload = pick.choice((b"a", b"\0", b"\xf0\x9f\x98\x80")) * pick.choice((10, 100, 5000))
                opcode = BINARY
            if "no_context" in setup.offer:
                compressor = zlib.compressobj(6, zlib.DEFLATED, -12)
            payload = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            reserved = 0x40
        frames = []
        count = pick.choice((1, 1, 1, 2, 3, 8))
        bounds = sorted(pick.randint(0, len(payload)) for _ in range(count - 1))
        for index, (start, stop) in enumerate(zip([0, *bounds], [*bounds, len(payload)], strict=True)):
            first = index == 0
            frames.append(
                frame(
                    opcode if first else CONTINUATION,
                    payload[start:stop],
                    fin=index == count - 1,
                    reserved=reserved if first else 0,
                    mask=pick.randbytes(4),
                )
            )
            if pick.random() < 0.1:
                frames.append(self._control(may_close=False))
        return frames

    def _size(self, setup: Setup) -> int:
        return max(0, self._random.choice((0, 1, 5, 125, 126, 127, setup.limit, setup.limit + 1, setup.limit // 2)))

    def _text(self) -> bytes:
        pick = self._random
        text = "".join(pick.choice(("a", "é", "€", "\U0001f600", "\0")) for _ in range(pick.choice((0, 1, 3, 30, 130))))
        payload = bytearray(text.encode())
        if payload and pick.random() < 0.1:
            payload[pick.randrange(len(payload))] = pick.choice((0x80, 0xC0, 0xED, 0xF4, 0xFF))
        return bytes(payload)

    def _control(self, *, may_close: bool = True) -> bytes:
        pick = self._random
        opcode = pick.choice((PING, PING, PONG, CLOSE) if may_close else (PING, PONG))
        if opcode == CLOSE:
            code = pick.choice((None, 999, 1000, 1004, 1005, 1006, 1012, 1014, 1015, 2999, 3000, 4999, 5000, 65535))
            return close_frame(code, pick.choice((b"", b"bye", "€".encode(), b"\xff")) if code is not None else b"")
        return frame(opcode, pick.randbytes(pick.choice((0, 1, 8, 125))), mask=pick.randbytes(4))

    def _hostile_deflate(self) -> bytes:
        """Blocks that end the stream, stored blocks, empty blocks, bombs and nonsense."""
        pick = self._random
        compressor = zlib.compressobj(9, zlib.DEFLATED, -9)
        ended = compressor.compress(b"a" * pick.choice((0, 5, 5000))) + compressor.flush(zlib.Z_FINISH)
        payload = pick.choice(
            (
                ended,
                ended + pick.randbytes(300),
                b"\0",
                b"\x00\x00\x00\xff\xff" * pick.choice((1, 50)),
                b"\x01\x00\x00\xff\xff",
                pick.randbytes(pick.choice((1, 20, 2100))),
                b"",
            )
        )
        return frame(pick.choice((TEXT, BINARY)), payload, fin=pick.random() < 0.8, reserved=0x40)

    def broken(self, data: bytes) -> bytes:
        pick = self._random
        broken = bytearray(data)
        for _ in range(pick.choice((1, 1, 2, 5))):
            if not broken:
                break
            place = pick.randrange(len(broken))
            match pick.randrange(6):
                case 0:
                    broken[place] ^= 1 << pick.randrange(8)
                case 1:
                    broken[place] = pick.choice((0, 1, 0x7F, 0x80, 0x81, 0xC1, 0xFE, 0xFF))
                case 2:
                    del broken[place : place + pick.choice((1, 2, 10))]
                case 3:
                    broken[place:place] = pick.randbytes(pick.choice((1, 4, 20)))
                case 4:
                    broken[place:place] = self._odd_frame()
                case 5:
                    del broken[place:]
        return bytes(broken)

    def _odd_frame(self) -> bytes:
        pick = self._random
        if pick.random() < 0.5:
            return struct.pack("!BBQ", 0x82, 0xFF, pick.choice((1 << 62, 1 << 63, 0, 65535)))
        return frame(
            pick.randrange(16),
            b"x" * pick.choice((0, 1, 126)),
            fin=pick.random() < 0.5,
            reserved=pick.choice((0, 0x10, 0x20, 0x40)),
            mask=pick.choice((None, b"\0\0\0\0")),
        )
