"""The listening socket: on a TCP address or on a Unix socket's path.

Comes in: a configuration. Goes out: a socket that listens, without waiting. Accepted sockets inherit its options.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import suppress

from krait_ws.config import Config
from krait_ws.errors import ConfigError

_BACKLOG = 1024
_TCP_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
_NO_OTHERS = 0o117  # a umask: owner and group may connect


def new_listener(config: Config) -> socket.socket:
    """Listens where ``unix``, or else ``host`` and ``port``, say.

    Raises:
        ConfigError: That cannot be listened on.
    """
    try:
        listener = _listen_unix(config.unix) if config.unix else _listen_tcp(config.host, config.port)
    except UnicodeError:  # of a name that DNS cannot have
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {config.host!r} is no name of a host"
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise ConfigError(f"cannot listen on {config.unix or f'{config.host}:{config.port}'}: {reason}") from None
    listener.setblocking(False)
    return listener


def remove_path(listener: socket.socket) -> None:
    """Removes the file of a Unix socket that nobody will listen on any more; nothing for TCP."""
    if listener.family == socket.AF_UNIX:
        with suppress(OSError):  # somebody has removed it
            os.unlink(listener.getsockname())


def _address_of(listener: socket.socket) -> str:
    """Where it listens, as in a URL: ``127.0.0.1:8000``, ``[::1]:8000`` or ``unix:/run/krait.sock``."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(listener: socket.socket, config: Config) -> str:
    """Where a browser finds it; for a Unix socket ``unix:`` and its path."""
    address = _address_of(listener)
    return address if config.unix else f"{'https' if config.tls_cert else 'http'}://{address}"


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[:2])
        listener.listen(_BACKLOG)
        _set_options(listener)
        if ipaddress.ip_address(address[0]).is_loopback:
            _set_local_options(listener)
    except OSError:
        listener.close()
        raise
    return listener


def _set_options(listener: socket.socket) -> None:
    """Set once here, these cost accepted sockets no call each."""
    # Head and body go out in two writes; without this the second waits for the client's delayed answer (40 ms).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Finds the peers that are gone while our reading is paused, when no pong can be heard.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _TCP_KEEPALIVE.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _set_local_options(listener: socket.socket) -> None:
    """For clients on this machine, a proxy among them."""
    if hasattr(socket, "TCP_CONGESTION"):
        # There is no network that can be congested. What paces itself for one, as BBR does where it is the system's
        # choice, takes a sixth off the speed of large messages; this does not, and everybody may choose it.
        with suppress(OSError):  # something that is not quite a Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_NO_OTHERS)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        # It raises with the text alone when the path is too long.
        raise error if error.errno else ConfigError(f"unix: {path}: {error}") from None
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _remove_stale(path: str) -> None:
    """Removes the socket of a server that has died. That of one that lives, and a file of another kind, stay."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"unix: {path} is there and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: it lives
    raise ConfigError(f"unix: another server listens on {path}")
