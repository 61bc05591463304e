"""A plain WSGI application behind the site, with the ``wsgi.websocket`` contract of gevent-websocket.

Comes in: requests that the site has no file for. They run in the greenlet of their HTTP connection, as under gevent's
own server, because such applications are written for it. An upgrade is accepted before the application is called, which
then finds an ``AppSocket`` in its environ; its frames go through our codec and the network loop.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from geventwebsocket.exceptions import WebSocketError

from krait_ws.controller import WebsocketsCtrlBase
from krait_ws.errors import ConfigError

WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_DEAD = "Socket is dead"


class AppController(WebsocketsCtrlBase):
    """Has no handler of its own: the application's greenlet pops and pushes."""

    runs_on = "greenlet"


class AppSocket:
    """What an application finds in ``environ["wsgi.websocket"]``.

    Thread: the one of the network loop, in a greenlet.

    Attributes:
        environ: The request.
        path, origin, protocol, version: Of the request, and the chosen subprotocol.
    """

    def __init__(self, environ: dict[str, Any], protocol: str | None) -> None:
        self.controller = AppController()
        self._has_told = False  # that the connection has ended
        self.environ = environ
        self.path = environ.get("PATH_INFO")
        self.origin = environ.get("HTTP_ORIGIN")
        self.version = environ.get("HTTP_SEC_WEBSOCKET_VERSION")
        self.protocol = protocol

    @property
    def closed(self) -> bool:
        """Whether the connection is over, or is being closed."""
        return self.controller.should_stop()

    def receive(self) -> str | bytes | None:
        """Waits for the next message; ``None`` once, when the connection has ended.

        Raises:
            WebSocketError: The connection had ended before.
        """
        if self._has_told:
            raise WebSocketError(_DEAD)
        message: str | bytes | None = self.controller.pop_in_message(None)
        self._has_told = message is None
        return message

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Sends a message: as text unless it is bytes-like or ``binary`` says otherwise. ``None`` sends nothing.

        Raises:
            WebSocketError: The connection has ended.
        """
        if message is None:
            return
        if binary is None:
            binary = not isinstance(message, str)
        if binary:
            message = message.encode() if isinstance(message, str) else message
        elif not isinstance(message, str):
            message = bytes(message).decode()
        if not self.controller.push_out_message(message):
            raise WebSocketError(_DEAD)

    def close(self, code: int = 1000, message: str | bytes = "") -> None:
        """Sends what was sent, then closes."""
        self.controller.close(code, message.decode() if isinstance(message, bytes) else message)


def load_app(name: str) -> WsgiApp:
    """The application that ``module:callable`` names, imported from the working folder or the installed packages.

    Raises:
        ConfigError: There is none of this name, or its module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"app: {name!r} must be like module:callable")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        app: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            app = getattr(app, part)
    except Exception as error:  # whatever the module does while it is imported
        raise ConfigError(f"app: {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(app):
        raise ConfigError(f"app: {name!r} is no callable")
    wsgi_app: WsgiApp = app
    return wsgi_app
