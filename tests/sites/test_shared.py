"""A folder that is a site of its own can import nothing from the folder above, so each has this file for itself."""

from __future__ import annotations

from pathlib import Path

SITES = Path(__file__).parents[2] / "sites"


def test_every_site_finds_what_all_pages_share_in_the_same_way() -> None:
    texts = {file.parent.name: file.read_text(encoding="utf-8") for file in SITES.glob("*/[[]shared[]].py")}
    assert {"relay", "director"} <= set(texts)
    assert len(set(texts.values())) == 1
