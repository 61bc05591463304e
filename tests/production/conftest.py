"""A krait-ws as the page sets it up, and proxies in front of it with the page's own configuration."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_docs import ROOT, Document
from tests.operations.conftest import certificate, certificates

__all__ = ["certificate", "certificates"]

PATIENCE = 30.0
SITE = {
    "index.html": "<h1>home</h1>",
    "echo.py": (
        "from krait_ws.websockets import *\n"
        "class Echo(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
        "        http = self.request.http\n"
        "        self.push_out_message(f'{self.remote_addr} {http.scheme} {http.host}')\n"
        "        for message in self.messages():\n"
        "            if message == 'close':\n                return self.close(4001, 'as told')\n"
        "            self.push_out_message(message)\n"
        "def websocket(request):\n    return WebsocketsResponse(Echo())\n"
    ),
}


@pytest.fixture(scope="session")
def shown() -> dict[str, str]:
    """The files of docs/production.md by their names there."""
    return Document(ROOT / "docs" / "production.md").files


def program(name: str) -> str:
    """Where an installed program is. Nothing here may go untested."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {name}")
    return found


@pytest.fixture
def free_port() -> Iterator[int]:
    """For a program that is told where to listen. This socket never listens, and keeps the port until the program does:
    any other test of this machine might get it else."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def listens(address: Any) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe, suppress(OSError):
        probe.connect(address)
        return True
    return False


def unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # A blocking client reads and writes in two threads, and Python's ssl before 3.13 takes no care of that: with
    # TLS 1.3 the tickets that nginx and Caddy send after the handshake can cost it its first request.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program whose output goes to a file; it is ended after the test, and has to end when it is told."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KRAIT_")}
        with open(tmp_path / f"output-{len(running)}", "wb") as output:
            running.append(subprocess.Popen(command, stdout=output, stderr=output, env={**clean, **environment}))
        return running[-1]

    yield start
    for process in reversed(running):
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in SITE.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def krait(
    tmp_path: Path, site: Path, shown: dict[str, str], start: Callable[..., subprocess.Popen[bytes]]
) -> Callable[..., str]:
    """Serves the site with the page's settings and gives the path of its socket."""

    def krait(*flags: str) -> str:
        path = str(tmp_path / "krait.sock")
        settings = tmp_path / "krait.toml"
        settings.write_text(shown["deploy/krait.toml"].replace("/run/krait-ws/krait.sock", path))
        process = start([sys.executable, "-m", "krait_ws", "serve", str(site), "--config", str(settings), *flags])
        eventually(lambda: process.poll() is not None or listens(path), "krait-ws does not listen")
        assert process.poll() is None, (tmp_path / "output-0").read_text()
        return path

    return krait
