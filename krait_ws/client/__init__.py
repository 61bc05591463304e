"""Clients in plain blocking code: parts that combine.

All of them are thread-safe, have a deadline on every wait, and work in plain and in gevent-patched processes. Nothing
here is needed to run a server, and the server imports nothing of it.
"""

from __future__ import annotations

from krait_ws.client.auth import Basic, Bearer, Headers
from krait_ws.client.backoff import Backoff
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
from krait_ws.client.peers import Peer, Peers
from krait_ws.client.pool import Pool, PoolStats
from krait_ws.client.status import Event, Status
from krait_ws.client.stream import EventStream
from krait_ws.client.subscriptions import EVERYTHING, Subscriptions
from krait_ws.client.transport import Auth, Transport

__all__ = [
    "EVERYTHING",
    "Auth",
    "AuthError",
    "Backoff",
    "Basic",
    "Bearer",
    "ClientError",
    "Connection",
    "ConnectionBusyError",
    "ConnectionClosedError",
    "ConnectionDrainTimeoutError",
    "ConnectionUnavailableError",
    "Event",
    "EventStream",
    "Headers",
    "Link",
    "Message",
    "Peer",
    "PeerTimeoutError",
    "Peers",
    "Pool",
    "PoolExhaustedError",
    "PoolStats",
    "Status",
    "Subscriptions",
    "Transport",
]
