"""Fixtures: Chromium for the panel's page, and the sites."""

from __future__ import annotations

from pathlib import Path

from tests.browser.conftest import browser

__all__ = ["SITES", "browser"]

SITES = Path(__file__).parents[2] / "sites"
