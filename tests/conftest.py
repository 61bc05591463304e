"""Fixtures for every test, and how hypothesis runs: the same examples in each run, without a clock."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("krait", deadline=None, derandomize=True, database=None)
settings.load_profile("krait")


@pytest.fixture
def site_folder(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """``site_folder({"chat/[room].py": "..."})`` writes the files and returns the site's folder; text is dedented.

    Called again, it adds to the same folder.
    """
    root = tmp_path / "site"

    def write(files: Mapping[str, str | bytes]) -> Path:
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        return root

    return write
