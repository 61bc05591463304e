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
from typing import Any

import gevent

from krait_ws import log_output
from krait_ws.config import Config
from krait_ws.errors import ConfigError, KraitError
from krait_ws.network.listening import new_listener, remove_path
from krait_ws.network.server import Server
from krait_ws.patching import is_patched
from krait_ws.tuning import keep_what_is_loaded

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
        self._hub = gevent.get_hub()
        self._is_told = False  # that it shall end
        self._watcher: Any = None
        try:
            self.server = Server(site, config, listener=self._listener)
        except KraitError:
            remove_path(self._listener)
            self._listener.close()
            raise

    def start(self) -> None:
        """Begins to accept, and to hear signals."""
        # Python runs a handler in the main thread, which sleeps in the hub: a byte in the pipe wakes it, whichever
        # thread the system has given the signal to.
        reader, writer = os.pipe()
        for end in reader, writer:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer)
        self._watcher = self._hub.loop.io(reader, 1)
        self._watcher.start(os.read, reader, 100)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._hear)
        if hasattr(signal, "SIGHUP"):
            gevent.signal_handler(signal.SIGHUP, self._restart)
        keep_what_is_loaded()
        self.server.start()

    def wait(self) -> None:
        """Returns when a signal has ended it and everything is over."""
        while not self.server.is_stopped:
            self.server.serve_forever()  # of one that was replaced it returns too
        for server in self._draining:
            server.serve_forever()

    def _hear(self, number: int, frame: object) -> None:
        """A signal has come. The second one does not wait for anybody, nor for a network loop that is stuck: this runs
        between two steps of whatever the main thread does."""
        if self._is_told:
            os._exit(1)
        self._is_told = True
        self._hub.loop.run_callback_threadsafe(self._stop)

    def _stop(self) -> None:
        logger.warning("stops and waits for handlers; once more ends it now")
        remove_path(self._listener)
        self._listener.close()
        self.server.request_stop()

    def _restart(self) -> None:
        if self._is_told:
            return
        try:
            config = self._read_config()
            if config.runs_on == "greenlet" and not is_patched():
                raise ConfigError("runs_on: the standard library is patched at the start only: stop and start again")
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


def _place(config: Config) -> str | tuple[str, int]:
    """What tells where to listen."""
    return config.unix or (config.host, config.port)
