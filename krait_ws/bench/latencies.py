"""Latencies, counted: how often each was met, in bounded memory however long a load runs."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter

EXACT = 100_000
"""Microseconds; below it each has a count of its own, above it latencies are kept by the millisecond."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_STEPS = (1, 1.5, 2, 3, 5, 7)


class Latencies:
    """A histogram of microseconds.

    Attributes:
        exact: How often each latency below ``EXACT`` was met. The loop counts here without a call.
    """

    def __init__(self) -> None:
        self.exact = [0] * EXACT
        self._slow: Counter[int] = Counter()  # by the millisecond

    def clear(self) -> None:
        self.exact[:] = [0] * EXACT
        self._slow.clear()

    def record(self, micros: int, count: int) -> None:
        """Counts ``count`` messages that took ``micros``."""
        if micros < EXACT:
            self.exact[micros] += count
        else:
            self._slow[micros // 1000] += count

    def counts(self) -> list[tuple[int, int]]:
        """Microseconds and how often, rising."""
        exact = [(micros, count) for micros, count in enumerate(self.exact) if count]
        return exact + [(millis * 1000, count) for millis, count in sorted(self._slow.items())]

    def quantiles(self) -> dict[str, int]:
        """The microseconds of ``QUANTILES`` and the mean; empty when nothing was counted."""
        counts = self.counts()
        if not counts:
            return {}
        sums = list(itertools.accumulate(count for _, count in counts))
        total = sums[-1]
        found = {
            name: counts[min(bisect.bisect_left(sums, part * total), len(counts) - 1)][0]
            for name, part in QUANTILES.items()
        }
        return {"mean": round(sum(micros * count for micros, count in counts) / total), **found}

    def histogram(self) -> list[tuple[int, int]]:
        """Upper bounds in microseconds, in steps that grow by about a half, and how many lie below each and above the
        one before. Empty bounds at both ends are left out."""
        counts = self.counts()
        if not counts:
            return []
        bounds = [int(step * 10**power) for power in range(9) for step in _STEPS if step * 10**power % 1 == 0]
        rows = dict.fromkeys(bounds, 0)
        for micros, count in counts:
            rows[bounds[min(bisect.bisect_right(bounds, micros), len(bounds) - 1)]] += count
        full = [place for place, bound in enumerate(bounds) if rows[bound]]
        return [(bound, rows[bound]) for bound in bounds[full[0] : full[-1] + 1]]
