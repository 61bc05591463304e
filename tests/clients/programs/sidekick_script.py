"""A script that draws with sidekick-py, does what the test tells it, and says what it sees.

Arguments: the relay's URL.
"""

import os
import sys
import threading
import time
from typing import Any

import sidekick
from sidekick import connection
from talk import commands, say

drawn: dict[str, Any] = {}


def draw(columns: int, rows: int) -> None:
    drawn["grid"] = grid = sidekick.Grid(columns, rows, instance_id="grid")
    drawn["console"] = console = sidekick.Console(instance_id="console", show_input=True)
    grid.on_click(clicked)
    grid.on_error(lambda text: say("panel_error", text=text))
    console.on_input_text(lambda text: say("input", text=text))


def clicked(x: int, y: int) -> None:
    say("click", x=x, y=y)
    if (x, y) == (0, 0):
        raise ValueError("a callback that raises")
    if (x, y) == (0, 1):
        drawn["console"].print("from the callback")
    if (x, y) == (0, 2):
        sidekick.shutdown()


def paint(count: int) -> None:
    grid = drawn["grid"]
    for number in range(count):
        grid.set_color(number % grid.num_columns, number // grid.num_columns % grid.num_rows, f"#{number:06x}")


def write(text: str) -> None:
    drawn["console"].print(text)


def status() -> None:
    say("status", status=connection._connection_status.name)


def run_forever() -> None:
    """Begins it; returns when it waits for its end, for it takes no notice of one that came before."""
    waits = threading.Event()
    over = connection._shutdown_event
    wait = over.wait

    def note_and_wait(timeout: float | None = None) -> bool:
        waits.set()
        return wait(timeout)

    def run() -> None:
        sidekick.run_forever()
        say("run_forever_returned")

    over.wait = note_and_wait  # type: ignore[method-assign]
    threading.Thread(target=run, daemon=True).start()
    waits.wait(20)


def die() -> None:
    os.kill(os.getpid(), 9)


COMMANDS = {
    "draw": draw,
    "paint": paint,
    "write": write,
    "status": status,
    "run_forever": run_forever,
    "shutdown": sidekick.shutdown,
    "die": die,
}


def main() -> None:
    threading.excepthook = lambda raised: say("thread_raised", kind=type(raised.exc_value).__name__)
    sidekick.set_url(sys.argv[1])
    say("ready", version=sidekick.__version__)
    for command in commands():
        name = command.pop("command")
        started = time.monotonic()
        try:
            COMMANDS[name](**command)
        except Exception as error:
            say("error", command=name, kind=type(error).__name__, text=str(error), seconds=time.monotonic() - started)
        else:
            say("done", command=name, seconds=time.monotonic() - started)


main()
