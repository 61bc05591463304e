#!/usr/bin/env python3
"""Where the microseconds of a message go.

    python benchmarks/where.py [--connections 1,10,100,1000,9000] [--turns 200]

Drives the real network loop, connections, sessions and controllers over loopback TCP in one process: each turn sends
one 32-byte message on every connection and is timed until the last answer can be read. The low (5th) percentile of the
turns is steady on a machine that does other things too. Beside it the parts that can be timed alone: the two system
calls on such sockets, the codec, the mailboxes, the hand-over to a handler and back. The rest is the hub, epoll and the
calls between.
"""

import argparse
import os
import select
import socket
import sys
import threading
import time
import timeit

import gevent
from codec import best_ns, frame
from greenlet import getcurrent, greenlet
from run import HERE

from krait_ws.config import DEFAULTS, Config
from krait_ws.mailbox import InMailbox, OutMailbox
from krait_ws.network.connection import Connection
from krait_ws.network.loop import Loop
from krait_ws.protocol.connection import ProtocolState
from krait_ws.protocol.frames import encode_text
from krait_ws.tuning import tune_process
from krait_ws.websockets import WebsocketsCtrlBase

sys.path.insert(0, str(HERE / "site"))
from _echo import GreenletEcho, LoopEcho, ThreadEcho

CONTROLLERS = {"thread": ThreadEcho, "greenlet": GreenletEcho, "loop": LoopEcho}
SIZE = 32
"""Bytes of a message."""


def pairs(count):
    """Connected sockets, both ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        for _ in range(count):
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.setblocking(False)
            yield client, server


def low(values):
    return sorted(values)[len(values) // 20]


def whole(controller_class: type[WebsocketsCtrlBase], count, turns):
    """Microseconds of a message, all in."""
    loop, config = Loop(), Config()
    ready = select.epoll()
    clients, kept = [], []
    for client, server in pairs(count):
        session = controller_class()._krait
        session.accept(loop, config, None, None, lambda session: None)
        kept.append(Connection(loop, server, session, b""))
        clients.append(client)
        ready.register(client.fileno(), select.EPOLLIN)
    gevent.sleep(0.2)
    hub = gevent.get_hub()
    watcher = hub.loop.io(ready.fileno(), 1)
    request = frame(1, b"x" * SIZE)
    times = []
    for _ in range(turns):
        for client in clients:
            client.send(request)
        began = time.perf_counter()
        while len(ready.poll(0, count)) < count:
            hub.wait(watcher)
        times.append((time.perf_counter() - began) / count * 1e6)
        for client in clients:
            client.recv(4096)
    for connection in kept:
        connection.abort()
    for client in clients:
        client.close()
    gevent.sleep(0.1)
    watcher.stop()
    watcher.close()
    loop.close()
    return low(times)


def system_calls():
    """Microseconds of one recv_into and of one send."""
    ends = list(pairs(100))
    buffer = bytearray(65536)
    receive, send = [], []
    for _ in range(200):
        for client, _ in ends:
            client.send(b"x" * (SIZE + 6))
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


def codec():
    """Microseconds to decode one message from a read and to encode it."""
    protocol, data = ProtocolState(1 << 20), frame(1, b"x" * SIZE)

    def both():
        for message in protocol.receive(data):
            encode_text(message)

    return best_ns(both, 1) / 1000


def mailboxes(waits):
    """Microseconds of put and pop (where there is an in-mailbox), push and take."""
    incoming, outgoing = InMailbox(DEFAULTS), OutMailbox(DEFAULTS)
    messages, encoded = ["x" * SIZE], encode_text("x" * SIZE)

    def both():
        if waits:
            incoming.put(messages)
            incoming.pop(None)
        outgoing.push(encoded)
        outgoing.take(65536)

    return best_ns(both, 1) / 1000


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
    parser.add_argument("--connections", default="1,10,100,1000,9000")
    parser.add_argument("--turns", type=int, default=200)
    arguments = parser.parse_args()
    tune_process()
    counts = [int(count) for count in arguments.connections.split(",")]
    totals = {}
    print("µs a message, 1 in flight\n")
    print("| runs_on | " + " | ".join(f"{count:,} connections" for count in counts) + " |")
    print("| --- |" + " ---: |" * len(counts))
    for name, controller_class in CONTROLLERS.items():
        row = []
        for count in counts:
            row.append(whole(controller_class, count, max(10, min(arguments.turns, arguments.turns * 100 // count))))
            totals[name, count] = row[-1]
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)
    receive, send = system_calls()
    handover = {"thread": thread_switches(), "greenlet": greenlet_switches(), "loop": 0.0}
    codec_us = codec()
    middle = 100 if 100 in counts else counts[0]
    print(f"\nThe parts at {middle} connections\n")
    print("| runs_on | all | recv_into | send | codec | mailboxes | hand-over | the rest |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in CONTROLLERS:
        parts = (receive, send, codec_us, mailboxes(name != "loop"), handover[name])
        total = totals[name, middle]
        cells = " | ".join(f"{part:.1f}" for part in parts)
        print(f"| {name} | {total:.1f} | {cells} | {max(0.0, total - sum(parts)):.1f} |")
    sys.stdout.flush()
    os._exit(0)  # handlers of the last connections may still be ending


if __name__ == "__main__":
    main()
