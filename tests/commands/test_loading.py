"""A command imports what it needs, and nothing of another command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from krait_ws.cli import main

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = main.list_commands(click.Context(main))


def imported_by(*arguments: str) -> set[str]:
    """Every module that a call of ``krait-ws`` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "krait_ws", *arguments],
        capture_output=True, text=True, timeout=30, check=True, cwd=ROOT,
    )  # fmt: skip
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("arguments", [("--version",), ("routes", "sites")], ids=" ".join)
def test_what_serves_nothing_imports_no_server(arguments: tuple[str, ...]) -> None:
    imported = imported_by(*arguments)
    assert "krait_ws.cli" in imported
    assert not {name.split(".")[0] for name in imported} & {"gevent", "greenlet", "werkzeug", "websockets"}
    others = {f"krait_ws.commands.{name}" for name in COMMANDS} - {f"krait_ws.commands.{arguments[0]}"}
    assert not imported & others


@pytest.mark.parametrize("name", COMMANDS)
def test_every_module_holds_the_command_of_its_name(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.get_short_help_str()


def test_the_package_gives_its_names_at_their_first_use() -> None:
    code = (
        "import sys, krait_ws\n"
        "assert 'werkzeug' not in sys.modules and 'gevent' not in sys.modules\n"
        "from krait_ws import *\n"
        "assert set(krait_ws.__all__) <= set(dir()), dir()\n"
        "assert krait_ws.Response is Response and 'Response' in dir(krait_ws)\n"
        "assert not hasattr(krait_ws, 'Nothing')\n"
        "from krait_ws import websockets, context, Request\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
