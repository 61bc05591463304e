"""What TLS costs the server: CPU per echoed message with and without it, side by side in rounds.

``python benchmarks/tls.py [--rounds 3] [--seconds 3]`` serves ``benchmarks/site`` twice, once with a certificate that
it makes with the ``openssl`` command, and drives both from one asyncio client: CONNECTIONS connections, one message in
flight on each. The figure is the CPU time of the server's process divided by the messages.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SITE = Path(__file__).parent / "site"
CONNECTIONS = 50
CASES = [("loop", 32), ("greenlet", 32), ("thread", 32), ("loop", 16 * 1024), ("loop", 1000 * 1024)]


class Echoing(asyncio.Protocol):
    """A client that sends its frame again whenever the answer is complete."""

    def __init__(self, path: str, size: int, opened: asyncio.Future[None], counts: list[int]) -> None:
        length = bytes([0x80 | size]) if size < 126 else bytes([0xFE if size < 65536 else 0xFF])
        if size >= 126:
            length += size.to_bytes(2 if size < 65536 else 8, "big")
        self._frame = b"\x82" + length + bytes(4) + bytes(size)  # a mask of zeros leaves the payload as it is
        self._answer_size = len(self._frame) - 4
        self._path = path
        self._received = 0
        self._head = b""
        self._opened = opened
        self._counts = counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(bytes(16)).decode()
        transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self._opened.done():
            self._head += data
            if b"\r\n\r\n" in self._head:
                assert b" 101 " in self._head, self._head
                self._opened.set_result(None)
                self._transport.write(self._frame)
            return
        self._received += len(data)
        if self._received >= self._answer_size:
            self._received -= self._answer_size
            self._counts[0] += 1
            self._transport.write(self._frame)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, context: ssl.SSLContext | None, path: str, size: int, seconds: float) -> float:
    """Microseconds of the server's CPU per message."""
    loop = asyncio.get_running_loop()
    counts = [0]
    transports = []
    for _ in range(CONNECTIONS if size < 100_000 else 4):
        opened = loop.create_future()
        transport, _ = await loop.create_connection(
            lambda opened=opened: Echoing(path, size, opened, counts),
            "127.0.0.1",
            port,
            ssl=context,
            server_hostname="localhost" if context else None,
        )
        await opened
        transports.append(transport)
    await asyncio.sleep(0.3)
    count, cpu = counts[0], cpu_seconds(pid)
    await asyncio.sleep(seconds)
    cost = (cpu_seconds(pid) - cpu) / (counts[0] - count) * 1e6
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0.2)
    return cost


def serve(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "krait_ws", "serve", str(SITE), "--port", "0", "--max-message-size", "2m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    found = re.search(r"://127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found
    return process, int(found[1])


def make_certificate(folder: str) -> tuple[str, str]:
    cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    servers = []
    with tempfile.TemporaryDirectory() as folder:
        cert, key = make_certificate(folder)
        context = ssl.create_default_context(cafile=cert)
        try:
            servers = [serve(), serve("--tls-cert", cert, "--tls-key", key)]
            for path, size in CASES:
                costs: tuple[list[float], list[float]] = ([], [])
                for _ in range(options.rounds):
                    for kind, (process, port) in enumerate(servers):
                        run = measure(port, process.pid, context if kind else None, f"/{path}", size, options.seconds)
                        costs[kind].append(asyncio.run(run))
                plain, tls = map(statistics.median, costs)
                print(f"{path:9} {size:8} bytes  plain {plain:7.1f} µs  TLS {tls:7.1f} µs  ratio {tls / plain:.2f}")
        finally:
            for process, _ in servers:
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
