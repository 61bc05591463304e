"""Writes the table of settings in docs/reference.md from ``krait_ws.config.options()``.

``python docs/settings_table.py`` rewrites the table; with ``--check`` it changes nothing and exits with 1 when the
table is not what the code says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from krait_ws.config import options

REFERENCE = Path(__file__).with_name("reference.md")
BEGIN = "<!-- settings: written by docs/settings_table.py -->"
END = "<!-- end of settings -->"


def settings_table() -> str:
    """The table in Markdown, without a final line break."""
    lines = [
        "| setting | default | unit or values | bounds | per controller | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for option in options():
        data = option.metadata
        values = ", ".join(f"`{choice}`" for choice in data["choices"]) or data["unit"]
        cells = (
            f"`{option.name}`",
            _default(option.default, data["unit"]),
            values,
            _bounds(data["least"], data["most"]),
            "yes" if data["per_controller"] else "",
            data["meaning"].replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """``text`` with the table between the markers replaced.

    Raises:
        ValueError: A marker is missing, or stands more than once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{REFERENCE.name} must contain {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{settings_table()}\n\n{END}{after}"


def _default(value: object, unit: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "":
        return "none"
    if isinstance(value, int) and unit == "bytes":
        for factor, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value and value % factor == 0:
                return f"{value // factor} {name}"
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{value}`" if isinstance(value, str) else str(value)


def _bounds(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return f"≥ {least:g}"
    return f"≤ {most:g}" if least is None else f"{least:g} to {most:g}"


def main() -> int:
    text = REFERENCE.read_text(encoding="utf-8")
    wanted = with_table(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(f"{REFERENCE.name}: the table of settings is old: run python docs/settings_table.py", file=sys.stderr)
            return 1
        return 0
    REFERENCE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
