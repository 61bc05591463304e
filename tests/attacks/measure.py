"""Measures what attacks cost: memory of the server before and after, and the round trips of another client meanwhile.

    python tests/attacks/measure.py [--only slow,pings] [--scale 0.1]

The server, the polite client and the attackers are processes of their own. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ATTACKS: dict[str, tuple[str, Callable[[int, float], None]]] = {}
SECONDS = 4.0
"""How long a flood lasts."""


def attack(name: str, what: str) -> Callable[[Callable[[int, float], None]], Callable[[int, float], None]]:
    def add(function: Callable[[int, float], None]) -> Callable[[int, float], None]:
        ATTACKS[name] = (what, function)
        return function

    return add


# ---- the attacks; each gets the server's port and a scale of its counts


def _flood(port: int, data: bytes, path: str = "/sink", begin: bytes = b"", headers: tuple[str, ...] = ()) -> None:
    """Ten connections that send as fast as they can, for ``SECONDS``."""
    from tests.integration.support import RawClient

    end = time.monotonic() + SECONDS
    clients = [RawClient(port, path, headers=headers) for _ in range(10)]
    for client in clients:
        client.send(begin)
        client.sock.setblocking(False)
    rests = {client: memoryview(data) for client in clients}
    while time.monotonic() < end and rests:
        idle = True
        for client, rest in list(rests.items()):
            try:
                sent = client.sock.send(rest)
                rests[client] = rest[sent:] or memoryview(data)
                idle = False
            except BlockingIOError:
                pass
            except OSError:
                del rests[client]
        if idle:
            time.sleep(0.001)
    for client in clients:
        client.close()


@attack("slow", "1,000 handshakes, a byte a second each")
def slow(port: int, scale: float) -> None:
    from tests.attacks.support import half_written_request

    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(int(1000 * scale))]
    for letter in half_written_request()[: int(2 * SECONDS)]:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(bytes((letter,)))
        time.sleep(1)
    for sock in socks:
        sock.close()


@attack("pings", "10 connections flood pings")
def pings(port: int, scale: float) -> None:
    from tests.attacks.support import many

    _flood(port, many(0x9, b"x" * 20))


@attack("fragments", "10 connections flood empty fragments")
def fragments(port: int, scale: float) -> None:
    from tests.attacks.support import many

    _flood(port, many(0x0, fin=False), begin=many(0x1, b"a", size=7, fin=False))


@attack("tiny", "10 connections flood empty messages to an event handler")
def tiny(port: int, scale: float) -> None:
    from tests.attacks.support import many

    _flood(port, many(0x2))


@attack("large_tiny", "10 connections flood tiny messages behind large ones")
def large_tiny(port: int, scale: float) -> None:
    from tests.attacks.support import many, plain_frame

    _flood(port, plain_frame(2, bytes(20_000)) + many(0x2, size=250_000))


@attack("compressed", "10 connections flood tiny compressed messages")
def compressed_tiny(port: int, scale: float) -> None:
    from tests.attacks.support import DEFLATE, many

    _flood(port, many(0x2, b"\0", reserved=4), headers=DEFLATE)


@attack("bomb", "10 bombs of 1 GB from 1 MB each")
def bomb(port: int, scale: float) -> None:
    from tests.attacks.support import DEFLATE, plain_frame, send_for, zeros
    from tests.integration.support import RawClient

    made = plain_frame(2, zeros(1024), reserved=4)
    for _ in range(10):
        with RawClient(port, "/sink", headers=DEFLATE) as client:
            send_for(client, made, 1)


@attack("bombs", "10 connections flood bombs just below the limit")
def bombs(port: int, scale: float) -> None:
    from tests.attacks.support import DEFLATE, compressed, plain_frame

    one = plain_frame(1, compressed([b"a" * ((1 << 20) - 4), "\U0001f600".encode()]), reserved=4)
    header = (DEFLATE[0] + "; client_no_context_takeover",)
    _flood(port, one * 60, path="/idle", headers=header)


@attack("final", "a deflate stream that ends, then 1 MB messages on 10 connections")
def final(port: int, scale: float) -> None:
    from tests.attacks.support import DEFLATE, compressed, plain_frame

    begin = plain_frame(2, compressed([b"x"], last_block=True), reserved=4)
    _flood(port, plain_frame(2, b"\xff" * (1 << 20), reserved=4), begin=begin, headers=DEFLATE)


@attack("never_reads", "100 clients that never read while the handler pushes")
def never_reads(port: int, scale: float) -> None:
    from tests.integration.support import RawClient

    clients = [RawClient(port, "/pushes", receive_buffer=4096) for _ in range(int(100 * scale))]
    time.sleep(SECONDS)
    for client in clients:
        client.close()


@attack("half_open", "500 half-open peers")
def half_open(port: int, scale: float) -> None:
    from tests.integration.support import RawClient

    clients = [RawClient(port, "/idle") for _ in range(int(500 * scale))]
    time.sleep(SECONDS)
    for client in clients:
        client.close()


@attack("after_close", "200 clients that flood after their close frame")
def after_close(port: int, scale: float) -> None:
    from tests.attacks.support import many, send_for
    from tests.integration.support import RawClient, close_frame

    flood_data = many(0x9)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        clients = [RawClient(port, "/idle") for _ in range(20)]
        for client in clients:
            client.sock.settimeout(0.2)
            client.send(close_frame(1000))
            send_for(client, flood_data, 4)
        for client in clients:
            client.close()


@attack("announced", "1,000 heads that announce 2^62 bytes")
def announced(port: int, scale: float) -> None:
    from tests.integration.support import RawClient

    for _ in range(int(1000 * scale)):
        with RawClient(port, "/sink") as client:
            client.send(bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + bytes(4))


@attack("endless", "10 endless messages to a controller that reads pieces")
def endless(port: int, scale: float) -> None:
    begin = bytes((0x82, 0xFF)) + (1 << 62).to_bytes(8, "big") + bytes(4)
    _flood(port, bytes(1 << 16), path="/pieces", begin=begin)


@attack("resets", "connects and resets, 100,000 at scale 1, a third of them upgraded")
def resets(port: int, scale: float) -> None:
    from tests.integration.support import upgrade_request

    request = upgrade_request("/loop")
    reset = struct.pack("ii", 1, 0)
    for number in range(int(100_000 * scale)):
        with socket.socket() as sock:
            sock.connect(("127.0.0.1", port))
            if number % 3 == 0:
                sock.sendall(request)
                sock.recv(4096)
            elif number % 3 == 1:
                sock.sendall(request[:100])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)


@attack("not_found", "10 connections flood requests that are not found")
def not_found(port: int, scale: float) -> None:
    from tests.integration.support import http_exchange

    block = (
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 300 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        http_exchange(port, block)


@attack("chunks", "a chunked body with endless trailers")
def chunks(port: int, scale: float) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            while time.monotonic() < end:
                sock.sendall((b"a: " + b"b" * 4000 + b"\r\n") * 16)


@attack("lists", "upgrade requests with lists of 30 KB")
def lists(port: int, scale: float) -> None:
    from tests.integration.support import upgrade_request

    request = upgrade_request("/nothing", (f"Sec-WebSocket-Extensions: {'a,' * 15_000}a",))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(request)
            sock.recv(1000)


@attack("spin", "a close frame at the end of a full turn, 20 a second")
def spin(port: int, scale: float) -> None:
    from tests.attacks.support import many
    from tests.integration.support import RawClient, close_frame

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with RawClient(port, "/sink") as client:
            client.send(many(0x9, size=6 * 511) + close_frame(1000))
            time.sleep(0.05)


# ---- the processes


def serve(folder: str) -> None:
    from tests.attacks.support import Attacked

    attacked = Attacked(
        Path(folder), compress=True, ping_interval=20.0, ping_timeout=20.0, handshake_timeout=10.0, close_timeout=10.0
    )
    print(attacked.port, flush=True)
    sys.stdin.read()
    os._exit(0)


def probe(port: int) -> None:
    """Echoes one message at a time until its stdin ends; prints count, median, p99 and the longest in milliseconds."""
    import select

    from tests.integration.support import RawClient

    times = []
    with RawClient(port, "/loop", timeout=60) as client:
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            started = time.perf_counter()
            client.send_frame(2, b"x" * 32)
            client.receive()
            times.append((time.perf_counter() - started) * 1000)
            time.sleep(0.002)
    times.sort()
    print(len(times), times[len(times) // 2], times[int(len(times) * 0.99)], times[-1], flush=True)


def resident(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def start_probe(port: str) -> subprocess.Popen[str]:
    process = run("--probe", port)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _ask(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    line = process.stdout.readline()
    process.wait(30)
    return [float(number) for number in line.split()]


def measure(name: str, scale: float) -> str:
    what, _ = ATTACKS[name]
    with tempfile.TemporaryDirectory() as folder:
        server = run("--serve", folder)
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            quiet = start_probe(port)
            time.sleep(1)
            calm = _ask(quiet)
            before = resident(server.pid)
            during = start_probe(port)
            attacker = run("--attack", name, port, "--scale", str(scale))
            peak = before
            deadline = time.monotonic() + 300
            while attacker.poll() is None and time.monotonic() < deadline:
                peak = max(peak, resident(server.pid))
                time.sleep(0.05)
            attacker.kill()
            numbers = _ask(during)
            time.sleep(1)
            after = resident(server.pid)
        finally:
            server.kill()
            server.wait()
    if not numbers:
        numbers = [0, float("nan"), float("nan"), float("nan")]
    return (
        f"| {what} | {before:.0f} | {peak:.0f} | {after:.0f} | {calm[2]:.1f} | {numbers[1]:.1f} | {numbers[2]:.1f} "
        f"| {numbers[3]:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts of connections")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--probe", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    elif options.probe:
        probe(options.probe)
    elif options.attack:
        ATTACKS[options.attack[0]][1](int(options.attack[1]), options.scale)
    else:
        print("| attack | MB before | peak | after | p99 before, ms | p50 during | p99 during | longest |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in options.only.split(","):
            print(measure(name, options.scale), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
