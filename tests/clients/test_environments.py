"""The environments hold exactly the packages that are pinned."""

from __future__ import annotations

import subprocess

import pytest

from tests.clients.environments import PACKAGES, interpreter


@pytest.mark.parametrize("name", PACKAGES)
def test_the_pinned_version_is_installed(name: str) -> None:
    package, _, version = PACKAGES[name].requirement.partition("==")
    program = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([interpreter(name), "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == version
