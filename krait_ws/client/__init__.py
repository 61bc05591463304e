"""Clients in plain blocking code: parts that combine.

All of them are thread-safe, have a deadline on every wait, and work in plain and in gevent-patched processes. Nothing
here is needed to run a server, and the server imports nothing of it.
"""

from __future__ import annotations

from krait_ws.client.connection import Connection
from krait_ws.client.errors import (
    AuthError,
    ClientError,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionUnavailableError,
    PeerTimeoutError,
    PoolExhaustedError,
)
from krait_ws.client.link import Link, Message
from krait_ws.client.transport import Auth, Transport

__all__ = [
    "Auth",
    "AuthError",
    "ClientError",
    "Connection",
    "ConnectionBusyError",
    "ConnectionClosedError",
    "ConnectionDrainTimeoutError",
    "ConnectionUnavailableError",
    "Link",
    "Message",
    "PeerTimeoutError",
    "PoolExhaustedError",
    "Transport",
]
