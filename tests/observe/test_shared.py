"""What workers share in a folder: real processes, killed without a warning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krait_ws.observe.numbers import to_json
from krait_ws.observe.shared import Shared, new_folder, remove_folder
from tests.helpers import Task
from tests.integration.support import eventually

WORKER = """\
import json, sys
from pathlib import Path
from krait_ws.observe.shared import Shared

shared = Shared(Path(sys.argv[1]))
for line in sys.stdin:
    method, arguments = json.loads(line)
    result = getattr(shared, method)(*arguments)
    print(json.dumps(list(result) if method == "wishes" else None), flush=True)
"""


class Worker:
    """A process with a part in the folder, which does what it is told."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def do(self, method: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def publish(self, messages: int, connections: int) -> None:
        numbers = {"krait_messages": {("/", "in"): messages}, "krait_connections": {("/",): connections}}
        self.do("publish", {"numbers": to_json(numbers), "pid": self.process.pid})  # type: ignore[arg-type]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = new_folder()
    yield folder
    remove_folder(folder)
    # Another process that makes a folder at this moment may have opened a file in it; then it is who removes it.
    eventually(lambda: not folder.exists(), what="it is gone")


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Worker]]:
    workers = []

    def start() -> Worker:
        worker = Worker(folder)
        worker.do("wishes")  # it has its part in the folder
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.close()


def test_the_folder_is_nobody_elses(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()


def test_the_folder_is_that_of_the_workers_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master of root whose workers run as somebody else: they could not enter it, and died again and again."""
    given = []
    monkeypatch.setattr(os, "chown", lambda *arguments: given.append(arguments))
    remove_folder(new_folder(os.geteuid(), os.getegid()))
    assert given == []
    folder = new_folder(65534, 65533)
    remove_folder(folder)
    assert given == [(folder, 65534, 65533)]


def test_the_living_are_read_and_the_dead_leave_their_counters(folder: Path, start: Callable[[], Worker]) -> None:
    own = Shared(folder)
    one, other = start(), start()
    one.publish(messages=10, connections=3)
    other.publish(messages=100, connections=4)
    living, dead = own.read()
    assert sorted(data["pid"] for data in living) == sorted((one.process.pid, other.process.pid))
    assert dead == {}

    one.kill()
    for _ in range(2):  # once found dead, and once when that is known
        living, dead = own.read()
        assert [data["pid"] for data in living] == [other.process.pid]
        assert dead == {"krait_messages": {("/", "in"): 10}}, "counters stay, gauges go"
    other.kill()
    living, dead = own.read()
    assert living == []
    assert dead == {"krait_messages": {("/", "in"): 110}}
    own.close()
    assert {file.name for file in folder.iterdir() if file.suffix != ".life"} == {"dead.json", "reading", "master"}


def test_a_dead_worker_counts_once_though_its_undertaker_dies_halfway(
    folder: Path, start: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Shared(folder)
    worker = start()
    worker.publish(messages=10, connections=1)
    worker.kill()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            own.read()
    assert any(file.stem != own._name for file in folder.glob("*.life")), "its files are still there"
    for _ in range(2):
        assert own.read() == ([], {"krait_messages": {("/", "in"): 10}})
    own.close()


def test_a_worker_that_published_nothing_leaves_nothing(folder: Path, start: Callable[[], Worker]) -> None:
    own = Shared(folder)
    start().kill()
    assert own.read() == ([], {})
    own.close()


def test_a_process_that_a_worker_left_behind_does_not_keep_it_alive(folder: Path, start: Callable[[], Worker]) -> None:
    code = """\
import os, sys
from pathlib import Path
from krait_ws.observe.shared import Shared
shared = Shared(Path(sys.argv[1]))
shared.publish({"numbers": {"krait_messages": [["/", "in", 7]]}})
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(1)
    os.close(writer)
    os.read(sys.stdin.fileno(), 1)  # until the test ends it
    os._exit(0)
os._exit(0)
"""
    own = Shared(folder)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    child.wait(10)
    assert own.read() == ([], {"krait_messages": {("/", "in"): 7}})
    assert child.stdin is not None
    child.stdin.close()
    own.close()


def test_wishes_reach_every_worker_and_end(
    folder: Path, start: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Shared(folder)
    worker = start()
    own.wish("show", "0123abcd")
    own.wish("close", "ffffffff")
    own.wish("close", "../../etc")
    soon = time.time() + 60
    for wish in folder.glob("*-????????"):
        os.utime(wish, (soon, soon))  # a busy machine may take longer than a wish lasts
    assert sorted(worker.do("wishes")) == [["close", "ffffffff"], ["show", "0123abcd"]]
    worker.do("fulfilled", "close", "ffffffff")
    assert list(own.wishes()) == [("show", "0123abcd")]
    os.utime(folder / "show-0123abcd", (1, 1))
    assert list(own.wishes()) == []
    assert not (folder / "show-0123abcd").exists()
    own.close()


def test_a_reader_that_hangs_is_not_waited_for_without_end(
    folder: Path, start: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Shared(folder)
    hanging = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX);"
         "print(flush=True); sys.stdin.read()", str(folder / "reading")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert hanging.stdout is not None
    hanging.stdout.readline()
    monkeypatch.setattr("krait_ws.observe.shared._PATIENCE", 0.05)
    with pytest.raises(TimeoutError, match="another worker"):
        own.read()
    hanging.communicate()
    assert own.read() == ([], {})
    own.close()


def test_what_a_killed_master_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """\
import sys
from krait_ws.observe.shared import new_folder
print(new_folder(), flush=True)
sys.stdin.read()
"""
    masters = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    folders = []
    for master in masters:
        assert master.stdout is not None
        folders.append(Path(master.stdout.readline().strip()))
    killed, living = masters
    killed.kill()
    killed.communicate()
    remove_folder(new_folder())
    # A test that runs beside this one may be the next, and not be done with it yet.
    eventually(lambda: not folders[0].exists(), what="it is removed")
    assert folders[1].exists(), "the other's master lives"
    living.communicate()
    remove_folder(new_folder())
    eventually(lambda: not folders[1].exists(), what="it is removed")


def test_a_link_of_somebody_else_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may put links beside the folders; opening this pipe would wait for ever."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # so that it goes where temporary files are
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(tmp_path / "elsewhere" / "master")
    (tmp_path / "krait-ws-link").symlink_to(tmp_path / "elsewhere")
    folder = Task(new_folder).result()
    remove_folder(folder)
    assert (tmp_path / "elsewhere").exists()
