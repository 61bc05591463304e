"""The other files of the page: settings, the systemd unit, the container."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from krait_ws.settings import read_settings
from tests.docs.test_docs import ROOT
from tests.production.conftest import eventually, listens, program


def test_the_settings_can_be_read(shown: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "krait.toml"
    file.write_text(shown["deploy/krait.toml"])
    config = read_settings({"config": str(file)}, {}).config
    assert config.unix == "/run/krait-ws/krait.sock"
    assert config.trusts_unix


def unit(shown: dict[str, str]) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(shown["deploy/krait-ws.service"])
    return parser


def test_systemd_takes_the_unit(shown: dict[str, str], tmp_path: Path) -> None:
    text = shown["deploy/krait-ws.service"].replace("/srv/chat/venv/bin/krait-ws", sys.executable)
    file = tmp_path / "krait-ws.service"
    file.write_text(text.replace("User=krait", "User=root"))
    done = subprocess.run(
        [program("systemd-analyze"), "verify", "--recursive-errors=no", str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "krait-ws.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_the_unit_agrees_with_the_settings(shown: dict[str, str], tmp_path: Path) -> None:
    service = unit(shown)["Service"]
    file = tmp_path / "krait.toml"
    file.write_text(shown["deploy/krait.toml"])
    config = read_settings({"config": str(file)}, {}).config
    assert int(service["TimeoutStopSec"]) > config.drain_timeout
    assert int(service["LimitNOFILE"]) > config.max_connections
    assert Path(config.unix).parent.name == service["RuntimeDirectory"]
    assert service["ExecStart"].endswith("--config /etc/krait-ws/krait.toml")


def instructions(shown: dict[str, str]) -> list[tuple[str, str]]:
    lines = [line for line in shown["deploy/Dockerfile"].splitlines() if line]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_container_file_names_what_there_is(shown: dict[str, str]) -> None:
    known = {"FROM", "RUN", "COPY", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}
    assert {name for name, _ in instructions(shown)} <= known
    for name, rest in instructions(shown):
        if name == "COPY":
            assert (ROOT / rest.split()[0]).exists()
        if name == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest], check=False, timeout=10).returncode == 0
    image = dict(instructions(shown))["FROM"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert version
    assert f"Python :: {version[1]}" in (ROOT / "setup.cfg").read_text()


def test_the_container_serves_and_is_healthy(
    shown: dict[str, str], site: Path, free_port: int, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Its commands and its environment, without the container around them."""
    found = dict(instructions(shown))
    environment = dict(pair.split("=", 1) for pair in shlex.split(found["ENV"]))
    port = free_port
    assert environment["KRAIT_PORT"] == found["EXPOSE"] == "8000"
    health = json.loads(found["HEALTHCHECK"].removeprefix("CMD "))
    assert health[0] == "python"
    check = [sys.executable, *(argument.replace(":8000", f":{port}") for argument in health[1:])]

    def is_healthy() -> bool:
        return subprocess.run(check, capture_output=True, timeout=30, check=False).returncode == 0

    assert not is_healthy()
    name, command, folder = json.loads(found["CMD"])
    assert (name, folder) == ("krait-ws", "/srv/sites")
    process = start([sys.executable, "-m", "krait_ws", command, str(site)], **{**environment, "KRAIT_PORT": str(port)})
    eventually(lambda: process.poll() is not None or listens(("127.0.0.1", port)), "krait-ws does not listen")
    eventually(is_healthy, "it is not healthy")  # it is asked again and again: it listens before it answers
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        assert answer.read() == b"<h1>home</h1>"
    assert found["STOPSIGNAL"] == "SIGTERM"
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_ci_installs_what_is_needed_here(name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / ".ci" / "run").read_text())
