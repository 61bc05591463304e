"""Several processes that serve a site, under gunicorn's supervisor.

``krait-ws serve --workers N`` runs it. So does gunicorn's own command::

    gunicorn --workers 4 --bind 127.0.0.1:8000 -k krait_ws.gunicorn.Worker 'krait_ws.gunicorn:site("sites")'

Comes in: gunicorn's configuration and listening socket. Each worker has a ``Server`` of its own, with limits of its
own: ``max_connections`` and the other caps count per process.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import mmap
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gevent
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger as _BaseLogger
from gunicorn.workers.base import Worker as _BaseWorker

from krait_ws import log_output
from krait_ws.config import Config, options
from krait_ws.errors import ConfigError, KraitError
from krait_ws.flags import read_config
from krait_ws.network.listening import new_listener, url_of
from krait_ws.network.tls import new_context
from krait_ws.observe.shared import new_folder, remove_folder
from krait_ws.patching import patch_standard_library
from krait_ws.routing import Router
from krait_ws.tuning import keep_what_is_loaded, tune_process

if TYPE_CHECKING:
    from krait_ws.network.server import Server

_HEARTBEAT = 1.0  # seconds
_LONGEST = 1e8  # seconds, three years
_SPARE = 5.0  # seconds that gunicorn waits longer than a worker's drain takes, before it kills


class SiteApp:
    """What gunicorn takes for a WSGI application: only ``Worker`` can run it."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root = root
        self.config = config

    def __call__(self, environ: Any, start_response: Any) -> NoReturn:
        raise RuntimeError("run it with: gunicorn -k krait_ws.gunicorn.Worker")


def site(root: str = "sites", **settings: Any) -> SiteApp:
    """The application to name to gunicorn: ``krait_ws.gunicorn:site("sites", max_connections=5000)``.

    Where to listen and how many workers there are is gunicorn's to say; so are ``certfile`` and ``keyfile``, but for
    ``tls_cert`` and ``tls_key`` among the settings. ``KRAIT_*`` variables count too.

    Raises:
        ConfigError: There is no such setting, or it cannot be used.
    """
    known = [option.name for option in options()]
    for name in settings:
        if name not in known:
            raise ConfigError(f"site: there is no setting {name}")
    given = {name: value if isinstance(value, bool) else str(value) for name, value in settings.items()}
    return SiteApp(Path(root), read_config(given, os.environ))


