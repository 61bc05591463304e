"""A server in processes of its own, and clients that keep score."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.integration.support import PATIENCE, eventually, write_site

ECHO = (
    "from krait_ws.websockets import *\n"
    "class Echo(WebsocketsCtrlBase):\n    runs_on = 'loop'\n    def __init__(self):\n"
    "        super().__init__(use_in_message_queue=False)\n"
    "    def on_in_message(self, message):\n        self.push_out_message(message)\n"
    "def websocket(request):\n    return WebsocketsResponse(Echo())\n"
)
PID = "import os, krait_ws\ndef http(request):\n    return krait_ws.Response(str(os.getpid()))\n"
STUCK = (
    "import time\nfrom krait_ws.websockets import *\n"
    "class NeverStops(WebsocketsCtrlBase):\n    stop_timeout = 1000.0\n    def on_thread_start(self):\n"
    "        self.never_returns()\n"
    "    def never_returns(self):\n        self.push_out_message('started')\n"
    "        while True:\n            time.sleep(3600)\n"
    "def websocket(request):\n    return WebsocketsResponse(NeverStops())\n"
)
BLOCKS = (
    "import time\nfrom krait_ws.websockets import *\n"
    "class Blocks(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        time.sleep(12)\n        self.push_out_message('slept')\n        self.wait_stop()\n"
    "def websocket(request):\n    return WebsocketsResponse(Blocks())\n"
)
FILES: dict[str, str | bytes] = {
    "index.html": "home", "echo.py": ECHO, "pid.py": PID, "stuck.py": STUCK, "blocks.py": BLOCKS
}  # fmt: skip


class Processes:
    """A running command that serves a site, with its workers; its stderr is in ``log``."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        self._log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            )
        self.pid = self.process.pid
        self.port = 0

    def read_port(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"://127\.0\.0\.1:(\d+)", line)
        assert found, (line, self.log)
        self.port = int(found[1])
        return self.port

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def wait_for_workers(self, count: int) -> list[int]:
        """Until there are so many, and all accept."""
        eventually(lambda: len(self.workers()) == count and all(map(accepts, self.workers())), what="workers")
        return self.workers()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        self.process.communicate(timeout=timeout)
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            workers = self.workers()
            self.process.kill()
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=PATIENCE)


def accepts(pid: int) -> bool:
    """Whether a process watches a TCP socket that listens: it has begun by then, and its loop runs."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    try:
        links = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        watched = [
            number
            for epoll, link in links.items()
            if "eventpoll" in link
            for number in re.findall(r"^tfd:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{epoll}").read_text(), re.MULTILINE)
        ]
    except OSError:  # it has ended, or closed one of them
        return False
    return any(links.get(number) in listening for number in watched)


PATIENT = """\
from krait_ws import gunicorn
from krait_ws.network import server
gunicorn._SPARE = 60.0
server._GREETING = 20.0
from krait_ws.cli import main
main()
"""
"""The command. It waits longer for a client that has connected and is late, and for workers: both may be busy."""

HEARS = """\
import os
from krait_ws.serving import Serving
hear = Serving._hear
def _hear(self, number, frame):
    os.write(2, b"heard\\n")
    hear(self, number, frame)
Serving._hear = _hear
from krait_ws.cli import main
main()
"""
"""The command. It says when it has heard a signal."""


def serve_command(folder: Path, *arguments: str, program: str = "") -> list[str]:
    site = write_site(folder / "site", FILES)
    command = ["-c", program] if program else ["-m", "krait_ws"]
    return [sys.executable, *command, "serve", str(site), "--port", "0", *arguments]


@dataclass
class Score:
    """What clients saw.

    Attributes:
        codes: Close codes of connections; 1006 where there was none.
        failed: Attempts to connect that came to nothing, by kind.
        connected: Connections that were made.
        longest: Seconds that the slowest attempt took.
    """

    codes: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    connected: int = 0
    longest: float = 0.0


async def keep_talking(url: str, score: Score, over: asyncio.Event) -> None:
    """Echoes until the connection ends or ``over``; notes how it ended."""
    # They all connect at once, so that each waits for all.
    async with connect(url, proxy=None, compression=None, open_timeout=4 * PATIENCE) as client:
        score.connected += 1
        try:
            while not over.is_set():
                await client.send("x")
                assert await asyncio.wait_for(client.recv(), PATIENCE) == "x"
                await asyncio.sleep(0.2)
        except ConnectionClosed as closed:
            score.codes[closed.rcvd.code if closed.rcvd else 1006] += 1


async def keep_connecting(url: str, score: Score, over: asyncio.Event) -> None:
    """Connects again and again; each must be accepted, and answered or closed with a code."""
    while not over.is_set():
        began = time.monotonic()
        try:
            async with connect(url, proxy=None, compression=None, open_timeout=PATIENCE) as client:
                score.longest = max(score.longest, time.monotonic() - began)
                score.connected += 1
                await client.send("y")
                await asyncio.wait_for(client.recv(), PATIENCE)
        except ConnectionClosed as closed:
            score.codes[closed.rcvd.code if closed.rcvd else 1006] += 1
        except Exception as error:
            score.failed[f"{type(error).__name__}: {error}"[:80]] += 1
        await asyncio.sleep(0.005)
