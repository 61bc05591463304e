"""Fixtures: Chromium for the panel's page, a certificate, and where the sites are."""

from __future__ import annotations

from pathlib import Path

from tests.browser.conftest import browser
from tests.operations.conftest import certificate, certificates
from tests.sites.conftest import own_port

__all__ = ["SITES", "browser", "certificate", "certificates", "own_port"]

SITES = Path(__file__).parents[2] / "sites"
