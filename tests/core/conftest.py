"""Fixtures of the core's tests: those of the integration tests."""

from __future__ import annotations

from tests.integration.conftest import leaves_nothing, serve, serve_files

__all__ = ["leaves_nothing", "serve", "serve_files"]
