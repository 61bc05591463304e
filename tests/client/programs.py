"""Programs that wait in ``run_forever``, and the Ctrl-C that ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# Runs a file as ``python FILE`` does, and says on stderr that the main thread waits where Ctrl-C is expected. What else
# a program prints tells nothing of its main thread: it may stand anywhere before, and would end with a traceback.
_RUNNER = """
import runpy, sys
from krait_ws.client import EventStream

class Waits:
    def __init__(self, changed):
        self.changed = changed
    def __enter__(self):
        return self.changed.__enter__()
    def __exit__(self, *error):
        return self.changed.__exit__(*error)
    def wait_for(self, *arguments):
        print("waits", file=sys.stderr, flush=True)
        return self.changed.wait_for(*arguments)
    def __getattr__(self, name):
        return getattr(self.changed, name)

original = EventStream.run_forever

def run_forever(stream):
    stream._changed = Waits(stream._changed)
    original(stream)

EventStream.run_forever = run_forever
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(program: Path | str, *arguments: str) -> list[str]:
    """What runs the program such that ``interrupt`` can tell when it waits; its stderr must be a pipe."""
    return [sys.executable, "-W", "error", "-c", _RUNNER, str(program), *arguments]


def interrupt(process: subprocess.Popen[str]) -> None:
    """Sends SIGINT once the program's main thread waits in ``run_forever``."""
    assert process.stderr is not None
    assert process.stderr.readline() == "waits\n"
    process.send_signal(signal.SIGINT)
