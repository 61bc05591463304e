"""What a load found, for a person and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from krait_ws.bench.latencies import Latencies
from krait_ws.bench.plan import Plan

_BAR = 40  # columns


@dataclass
class Result:
    """The figures of a load.

    Attributes:
        seconds: What was measured; opening and closing are no part of it.
        cpu_seconds: Of this process, in that time.
        messages: That came back, or came in, in that time.
        latencies: Of echoes: from sending, with ``rate`` from when the schedule had them due, to the whole echo. With
            ``is_push``: between two reads of a connection that brought messages.
        errors: By kind.
    """

    plan: Plan
    seconds: float
    cpu_seconds: float
    messages: int
    payload_bytes: int
    latencies: Latencies
    handshakes: Latencies
    errors: Counter[str]
    is_interrupted: bool

    @property
    def has_failed(self) -> bool:
        return bool(self.errors)

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "url": plan.target.url,
            "mode": "push" if plan.is_push else "echo",
            "connections": plan.connections,
            "in_flight": None if plan.is_push or plan.rate else plan.in_flight,
            "rate": plan.rate or None,
            "size": None if plan.is_push else plan.size,
            "seconds": round(self.seconds, 3),
            "messages": self.messages,
            "messages_per_second": round(self._per_second(self.messages), 1),
            "bytes_per_second": round(self._per_second(self.payload_bytes), 1),
            "latency_us": self.latencies.quantiles(),
            "histogram_us": self.latencies.histogram(),
            "handshakes": sum(count for _, count in self.handshakes.counts()),
            "handshake_us": self.handshakes.quantiles(),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "errors": dict(self.errors),
            "interrupted": self.is_interrupted,
        }

    def as_text(self) -> str:
        plan = self.plan
        size = "" if plan.is_push else f" of {plan.size:,} bytes"
        lines = [
            f"{self.messages:,} messages{size} in {self.seconds:.2f} s"
            f" over {plan.connections:,} connections{' (interrupted)' if self.is_interrupted else ''}",
            f"{self._per_second(self.messages):,.0f} messages/s,"
            f" {self._per_second(self.payload_bytes) / 1e6:,.2f} MB/s;"
            f" this command used {self._per_second(self.cpu_seconds):.0%} of a core",
        ]
        for title, latencies in ((self._title(), self.latencies), ("handshake", self.handshakes)):
            if found := latencies.quantiles():
                lines.append(f"{title}: " + "  ".join(f"{name} {duration(micros)}" for name, micros in found.items()))
        lines += self._bars()
        lines += [f"error: {count:,} × {kind}" for kind, count in self.errors.most_common()]
        return "\n".join(lines)

    def _title(self) -> str:
        if self.plan.is_push:
            return "time between messages"
        return "latency from when due" if self.plan.rate else "latency"

    def _bars(self) -> list[str]:
        rows = self.latencies.histogram()
        most = max((count for _, count in rows), default=0)
        total = sum(count for _, count in rows)
        bars = ["█" * round(count / most * _BAR) or "▏" * bool(count) for _, count in rows]
        return [
            f"  < {duration(bound):>7}  {count / total:6.1%}  {bar}".rstrip()
            for (bound, count), bar in zip(rows, bars, strict=True)
        ]

    def _per_second(self, amount: float) -> float:
        return amount / self.seconds if self.seconds else 0.0


def duration(micros: int) -> str:
    """Microseconds in the unit that suits them, in three digits."""
    for unit, size in (("s", 1_000_000), ("ms", 1000)):
        if micros >= size:
            return f"{micros / size:.3g} {unit}"
    return f"{micros} µs"
