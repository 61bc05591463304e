"""A process that serves is tuned, and one whose system knows nothing of it is left alone."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from krait_ws import tuning


class OtherLibrary:
    """A C library without mallopt, on a system that refuses what it does not know."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def prctl(self, *arguments: int) -> int:
        self.calls.append(arguments)
        return -1

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def test_another_library_and_an_older_system_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OtherLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    tuning.tune_process()
    assert len(library.calls) == 1


def test_another_system_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked"))
    monkeypatch.setattr(sys, "platform", "darwin")
    tuning.tune_process()


@pytest.mark.parametrize("threads", [0, 50])
def test_a_tuned_process_runs(threads: int) -> None:
    script = (
        "import threading, sys\nfrom krait_ws.tuning import tune_process\n"
        "over = threading.Event()\n"
        "threads = [threading.Thread(target=over.wait) for _ in range(int(sys.argv[1]))]\n"
        "[thread.start() for thread in threads]\ntune_process()\nover.set()\n[thread.join() for thread in threads]\n"
        "print(len(bytes(32 << 20)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(threads)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{32 << 20}\n", "")


def test_what_is_loaded_is_kept() -> None:
    program = "import gc, krait_ws.tuning as t; t.keep_what_is_loaded(); print(gc.get_freeze_count() > 1000)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"