class Worker(_BaseWorker):  # type: ignore[misc]
    """gunicorn's worker class: one ``Server`` on gunicorn's listening socket.

    SIGTERM drains: with 1012 when gunicorn has read its configuration anew and other workers take over, else with 1001.
    SIGQUIT ends at once. A worker whose network loop is blocked for gunicorn's ``timeout`` is replaced; controllers
    that block in threads of their own do not block it.
    """

    _generation: mmap.mmap | None = None  # how often the master has read its configuration; shared with the workers
    _has_served: mmap.mmap | None = None  # whether any worker has begun; shared too
    _known_cfg: Any = None
    _folder: Path | None = None  # what the workers share

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """In the master, before it forks."""
        super().__init__(*arguments, **named)
        if Worker._generation is None:
            Worker._generation = mmap.mmap(-1, 8)
            Worker._has_served = mmap.mmap(-1, 1)
            Worker._folder = new_folder(self.cfg.uid, self.cfg.gid)
            atexit.register(_remove, Worker._folder, os.getpid())
        if self.cfg is not Worker._known_cfg:
            Worker._known_cfg = self.cfg
            _write(Worker._generation, _read(Worker._generation) + 1)
        self._own_generation = _read(Worker._generation)
        self._server: Server | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by: the master, before the first worker."""
        if len(cfg.address) > 1:
            raise RuntimeError("krait-ws listens on one address: give one --bind")
        if cfg.preload_app:
            raise RuntimeError("krait-ws starts threads when it loads a site: leave out --preload")

    def init_process(self) -> None:
        gevent.reinit()
        tune_process()
        super().init_process()

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the master says what to do
        signal.signal(signal.SIGABRT, self.handle_abort)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until there is something to end
        gevent.signal_handler(signal.SIGQUIT, self._quit)
        gevent.signal_handler(signal.SIGTERM, self._drain)
        gevent.signal_handler(signal.SIGUSR1, self.log.reopen_files)

    def load_wsgi(self) -> None:
        try:
            super().load_wsgi()
        except KraitError as error:
            self._fail(error)

    def run(self) -> None:
        app = self.wsgi
        if not isinstance(app, SiteApp):
            self._fail(ConfigError('krait_ws.gunicorn.Worker serves krait_ws.gunicorn:site("sites"), nothing else'))
        if app.config.runs_on == "greenlet":
            patch_standard_library()
        from krait_ws.network.server import Server  # not before the patch

        self._adopt_logs()
        listener: socket.socket = self.sockets[0].sock
        listener.setblocking(False)
        try:
            self._server = Server(app.root, self._config(app.config), listener=listener, workers=Worker._folder)
        except (KraitError, OSError) as error:
            self._fail(error)
        keep_what_is_loaded()
        self._server.start()
        assert Worker._has_served is not None
        Worker._has_served[0] = 1
        heartbeat = gevent.spawn(self._beat)
        if not self.alive:  # SIGTERM came while the site was loaded
            self._drain()
        self._server.serve_forever()
        heartbeat.kill()
        self.log.info("Worker exiting (pid: %s)", self.pid)
        # Abandoned handlers are daemon threads; nothing of theirs may hold up the exit.
        _exit(0)

    def handle_abort(self, sig: int, frame: Any) -> None:
        self.log.critical("the network loop is blocked at\n%s", "".join(traceback.format_stack(frame)))
        self.cfg.worker_abort(self)
        _exit(1)

    def _fail(self, error: KraitError | OSError) -> NoReturn:
        """While no worker has ever begun gunicorn ends; later it tries until the mistake is mended, for the sake of
        the workers that there are."""
        self.log.error("a worker cannot start: %s", error)
        assert Worker._has_served is not None
        if not Worker._has_served[0]:
            _exit(Arbiter.WORKER_BOOT_ERROR)
        gevent.sleep(_HEARTBEAT)
        _exit(1)

    def _config(self, config: Config) -> Config:
        """With what gunicorn says put over it."""
        patience = max(1.0, self.cfg.graceful_timeout - 1.0)
        changes: dict[str, Any] = {
            "workers": self.cfg.workers,
            "drain_timeout": min(config.drain_timeout, patience),
            "unix": self.cfg.address[0] if isinstance(self.cfg.address[0], str) else config.unix,
        }
        if self.cfg.certfile and not config.tls_cert:
            changes |= {"tls_cert": self.cfg.certfile, "tls_key": self.cfg.keyfile or ""}
        return dataclasses.replace(config, **changes)

    def _adopt_logs(self) -> None:
        """Where nobody has set up logging, our records go where gunicorn's go."""
        ours = logging.getLogger("krait_ws")
        if not ours.hasHandlers():
            ours.handlers[:] = self.log.error_log.handlers
            ours.setLevel(self.log.error_log.level)

    def _beat(self) -> None:
        while True:
            self.notify()
            if self.ppid != os.getppid():
                self._drain()  # the master is gone
            gevent.sleep(min(_HEARTBEAT, self.timeout or _HEARTBEAT))

    def _drain(self) -> None:
        """gunicorn says it again and again while a worker is one too many: later calls do nothing."""
        self.alive = False
        if self._server is not None and not self._server.is_stopping:
            assert Worker._generation is not None
            self.sockets[
                0
            ].sock.close()  # the server has one of its own; while any is open, attempts to connect queue up
            self._server.request_stop(restarts=_read(Worker._generation) != self._own_generation)

    def _quit(self) -> None:
        self.cfg.worker_int(self)
        _exit(0)


class _Reloaded(Exception):
    """The new workers have been started."""


class _Logger(_BaseLogger):  # type: ignore[misc]
    """gunicorn's records, in the format of ours."""

    formatter: logging.Formatter

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(self.formatter)
            handler.terminator = ""


