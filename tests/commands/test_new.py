"""``krait-ws new``: what it writes works: its own test, the linter; tests/browser opens it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("KRAIT_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    done = run("krait_ws", "new", "sites/room", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "sites" / "room"


def test_it_says_what_it_wrote_and_what_to_do(tmp_path: Path) -> None:
    done = run("krait_ws", "new", "room", folder=tmp_path)
    written = [line.removeprefix("wrote ") for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert written == ["room/_room.py", "room/index.html", "room/live.py", "room/_tests/test_room.py"]
    assert sorted(written) == sorted(
        str(file.relative_to(tmp_path)) for file in (tmp_path / "room").rglob("*") if file.is_file()
    )
    assert "krait-ws serve room" in done.stdout


@pytest.mark.parametrize("inside", [False, True], ids=["from outside", "in the folder"])
def test_it_passes_its_own_test(made: Path, inside: bool) -> None:
    """Failed in the folder: a script socket.py stood there before Python's own socket."""
    folder = made if inside else made.parents[1]
    done = run("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(made), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_no_file_has_the_name_of_a_module_of_python(made: Path) -> None:
    assert not {file.stem for file in made.rglob("*.py")} & set(sys.stdlib_module_names)


def test_it_passes_the_linter_of_this_project(made: Path) -> None:
    for arguments in (["check"], ["format", "--check"]):
        done = run("ruff", *arguments, "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".", folder=made)
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_routes(made: Path) -> None:
    done = run("krait_ws", "routes", str(made), folder=made)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["/", "/live"]


@pytest.mark.parametrize("name", ["full", "file"])
def test_nothing_is_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own").touch()
    (tmp_path / "file").touch()
    done = run("krait_ws", "new", name, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"krait-ws: {name} is there already: name a folder that is new or empty\n"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("krait_ws", "new", "file/room", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Not a directory" in done.stderr


def test_what_it_says_can_be_copied(tmp_path: Path) -> None:
    done = run("krait_ws", "new", "my room", folder=tmp_path)
    assert "krait-ws serve 'my room' " in done.stdout
    assert "python -m pytest 'my room' " in done.stdout
