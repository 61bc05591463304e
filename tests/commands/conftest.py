"""Fixtures of the tests of commands."""

from __future__ import annotations

from tests.operations.conftest import certificate, certificates

__all__ = ["certificate", "certificates"]
