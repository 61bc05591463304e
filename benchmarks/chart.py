#!/usr/bin/env python3
"""Draw a result of run.py as an SVG bar chart, with no dependencies.

    python benchmarks/chart.py [--name latest] [--output benchmarks/results/<name>.svg]

One block per case, one bar per server. krait-ws is in colour; the tick on its bar is the strictest target of that
server in the case, and the figure says whether all of its targets are met.
"""

import argparse
import json
import pathlib
import sys
from xml.sax.saxutils import escape

from run import CASES, HERE, UNITS, number

WIDTH = 860
LEFT = 190
BAR = 16
GAP = 6
BLOCK_HEAD = 34
BAR_WIDTH = WIDTH - LEFT - 190
OWN = ("thread", "greenlet", "loop", "fanout")
COLOURS = {"own": "#2f6fde", "peer": "#9aa4b2", "met": "#1d8a4a", "missed": "#c0392b"}
LOW_IS_GOOD = {"rss_kb_per_conn", "p99_us"}


def text(x, y, content, size=12, anchor="start", weight="normal", fill="#1c2430"):
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(content)}</text>'
    )


def asked(row):
    """The figure that a target asks for."""
    return row["factor"] * (row["peer"] if row["peer"] is not None else 1.0)


def block(case, servers, targets, top):
    """The SVG elements of a case, and the y below them."""
    figure = case.figure
    note = ", less is better" if figure in LOW_IS_GOOD else ""
    parts = [text(16, top + 20, f"{case.title} — {UNITS[figure]}{note}", 13, weight="bold")]
    y = top + BLOCK_HEAD
    rows = [(name, figures[figure]) for name, figures in servers.items() if figure in figures]
    rows.sort(key=lambda row: row[1], reverse=figure not in LOW_IS_GOOD)
    own_targets = [t for t in targets if t["case"] == case.name and t["figure"] == figure]
    longest = max([value for _, value in rows] + [asked(t) for t in own_targets], default=1.0) or 1.0
    for name, value in rows:
        own = name in OWN
        mine = [t for t in own_targets if t["server"] == name]
        length = value / longest * BAR_WIDTH
        colour = COLOURS["own" if own else "peer"]
        label = f"krait-ws {name}" if own else name
        parts.append(text(LEFT - 8, y + 12, label, 12, "end", "bold" if own else "normal"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
        figure_text, fill = number(value), "#1c2430"
        end = LEFT + length
        if mine:
            met = all(t["met"] for t in mine)
            strictest = (min if mine[0]["at_most"] else max)(asked(t) for t in mine)
            tick = LEFT + strictest / longest * BAR_WIDTH
            end = max(end, tick)
            fill = COLOURS["met" if met else "missed"]
            figure_text += "  target met" if met else f"  target {number(strictest)}"
            parts.append(
                f'<line x1="{tick:.1f}" x2="{tick:.1f}" y1="{y - 2}" y2="{y + BAR + 2}" stroke="{fill}" '
                'stroke-width="2"/>'
            )
        parts.append(text(end + 8, y + 12, figure_text, 12, fill=fill))
        y += BAR + GAP
    return parts, y + 8


def draw(result):
    """The whole SVG."""
    parts = []
    y = 62
    for case in CASES:
        servers = result["cases"].get(case.name)
        if servers:
            more, y = block(case, servers, result["targets"], y)
            parts += more
    facts = result["machine"]
    subtitle = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}; medians of {result['rounds']} rounds in one run, "
        f"{result['date']}"
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10}" viewBox="0 0 {WIDTH} {y + 10}" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">',
        f'<rect width="{WIDTH}" height="{y + 10}" rx="8" fill="#ffffff"/>',
        text(16, 30, "krait-ws beside its peers", 18, weight="bold"),
        text(16, 50, subtitle, 11, fill="#5b6675"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="latest")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    source = HERE / "results" / f"{arguments.name}.json"
    if not source.exists():
        print(f"chart: there is no result {arguments.name}; run benchmarks/run.py first", file=sys.stderr)
        return 2
    output = arguments.output or source.with_suffix(".svg")
    output.write_text(draw(json.loads(source.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
