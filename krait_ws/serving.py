"""One process that serves a site: signals end it, or make it begin anew.

Comes in: a site and a way to read the settings. SIGTERM and SIGINT drain and end; a second one ends at once. SIGHUP
reads settings, certificates and the site again: a new server takes over the listening socket, so no connection attempt
is refused, and the old one drains. When something of it cannot be used, the old one goes on.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import gevent

from krait_ws import log_output
from krait_ws.config import Config
from krait_ws.errors import KraitError
from krait_ws.network.listening import new_listener, remove_path
from krait_ws.network.server import Server

logger = logging.getLogger("krait_ws.server")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Serving:
    """See the module. To be used in the main thread.

    Args:
        site: The site's folder.
        config: What is in force first.
        read_config: Reads it again.

    Raises:
        KraitError: As ``Server``.

    Attributes:
        server: The one that accepts.
    """

    def __init__(self, site: Path, config: Config, read_config: Callable[[], Config]) -> None:
        self._site = site
        self._read_config = read_config
        self._listener = new_listener(config)
        self._draining: list[Server] = []
        try:
            self.server = Server(site, config, listener=self._listener)
        except KraitError:
            remove_path(self._listener)
            self._listener.close()
            raise

    def start(self) -> None:
        """Begins to accept, and to hear signals."""
        for number in _STOP_SIGNALS:
            gevent.signal_handler(number, self._stop)
        if hasattr(signal, "SIGHUP"):
            gevent.signal_handler(signal.SIGHUP, self._restart)
        self.server.start()

    def wait(self) -> None:
        """Returns when a signal has ended it and everything is over."""
        while not self.server.is_stopped:
            self.server.serve_forever()  # of one that was replaced it returns too
        for server in self._draining:
            server.serve_forever()

    def _stop(self) -> None:
        """A signal has come. The second one does not wait for anybody."""
        if self.server.is_stopping:
            os._exit(1)
        logger.warning("stops and waits for handlers; once more ends it now")
        remove_path(self._listener)
        self._listener.close()
        self.server.request_stop()

    def _restart(self) -> None:
        if self.server.is_stopping:
            return
        try:
            config = self._read_config()
            moved = _place(config) != _place(self.server.config)
            listener = new_listener(config) if moved else self._listener
            try:
                server = Server(self._site, config, listener=listener)
            except BaseException:
                if moved:
                    remove_path(listener)
                    listener.close()
                raise
        except Exception as error:  # also what the modules of an application raise
            logger.error("goes on as it was, because it cannot restart: %s", error)
            return
        log_output.reconfigure(config)
        old, self.server = self.server, server
        old.site.close()  # the modules that the new one loads are its own
        server.start()
        old.request_stop(restarts=True)
        self._draining = [server for server in self._draining if not server.is_stopped] + [old]
        if moved:
            remove_path(self._listener)
            self._listener.close()
            self._listener = listener
        logger.warning("serves anew; %d connections are closed with 1012", len(old.sessions))


def _place(config: Config) -> tuple[str, str, int]:
    """What tells where to listen."""
    return config.unix, config.host, config.port
