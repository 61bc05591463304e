#!/usr/bin/env python3
"""Do other connections slow an echo down?

    python benchmarks/neighbours.py [--rounds 5] [--seconds 3] [--only blocking|flood|deaf]

The p99 of an echo on 100 connections, alone and beside a neighbour, for each ``runs_on`` of the echo:

    blocking  500 connections whose controllers block in ``time.sleep``, and 8 clients that ask without a pause for a
              route script that blocks a second; the p99 may be 3 times as high
    flood     one connection that keeps 64 messages in flight; 3 times
    deaf      100 clients that never read, whose handlers push 1,000 characters as fast as they can; twice, and the
              server's memory may grow by the limit of the out-mailboxes, 100 x 4 MiB, and a tenth

The two runs of a round come in random order on a server started afresh. The ratio is that of the medians.
"""

import argparse
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time

from run import HERE, Server, commit, held, load, load_command, machine, number

ROUTES = ("thread", "greenlet", "loop")
MOST = {"blocking": 3.0, "flood": 3.0, "deaf": 2.0}
MOST_MEMORY = 100 * 4.4
"""MiB that 100 clients that never read may cost."""


@contextlib.contextmanager
def blocking(server, _route):
    """Controllers in ``time.sleep``, and clients that ask for the blocking route script all the time."""
    over = threading.Event()
    answers = []

    def ask():
        request = b"GET /slow-script HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        while not over.is_set():
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(request)
                answers.append(client.recv(4096)[9:12])

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
    with held(server, "/blocking", 500):
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(10)
    if not answers or set(answers) != {b"200"}:
        raise RuntimeError(f"the blocking route script answered {set(answers)}")


@contextlib.contextmanager
def flood(server, route):
    """One connection with 64 messages in flight."""
    process = subprocess.Popen(load_command("echo", server, f"/{route}", (1, 64, 32), 600), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def deaf(server, _route):
    """Clients that take the handshake's answer and nothing more."""
    clients = []
    for _ in range(100):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(
            b"GET /firehose HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        if b" 101 " not in client.recv(64):
            raise RuntimeError("the firehose refused a client")
        clients.append(client)
    try:
        yield
    finally:
        for client in clients:
            client.close()


NEIGHBOURS = {"blocking": blocking, "flood": flood, "deaf": deaf}


def memory(server):
    """MiB of the server's processes."""
    total = 0
    for pid in server.pids:
        with open(f"/proc/{pid}/status") as status:
            total += sum(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return total / 1024


def measure(neighbour, route, seconds, *, beside):
    """The figures of the echo, alone or beside its neighbour."""
    with Server(route) as server, contextlib.ExitStack() as stack:
        before = memory(server)
        if beside:
            stack.enter_context(NEIGHBOURS[neighbour](server, route))
            time.sleep(0.5)
        figures = load("echo", server, server.path, (100, 1, 32), seconds)
        figures["grown_mib"] = memory(server) - before
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", choices=NEIGHBOURS, action="append")
    arguments = parser.parse_args()
    pairs = [(neighbour, route) for neighbour in arguments.only or NEIGHBOURS for route in ROUTES]
    runs = {(*pair, beside): [] for pair in pairs for beside in (False, True)}
    for turn in range(arguments.rounds):
        for neighbour, route, beside in random.sample(list(runs), len(runs)):
            figures = measure(neighbour, route, arguments.seconds, beside=beside)
            runs[neighbour, route, beside].append(figures)
            print(
                f"round {turn + 1}/{arguments.rounds}: {neighbour:<9}{route:<9}{'beside' if beside else 'alone':<7} "
                f"p99 {figures['p99_us']:8,.0f} µs  {figures['msgs_per_s']:8,.0f} msgs/s  "
                f"{figures['grown_mib']:+.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
    rows = []
    print("| neighbour | echo on | p99 alone, µs | p99 beside, µs | ratio | at most | memory grew, MiB | |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for neighbour, route in pairs:
        alone, beside = ([run["p99_us"] for run in runs[neighbour, route, which]] for which in (False, True))
        grown = max(run["grown_mib"] for run in runs[neighbour, route, True])
        ratio = statistics.median(beside) / statistics.median(alone)
        met = ratio <= MOST[neighbour] and (neighbour != "deaf" or grown <= MOST_MEMORY)
        rows.append(
            {"neighbour": neighbour, "route": route, "alone": alone, "beside": beside, "ratio": ratio,
             "grown_mib": grown, "met": met}
        )  # fmt: skip
        print(
            f"| {neighbour} | {route} | {number(statistics.median(alone))} | {number(statistics.median(beside))} | "
            f"{ratio:.2f} | {MOST[neighbour]:g} | {grown:.0f} | {'met' if met else '**not met**'} |"
        )
    result = {
        "command": " ".join(["python", "benchmarks/neighbours.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "settings": vars(arguments),
        "rows": rows,
    }
    (HERE / "results" / "neighbours.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