class _Supervisor(Arbiter):  # type: ignore[misc]
    """gunicorn's, with our signals: SIGINT is as gentle as SIGTERM, and a second one of either ends it now."""

    app: _Application
    _is_ending = False
    _ends_now = False
    _reloads = False
    _stops = False

    def signal(self, sig: int, frame: Any) -> None:
        if sig in (signal.SIGINT, signal.SIGTERM):
            self._ends_now = self._is_ending
            sig, self._is_ending = signal.SIGQUIT if self._is_ending else signal.SIGTERM, True
        super().signal(sig, frame)

    def stop(self, graceful: bool = True) -> None:
        self._stops = True
        # gunicorn forgets a second signal that it takes out of its queue together with the first.
        super().stop(graceful and not self._ends_now)

    def reload(self) -> None:
        try:
            self.app.read_again()
        except KraitError as error:
            self.log.error("goes on as it was, because it cannot restart: %s", error)
            return
        self._reloads = True
        try:
            super().reload()
        except _Reloaded:
            pass
        finally:
            self._reloads = False

    def reap_workers(self) -> None:
        """At the end of ``reload`` gunicorn waits here until the old workers have ended, and is deaf meanwhile: to
        SIGTERM, and to workers that die. Ours take a second SIGTERM well, so there is nothing to wait for. At the end
        they get it again and again: one that was forked a moment before does not hear the first."""
        super().reap_workers()
        if self._reloads:
            raise _Reloaded
        if self._stops:
            self.kill_workers(signal.SIGQUIT if self._ends_now else signal.SIGTERM)


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's configuration, made from ours."""

    def __init__(self, root: Path, config: Config, read: Callable[[], Config], announce: Callable[[str], None]) -> None:
        self._root = root
        self._read = read
        self._announce = announce
        self._config = config
        listener = new_listener(config)
        self._url = url_of(listener, config)
        self._descriptor = listener.detach()  # gunicorn takes and closes it
        super().__init__()

    def read_again(self) -> None:
        """Reads the settings again and checks what a worker would fail on.

        Raises:
            KraitError: They cannot be used: the workers that there are go on.
        """
        config = self._read()
        new_context(config)
        Router(self._root)
        self._config = config
        log_output.reconfigure(config)  # the new workers inherit it

    def load_config(self) -> None:
        _Logger.formatter = log_output.new_formatter(self._config)
        values: dict[str, Any] = {
            "bind": f"fd://{self._descriptor}",
            "workers": self._config.workers,
            "worker_class": "krait_ws.gunicorn.Worker",
            "graceful_timeout": int(min(self._config.drain_timeout, _LONGEST) + _SPARE),
            "when_ready": self._when_ready,
            "loglevel": "warning",
            "logger_class": _Logger,
            "proc_name": "krait-ws",
            "control_socket_disable": True,
        }
        for name, value in values.items():
            if name in self.cfg.settings:  # the last one came late
                self.cfg.set(name, value)

    def load(self) -> SiteApp:
        return SiteApp(self._root, self._config)

    def _when_ready(self, supervisor: Arbiter) -> None:
        """It hears signals, and starts the workers next."""
        self._announce(self._url)


def run(root: Path, config: Config, read: Callable[[], Config], announce: Callable[[str], None]) -> NoReturn:
    """Serves with ``config.workers`` processes until a signal ends it; ends the process.

    Args:
        read: Reads the settings again, for SIGHUP.
        announce: Is told the URL once signals are heard.

    Raises:
        KraitError: The site, its address or its certificate cannot be used.
    """
    Router(root)
    new_context(config)
    try:
        _Supervisor(_Application(root, config, read, announce)).run()
    except HaltServer as halt:  # a second worker failed while it halted because of the first
        sys.exit(halt.exit_status)
    sys.exit(0)


def _read(generation: mmap.mmap) -> int:
    return int.from_bytes(generation[:8], "little")


def _write(generation: mmap.mmap, value: int) -> None:
    generation[:8] = value.to_bytes(8, "little")


def _remove(folder: Path, master: int) -> None:
    if os.getpid() == master:  # workers inherit what is to be done at the exit
        remove_folder(folder)


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
