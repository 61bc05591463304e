#!/usr/bin/env python3
"""Where the microseconds of a message go, and how they grow with the connections.

    python benchmarks/where.py [--connections 1,100,1000,10000] [--seconds 2] [--rounds 3]

The CPU time of a server for an echo of 32 bytes with 1 message in flight on each connection, and the kernel's part of
it: for each ``runs_on``, with the compiled core and with the one in Python, and for ``floor.c``, which does the least
that an echo takes. The median of the rounds. Beside it what can be timed alone: the two system calls of an echo, and a
switch to another greenlet or thread and back.
"""

import argparse
import os
import select
import socket
import statistics
import sys
import threading
import time
import timeit

from greenlet import getcurrent, greenlet
from run import KRAIT, Server, load

SIZE = 32
"""Bytes of a message."""


def cost(name, count, seconds, *, is_pure):
    """Microseconds of the server's CPU for a message, and of them in the kernel."""
    with Server(name, environment={"KRAIT_PURE_PYTHON": "1" if is_pure else ""}) as server:
        figures = load("echo", server, server.path, (count, 1, SIZE), seconds)
    return figures["cpu_us_per_msg"], figures["sys_us_per_msg"]


def pairs(count):
    """Connected sockets, both ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        for _ in range(count):
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client, server


def low(values):
    return sorted(values)[len(values) // 20]


def system_calls():
    """Microseconds of one recv_into and of one send, when nobody has to be woken."""
    ends = list(pairs(100))
    buffer = bytearray(65536)
    receive, send = [], []
    for _ in range(200):
        for client, _ in ends:
            client.send(b"x" * (SIZE + 6))
        for server in (server for _, server in ends):
            select.select([server], [], [])
        began = time.perf_counter()
        for _, server in ends:
            server.recv_into(buffer, 16384)
        receive.append((time.perf_counter() - began) * 1e4)
        began = time.perf_counter()
        for _, server in ends:
            server.send(b"x" * (SIZE + 2))
        send.append((time.perf_counter() - began) * 1e4)
        for client, _ in ends:
            client.recv(4096)
    for client, server in ends:
        client.close()
        server.close()
    return low(receive), low(send)


def greenlet_switches():
    """Microseconds to a greenlet and back."""
    hub = getcurrent()

    def body():
        while True:
            hub.switch()

    other = greenlet(body)
    return min(timeit.repeat(other.switch, number=2000, repeat=50)) / 2000 * 1e6


def thread_switches():
    """Microseconds to a thread and back, over native locks."""
    there, back, over = threading.Lock(), threading.Lock(), []
    there.acquire()
    back.acquire()

    def body():
        while not over:
            there.acquire()
            back.release()

    def turn():
        there.release()
        back.acquire()

    threading.Thread(target=body, daemon=True).start()
    result = min(timeit.repeat(turn, number=200, repeat=50)) / 200 * 1e6
    over.append(True)
    turn()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", default="1,100,1000,10000")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.connections.split(",")]
    print("µs of CPU a message, and of them in the kernel\n")
    print("| core | runs_on | " + " | ".join(f"{count:,} connections" for count in counts) + " |")
    print("| --- | --- |" + " ---: |" * len(counts))
    rows = [("floor.c", "floor"), *(("compiled", name) for name in KRAIT), *(("pure", name) for name in KRAIT)]
    for core, name in rows:
        cells = []
        for count in counts:
            runs = [cost(name, count, arguments.seconds, is_pure=core == "pure") for _ in range(arguments.rounds)]
            cells.append("{:.1f} ({:.1f})".format(*map(statistics.median, zip(*runs, strict=True))))
        print(f"| {core} | {name if name in KRAIT else ''} | " + " | ".join(cells) + " |", flush=True)
    receive, send = system_calls()
    print(f"\nAlone, µs: recv_into {receive:.1f}, send {send:.1f}; there and back: ", end="")
    print(f"greenlet {greenlet_switches():.1f}, thread {thread_switches():.1f}")
    sys.stdout.flush()
    os._exit(0)  # the thread of the last measurement may still wait


if __name__ == "__main__":
    main()
