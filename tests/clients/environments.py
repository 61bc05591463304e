"""A virtual environment for each real client package, so that no two of them have to agree on a dependency.

``python tests/clients/environments.py`` makes all of them, under ``.venv-clients/``; one that is there is kept as long
as its package is pinned to the same version.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".venv-clients"
INSTALL_TIMEOUT = 600
"""Seconds."""


@dataclass(frozen=True)
class Package:
    """A package and what is installed beside it.

    Attributes:
        requirement: The package with its version.
        beside: Installed instead of the package's own dependencies, for a package that would bring much that nobody
            uses here; empty takes its own dependencies.
    """

    requirement: str
    beside: tuple[str, ...] = ()

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of pip, one list for each run."""
        if not self.beside:
            return [[self.requirement]]
        return [["--no-deps", self.requirement], [*self.beside]]


PACKAGES = {
    "sidekick": Package("sidekick-py==0.0.6"),
    "pycontrol4": Package("pyControl4==2.0.2"),
    "pyisyox": Package("pyisyox==6.0.1"),
    # Its own dependencies bring a desktop, a data base and a sound card; this is what its transcription imports.
    "audex": Package(
        "audex==1.1.3", ("websockets>=15.0.1,<16", "pydantic>=2.12.4,<3", "tenacity>=9.1.2,<10", "loguru>=0.7.3,<0.8")
    ),
}
"""Name of the environment → what is in it."""


class InstallError(Exception):
    """An environment could not be made."""


def interpreter(name: str) -> Path:
    """The Python of a package's environment; what is missing is installed first.

    Raises:
        InstallError: It could not be installed.
    """
    package = PACKAGES[name]
    folder = CACHE / name
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = f"{sys.version} {package}"
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        print(f"installing {package.requirement} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        for arguments in package.commands:
            _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
        stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{Path(command[0]).name} did not end well: {error}") from None
    if done.returncode:
        raise InstallError(
            f"{' '.join(command)} failed; these tests install real packages, which needs a package index that can be "
            f"reached:\n{(done.stdout + done.stderr)[-4000:]}"
        )


def main() -> None:
    try:
        for name in PACKAGES:
            interpreter(name)
    except InstallError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
