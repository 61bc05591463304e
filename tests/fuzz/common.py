"""What the fuzzers share: the failure, the clock, the report."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

CASE_SECONDS = 5
"""A case that takes longer hangs."""

OFFERS = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
)
"""Headers of clients that ask for compression."""


class Failure(Exception):
    """Something is wrong with krait-ws."""


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """A case that takes longer than ``CASE_SECONDS`` is a failure."""

    def ring(*_: object) -> None:
        raise Failure(f"takes longer than {CASE_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def minimal(fails: Callable[[bytes], bool], data: bytes, seconds: float = 20.0) -> bytes:
    """A short input that fails still."""
    deadline = time.monotonic() + seconds
    size = max(1, len(data) // 2)
    while time.monotonic() < deadline:
        for start in range(0, len(data), size):
            shorter = data[:start] + data[start + size :]
            if time.monotonic() < deadline and fails(shorter):
                data = shorter
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return data


def report(what: str, seed: int, reproduction: str) -> None:
    print(f"FAILED: {what}\nseed: {seed}\nminimal reproduction:\n{reproduction}", flush=True)
