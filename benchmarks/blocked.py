#!/usr/bin/env python3
"""Does blocking user code slow other connections down?

    python benchmarks/blocked.py [--rounds 5] [--seconds 3] [--blocked 500] [--clients 8]

500 connections whose controllers each block in ``time.sleep``, and clients that ask again and again for a route script
that blocks a second: the p99 of an echo on other connections, with and without them, for each ``runs_on`` of the echo.
The two runs of a round come in random order on a server started afresh. The ratio of the medians is to be at most 3.
"""

import argparse
import contextlib
import json
import random
import socket
import statistics
import sys
import threading
import time

from run import HERE, Server, commit, held, load, machine, number

MOST = 3.0
ROUTES = ("thread", "greenlet", "loop")


@contextlib.contextmanager
def slow_requests(server, count):
    """Clients that ask for the blocking route script all the time; gives the list of their answers' status codes."""
    over = threading.Event()
    answers = []

    def ask():
        request = b"GET /slow-script HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        while not over.is_set():
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(request)
                answers.append(client.recv(4096)[9:12])

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join(10)


def measure(route, arguments, blocked):
    """The figures of the echo, with or without the blocking code."""
    with Server(route) as server, contextlib.ExitStack() as stack:
        answers = None
        if blocked:
            stack.enter_context(held(server, "/blocking", arguments.blocked))
            answers = stack.enter_context(slow_requests(server, arguments.clients))
            time.sleep(0.5)
        figures = load("echo", server, server.path, (arguments.connections, 1, 32), arguments.seconds)
        if answers is not None:
            if not answers or set(answers) != {b"200"}:
                raise RuntimeError(f"the blocking route script answered {set(answers)}")
            figures["slow_answers"] = len(answers)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", type=int, default=50, help="that echo")
    parser.add_argument("--blocked", type=int, default=500, help="connections whose controllers block")
    parser.add_argument("--clients", type=int, default=8, help="that ask for the blocking route script")
    arguments = parser.parse_args()
    runs = {(route, blocked): [] for route in ROUTES for blocked in (False, True)}
    for turn in range(arguments.rounds):
        for route, blocked in random.sample(list(runs), len(runs)):
            figures = measure(route, arguments, blocked)
            runs[route, blocked].append(figures)
            what = "with" if blocked else "without"
            print(
                f"round {turn + 1}/{arguments.rounds}: {route:<9}{what:<8} p99 {figures['p99_us']:8,.0f} µs  "
                f"{figures['msgs_per_s']:8,.0f} msgs/s",
                file=sys.stderr,
                flush=True,
            )
    rows = []
    print("| echo on | p99 without, µs | p99 with, µs | ratio of medians | ratio of each round | at most 3 |")
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for route in ROUTES:
        without, beside = ([run["p99_us"] for run in runs[route, blocked]] for blocked in (False, True))
        ratio = statistics.median(beside) / statistics.median(without)
        each = [b / a for a, b in zip(without, beside, strict=True)]
        met = ratio <= MOST
        rows.append({"route": route, "without": without, "with": beside, "ratio": ratio, "met": met})
        print(
            f"| {route} | {number(statistics.median(without))} | {number(statistics.median(beside))} | {ratio:.2f} | "
            f"{', '.join(f'{r:.2f}' for r in each)} | {'met' if met else '**not met**'} |"
        )
    result = {
        "command": " ".join(["python", "benchmarks/blocked.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "settings": vars(arguments),
        "rows": rows,
    }
    (HERE / "results" / "blocked.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
