"""How a program of this folder talks to the test that started it: a JSON object on each line.

It runs in an environment that has the real package and nothing of krait-ws.
"""

import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()


def say(event: str, **fields: Any) -> None:
    """Tells the test what happened. Thread: any."""
    line = json.dumps({"event": event, **fields}, default=str)
    with _lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def commands() -> Iterator[dict[str, Any]]:
    """What the test asks for, until it closes the program's input."""
    for line in sys.stdin:
        yield json.loads(line)
