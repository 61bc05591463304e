"""What the tests with real packages share: a program in a package's own environment, and what it says."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.clients.environments import interpreter

PATIENCE = 20.0
"""Seconds that a test waits for something that should come at once; the machine may be busy."""

PROGRAMS = Path(__file__).with_name("programs")


class Program:
    """A program of ``programs/``, run by the Python of a package's environment. It and the test talk in lines of JSON,
    see ``programs/talk.py``. A context manager that ends it.

    Args:
        package: Name of the environment.
        file: Name of the program.
        arguments: Of the program.
        environment: Its environment variables; ``None`` takes those of the test.
    """

    def __init__(self, package: str, file: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [interpreter(package), "-u", PROGRAMS / file, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def errors(self) -> str:
        """What it wrote to its standard error so far."""
        return "".join(self._errors)

    def tell(self, command: str, **fields: Any) -> None:
        """Sends a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **fields}) + "\n")
        self._process.stdin.flush()

    def next(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next event, whatever it is.

        Raises:
            AssertionError: None came in time.
        """
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"it said nothing within {timeout:g} s\n{self._story()}") from None

    def wait_for(self, event: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The next event of this name with these fields; others before it are skipped.

        Raises:
            AssertionError: It did not come in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                found = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} {fields} within {timeout:g} s\n{self._story()}") from None
            if found["event"] == event and all(found.get(name) == value for name, value in fields.items()):
                return found

    def all_of(self, event: str) -> list[dict[str, Any]]:
        """Every event of this name so far, also those that have been waited for."""
        return [said for said in list(self.said) if said["event"] == event]

    def finish(self, timeout: float = PATIENCE) -> int:
        """Closes its input, waits for its end and returns its exit code.

        Raises:
            AssertionError: It did not end in time.
        """
        self.close_input()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout:g} s\n{self._story()}") from None
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def close_input(self) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()

    def send_signal(self, signal: int) -> None:
        self._process.send_signal(signal)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(BrokenPipeError):  # a command that it never read
                stream.close()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self.said.append(event)
            self._events.put(event)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)

    def _story(self) -> str:
        said = "\n".join(map(str, self.said[-20:]))
        return f"exit code: {self._process.poll()}\nit said:\n{said}\nits standard error:\n{self.errors[-4000:]}"
