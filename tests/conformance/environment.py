"""The Autobahn testsuite runs under Python 2.7 only: finds one, and keeps an environment for it in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements-py27.txt")
TOOLS = ("virtualenv==20.21.1", "platformdirs<4", "filelock<4", "distlib<0.5")
"""The last virtualenv that makes environments for Python 2.7, and what it needs."""

INSTALL_TIMEOUT = 900
"""Seconds; where there is no wheel, two packages are compiled."""


class InstallError(Exception):
    """The environment could not be made."""


def find_python27() -> Path | None:
    """A Python 2.7 that runs: ``python2.7`` on the PATH, or one of pyenv's."""
    return next(filter(_is_python27, _candidates()), None)


def wstest(python27: Path, cache: Path) -> Path:
    """The suite's command; what is missing is installed first.

    Raises:
        InstallError: It could not be installed.
    """
    folder = cache / "py27"
    command = folder / "bin" / "wstest"
    stamp = folder / "installed"
    wanted = REQUIREMENTS.read_text()
    if command.exists() and stamp.exists() and stamp.read_text() == wanted:
        return command
    print("installing the Autobahn testsuite for Python 2.7 …", flush=True)
    for stale in (folder, cache / "tools"):
        shutil.rmtree(stale, ignore_errors=True)
    tools = cache / "tools" / "bin"
    _run(sys.executable, "-m", "venv", cache / "tools")
    _run(tools / "python", "-m", "pip", "install", "--quiet", *TOOLS)
    _run(
        tools / "virtualenv", "--quiet", "--no-download", "--no-periodic-update", "--app-data", cache / "seeds",
        "--python", python27, folder,
    )  # fmt: skip
    _run(folder / "bin" / "pip", "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS)
    stamp.write_text(wanted)
    return command


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("python2.7")
    if on_path:
        yield Path(on_path)
    for root in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"):
        if root:
            yield from sorted(Path(root).glob("versions/2.7*/bin/python2.7"), reverse=True)


def _is_python27(python: Path) -> bool:
    """Pyenv's ``python2.7`` on the PATH is a stub that runs only where that version is switched on."""
    program = "import sys; sys.exit(sys.version_info[:2] != (2, 7))"
    try:
        return subprocess.run([python, "-c", program], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{Path(command[0]).name} did not end well: {error}") from None
    if done.returncode:
        raise InstallError(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-4000:]}")
