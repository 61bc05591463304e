"""Fixtures of the fault tests: as for the integration tests, and greenlets are counted too."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.integration.conftest import serve, serve_files
from tests.integration.support import no_leaks

__all__ = ["leaves_nothing", "serve", "serve_files"]


@pytest.fixture(autouse=True, scope="session")
def few_objects() -> Iterator[None]:
    """What is there before the first test is left out of every search for objects, which takes 0.4 s else."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with no_leaks(greenlets=True):
        yield
