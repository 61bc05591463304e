"""From the suite's ``index.json`` and the server's log to a verdict, a table and a section of docs/conformance.md."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

GROUPS = {
    1: "Framing",
    2: "Pings and pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Close handling",
    9: "Limits and performance",
    10: "Automatic fragmentation",
    12: "Compression, sizes",
    13: "Compression, parameters",
}

FAILED, MISSING = "FAILED", "MISSING"
_ORDER = ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", FAILED, MISSING)
_PASSED = {"OK", "INFORMATIONAL", "NON-STRICT"}
_CLEAN = {"OK", "INFORMATIONAL"}
_TROUBLE = re.compile(r"^(ERROR|CRITICAL|WARNING) |^Traceback \(most recent call last\)|^\S*(Error|Exception): ")


@dataclass(frozen=True, slots=True)
class Case:
    """One result of the suite."""

    id: str
    behavior: str
    closing: str
    close_code: int | None = None
    why: str = ""

    @property
    def group(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def passed(self) -> bool:
        return self.behavior in _PASSED and self.closing in _CLEAN

    @property
    def remarkable(self) -> bool:
        return self.behavior != "OK" or self.closing != "OK"


@dataclass(slots=True)
class Result:
    """One run of the suite against one ``runs_on``."""

    runs_on: str
    cases: list[Case]
    seconds: float
    group_seconds: dict[int, float]
    trouble: list[str] = field(default_factory=list)
    """Lines of the server's log that should not be there, and what else was wrong with the server or the suite."""

    @property
    def passed(self) -> bool:
        return bool(self.cases) and not self.trouble and all(case.passed for case in self.cases)


def read_cases(folder: Path, agent: str, announced: Iterable[str]) -> list[Case]:
    """The results of an agent, in the suite's order. A case that was announced and has no result is MISSING: the suite
    leaves out what it could not connect for."""
    index = folder / "index.json"
    results = json.loads(index.read_text()).get(agent, {}) if index.exists() else {}
    cases = []
    for case_id in announced:
        result = results.get(case_id)
        if result is None:
            cases.append(Case(case_id, MISSING, MISSING, why="the suite has no result for it"))
            continue
        case = Case(case_id, result["behavior"], result["behaviorClose"], result["remoteCloseCode"])
        if case.remarkable:
            case = Case(case.id, case.behavior, case.closing, case.close_code, _why(folder / result["reportfile"]))
        cases.append(case)
    return cases


def trouble_in_log(log: Path) -> list[str]:
    """The lines of the server's log that a good run does not have."""
    return [line for line in log.read_text(errors="replace").splitlines() if _TROUBLE.match(line)]


def table(result: Result) -> str:
    """Cases per group, as a Markdown table."""
    behaviors = Counter((case.group, case.behavior) for case in result.cases)
    closings = Counter((case.group, case.closing in _CLEAN) for case in result.cases)
    shown = [name for name in _ORDER if any(case.behavior == name for case in result.cases) or name in _ORDER[:3]]
    if FAILED not in shown:
        shown.append(FAILED)
    rows = [["group", "cases", *shown, "closed cleanly", "not", "seconds"]]
    for group in sorted({case.group for case in result.cases}):
        counts = [behaviors[group, name] for name in shown]
        rows.append(
            [
                f"{group} {GROUPS.get(group, '')}".strip(),
                *map(str, (sum(counts), *counts, closings[group, True], closings[group, False])),
                f"{result.group_seconds.get(group, 0):.0f}",
            ]
        )
    totals = [sum(int(row[column]) for row in rows[1:]) for column in range(1, len(rows[0]) - 1)]
    rows.append(["all", *map(str, totals), f"{result.seconds:.0f}"])
    return _markdown(rows)


def remarkable(result: Result) -> str:
    """Every case that is not plainly OK, as a Markdown table; ``""`` when there is none."""
    rows = [["case", "behaviour", "closing", "why"]]
    rows += [[case.id, case.behavior, case.closing, case.why] for case in result.cases if case.remarkable]
    return _markdown(rows) if len(rows) > 1 else ""


def save(results: list[Result], heading: str, document: Path) -> None:
    """Puts the tables between the two marks in a document."""
    begin, end = "<!-- results -->\n", "<!-- end of results -->\n"
    text = document.read_text()
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    parts = [heading]
    for result in results:
        parts += [f'### `runs_on = "{result.runs_on}"`', table(result)]
        if listed := remarkable(result):
            parts += ["Not plainly OK:", listed]
    document.write_text(before + begin + "\n" + "\n\n".join(parts) + "\n\n" + end + after)


def _why(detail: Path) -> str:
    """The suite's own words on a case."""
    report = json.loads(detail.read_text())
    parts = []
    if report["behavior"] == "NON-STRICT":
        parts.append(f"strict: {_events(report['expected'].get('OK', []))}, received: {_events(report['received'])}")
    elif report["behavior"] != "OK":
        parts.append(report["result"])
    if report["behaviorClose"] != "OK":
        parts.append(report["resultClose"])
        if report["wasNotCleanReason"]:
            parts.append(report["wasNotCleanReason"])
    parts.append(f"server's code {report['remoteCloseCode']}")
    return "; ".join(re.sub(r"<[^>]*>", "", part).strip() for part in parts)


def _events(events: list[list[object]]) -> str:
    """What the client received or should have, for example ``message 'Hello, world!'``."""
    return ", ".join(f"{event[0]} {str(event[1])[:30]!r}" for event in events) or "nothing"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
