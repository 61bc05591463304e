"""What several workers tell each other, in a folder that their master made for them.

Each worker writes its sample to a file of its own, once a second, and reads those of the others when it is asked.
What a worker wants of the owner of a connection (tell about it, close it) is a file too, which every worker looks
for. A worker holds a lock as long as it lives: when it is free, the worker is dead, and what it counted is added to
the counters of the dead and its file removed. All reading is done under one lock, so that nobody sees it halfway.

Thread: one at a time; it reads and writes files, so not the network loop.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from krait_ws.observe.numbers import Numbers, cumulative, from_json, merge, to_json

_SHOW_FOR = 5.0  # seconds that a wish to be shown a connection lasts
_PATIENCE = 2.0  # seconds
_WISH = re.compile(r"(show|close)-([0-9a-f]{8})")
_DEAD = "dead.json"
_PREFIX = "krait-ws-"
_MASTER = "master"  # locked as long as the master lives
_masters: dict[Path, IO[bytes]] = {}  # the locks of this process


def new_folder(user: int | None = None, group: int | None = None) -> Path:
    """A folder for the workers of one master, which nobody else can read; those of killed masters are removed. Called
    by: the master, before it forks. It removes the folder with ``remove_folder``.

    Args:
        user, group: As whom the workers run, where that is not the master itself.
    """
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or gone
            if _is_own(folder) and (folder / _MASTER).exists() and _is_free(folder / _MASTER):
                shutil.rmtree(folder)  # its master was killed
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    # Locked before it has its name, so that nobody finds it free.
    lock = _locked(folder / "new")
    assert lock is not None
    _masters[folder] = lock
    (folder / "new").rename(folder / _MASTER)
    user, group = os.geteuid() if user is None else user, os.getegid() if group is None else group
    if (user, group) != (os.geteuid(), os.getegid()):
        os.chown(folder, user, group)
    return folder


def remove_folder(folder: Path) -> None:
    """Called by: the master, when its workers have ended."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _masters.pop(folder, None)) is not None:
        lock.close()


class Shared:
    """One worker's part in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        with self._reading():  # else another worker could find it free and take this one for dead
            self._life = _locked(folder / f"{self._name}.life")

    def close(self) -> None:
        """The worker ends; what it published last counts among the dead from now on."""
        if self._life is not None:
            self._life.close()
            self._life = None

    def publish(self, data: dict[str, Any]) -> None:
        """What this worker has to tell; ``numbers`` are its metrics as JSON."""
        _write(self._folder / f"{self._name}.json", data)

    def read(self) -> tuple[list[dict[str, Any]], Numbers]:
        """What the living workers published last, and the counters of the dead.

        Raises:
            TimeoutError: Another worker has been reading for too long.
        """
        with self._reading():
            dead = _read(self._folder / _DEAD) or {"names": [], "numbers": {}}
            living: list[dict[str, Any]] = []
            ended: list[str] = []
            for file in sorted(self._folder.glob("*.life")):
                data = _read(file.with_suffix(".json"))
                if file.stem == self._name or not _is_free(file):
                    living += [data] if data else []
                else:
                    ended.append(file.stem)
                    if data and file.stem not in dead["names"]:
                        dead["numbers"] = to_json(
                            merge((from_json(dead["numbers"]), cumulative(from_json(data["numbers"]))))
                        )
            if ended:
                # The names say whose counters are in, should this worker die before it has removed their files.
                _write(self._folder / _DEAD, {"names": ended, "numbers": dead["numbers"]})
                for name in ended:
                    for file in self._folder.glob(f"{name}.*"):
                        file.unlink()
            return living, from_json(dead["numbers"])

    def wish(self, what: str, connection: str) -> None:
        """Asks the owner of a connection to ``"show"`` or ``"close"`` it."""
        if _WISH.fullmatch(f"{what}-{connection}"):
            (self._folder / f"{what}-{connection}").touch()

    def wishes(self) -> Iterator[tuple[str, str]]:
        """What was asked for lately, and by whom it may be: ``("show", "0a1b2c3d")``."""
        for name in os.listdir(self._folder):
            found = _WISH.fullmatch(name)
            if found is None:
                continue
            with suppress(OSError):  # another worker was faster
                if time.time() - (self._folder / name).stat().st_mtime > _SHOW_FOR:
                    (self._folder / name).unlink()
                else:
                    yield found[1], found[2]

    def fulfilled(self, what: str, connection: str) -> None:
        """A wish has been heard by the connection's owner."""
        (self._folder / f"{what}-{connection}").unlink(missing_ok=True)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE
        while (lock := _locked(self._folder / "reading")) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("another worker has been reading the workers' numbers for too long")
            time.sleep(0.005)
        with lock:
            yield


def _is_own(folder: Path) -> bool:
    """Whether it is a folder of this user. Others may put links there, to what is this user's."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _locked(file: Path) -> IO[bytes] | None:
    """The file, opened and locked until it is closed or this process ends; ``None`` when another process has it. The
    lock is no child's: a process that a worker started and left behind does not keep it."""
    opened = file.open("ab")
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        opened.close()
        return None
    return opened


def _is_free(file: Path) -> bool:
    lock = _locked(file)
    if lock is not None:
        lock.close()
    return lock is not None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    return data


def _write(file: Path, data: dict[str, Any]) -> None:
    """Whoever reads it sees the old or the new whole."""
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(data))
    new.replace(file)
