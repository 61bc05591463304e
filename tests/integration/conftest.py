"""Fixtures of the tests that talk to a real server in the test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from tests.integration.support import made, no_leaks, route, write_site


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with no_leaks():
        yield


@pytest.fixture
def serve_files(tmp_path: Path, krait_site: Callable[..., SiteServer]) -> Callable[..., SiteServer]:
    """``serve_files({"page.html": "..."}, debug=True)`` serves these files."""

    def serve_files(files: dict[str, str | bytes], **options: Any) -> SiteServer:
        return krait_site(write_site(tmp_path / "site", files), **options)

    return serve_files


@pytest.fixture
def serve(serve_files: Callable[..., SiteServer]) -> Iterator[Callable[..., SiteServer]]:
    """``serve(Controller)`` answers upgrades at ``/`` with controllers of a class, or with what a function of the
    request returns; ``serve({"echo": Echo, ...})`` at several URLs."""

    def serve(answers: Any, **options: Any) -> SiteServer:
        if not isinstance(answers, dict):
            answers = {"index": answers}
        return serve_files({f"{name}.py": route(answer) for name, answer in answers.items()}, **options)

    yield serve
    made.clear()
