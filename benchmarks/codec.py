#!/usr/bin/env python3
"""What the codec costs, in time and in memory.

    python benchmarks/codec.py [--no-memory] [--connections 200]

Time: decoding a masked 32-byte message from what a read gave, plus encoding it as the answer, in ns of CPU per message;
one frame a read and 16, text and binary. The aim is 1.2 µs. The least of many repetitions, which nothing disturbed.

Memory: what permessage-deflate keeps per connection for each window, with and without a context from message to
message: the growth of a real server's resident memory over connections that have each echoed messages, less that of
the same connections without compression. A fresh server per row.
"""

import argparse
import json
import os
import pathlib
import socket
import sys
import time
import timeit
import zlib

from run import HERE, Server, commit, machine
from websockets.headers import parse_extension

from krait_ws.protocol.connection import ProtocolState
from krait_ws.protocol.frames import encode_binary, encode_text

AIM_NS = 1200
MASK = b"\x12\x34\x56\x78"


def frame(opcode, payload, first_bits=0x80):
    """A masked frame as a client sends it."""
    size = len(payload)
    head = bytes((first_bits | opcode, 0x80 | size)) if size < 126 else bytes((first_bits | opcode, 0xFE))
    head += size.to_bytes(2, "big") if size >= 126 else b""
    return head + MASK + bytes(byte ^ MASK[index & 3] for index, byte in enumerate(payload))


# ---- time


def best_ns(function, count):
    """Nanoseconds of one of the ``count`` messages that a call of ``function`` handles."""
    number = 2000 // count
    return min(timeit.repeat(function, number=number, repeat=100, timer=time.process_time)) / number / count * 1e9


def time_rows():
    rows = []
    payload = b"x" * 32
    for kind, opcode, encode in (("text", 1, encode_text), ("binary", 2, encode_binary)):
        message = payload.decode() if kind == "text" else payload
        for count in (1, 16):
            protocol = ProtocolState(1 << 20)
            data = frame(opcode, payload) * count
            assert protocol.receive(data) == [message] * count

            def both(protocol=protocol, data=data, encode=encode):
                for received in protocol.receive(data):
                    encode(received)

            decode = best_ns(lambda protocol=protocol, data=data: protocol.receive(data), count)
            encode_only = best_ns(lambda encode=encode, message=message: encode(message), 1)
            total = best_ns(both, count)
            rows.append(
                {
                    "kind": kind,
                    "messages_a_read": count,
                    "decode_ns": round(decode),
                    "encode_ns": round(encode_only),
                    "both_ns": round(total),
                    "met": total < AIM_NS,
                }
            )
    return rows


# ---- memory


def resident_kb(pids):
    total = 0
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


class Client:
    """A connection that has the codec of websockets where the server agreed to compress."""

    def __init__(self, port, path, bits):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        offer = f"permessage-deflate; client_max_window_bits={bits or 15}" if bits else ""
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        ) + (f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else "")
        self.socket.sendall(head.encode() + b"\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        self.answer = answer.decode()
        if " 101 " not in self.answer:
            raise RuntimeError(self.answer.splitlines()[0])
        fields = (line.partition(":") for line in self.answer.splitlines())
        self.extension = next(
            (value.strip() for name, _, value in fields if name.lower() == "sec-websocket-extensions"), ""
        )
        if bool(bits) != bool(self.extension):
            raise RuntimeError(f"the server answered the offer {offer!r} with {self.extension!r}")
        self.bits = bits or 15
        if self.extension:
            [(_, parameters)] = parse_extension(self.extension)
            agreed = dict(parameters)
            self.bits = int(agreed.get("client_max_window_bits") or 15)

    def _receive(self):
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("connection lost")
        return data

    def echo(self, payload):
        """Sends a message and waits for a whole frame of the answer."""
        if self.extension:
            squeeze = zlib.compressobj(wbits=-self.bits)
            body = squeeze.compress(payload) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            self.socket.sendall(frame(2, body[:-4], 0xC0))
        else:
            self.socket.sendall(frame(2, payload))
        data = self._receive()
        while True:
            size, start = (data[1] & 127, 2)
            if size == 126 and len(data) >= 4:
                size, start = int.from_bytes(data[2:4], "big"), 4
            if size != 126 and len(data) >= start + size:
                return
            data += self._receive()


def memory_kb(connections, bits, context):
    """KB a connection after each has echoed; ``bits`` 0 is without compression."""
    options = []
    if bits:
        flag = "--compress-context" if context else "--no-compress-context"
        options = ["--compress", "--compress-window-bits", bits, flag]
    payload = os.urandom(1500) + bytes(20000)
    with Server("loop", options) as server:
        warm = Client(server.port, "/loop", bits)  # what is made once and not per connection
        warm.echo(payload)
        before = resident_kb(server.pids)
        clients = [Client(server.port, "/loop", bits) for _ in range(connections)]
        for _ in range(2):
            for client in clients:
                client.echo(payload)
        time.sleep(0.3)
        grown = resident_kb(server.pids) - before
        for client in (*clients, warm):
            client.socket.close()
    return grown / connections


def memory_rows(connections):
    plain = memory_kb(connections, 0, False)
    rows = [{"window_bits": None, "context": None, "kb": round(plain, 1), "more_kb": 0.0}]
    for context in (True, False):
        for bits in range(9, 16):
            kb = memory_kb(connections, bits, context)
            rows.append({"window_bits": bits, "context": context, "kb": round(kb, 1), "more_kb": round(kb - plain, 1)})
            print(f"window {bits}, context {context}: {kb:.1f} KB", file=sys.stderr)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--connections", type=int, default=200)
    arguments = parser.parse_args()
    times = time_rows()
    print("| 32-byte message | messages a read | decode, ns | encode, ns | both, ns | below 1,200 |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for row in times:
        print(
            f"| {row['kind']} | {row['messages_a_read']} | {row['decode_ns']} | {row['encode_ns']} | {row['both_ns']} "
            f"| {'met' if row['met'] else '**not met**'} |"
        )
    memory = [] if arguments.no_memory else memory_rows(arguments.connections)
    if memory:
        print("\n| compress_window_bits | compress_context | KB a connection | of them for compression |")
        print("| --- | --- | ---: | ---: |")
    for row in memory:
        bits = "off" if row["window_bits"] is None else row["window_bits"]
        context = {None: "", True: "yes", False: "no"}[row["context"]]
        print(f"| {bits} | {context} | {row['kb']} | {row['more_kb']} |")
    result = {
        "command": " ".join(["python", "benchmarks/codec.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "time": times,
        "memory": memory,
    }
    (HERE / "results" / "codec.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["met"] for row in times) else 1


if __name__ == "__main__":
    sys.exit(main())
