"""Fixtures of the tests of the demo sites."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.client.conftest import replay_of

__all__ = ["own_port", "replay_of"]


@pytest.fixture
def own_port() -> Iterator[int]:
    """A port for servers that come one after the other. This socket never listens, and keeps the port for the test
    while none of them does: any other test of this machine might get it else."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port
