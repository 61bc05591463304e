"""Where the records of a server go: lines of text or of JSON on stderr, written by a thread of their own.

Comes in: records of ``logging``, from any thread. Goes out: lines. The network loop must not wait for whoever reads
stderr, so a handler only notes a line and a thread writes what came meanwhile together. What nobody reads is dropped
beyond ``MAX_WAITING``, and that is said.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import Any, TextIO

from gevent.monkey import get_original

from krait_ws.config import Config
from krait_ws.logs import Event, access_logger, escaped
from krait_ws.waiting import new_lock, new_reentrant_lock

MAX_WAITING = 10_000
"""Lines that wait to be written, at most."""

_GATHERING = 0.02  # seconds that a line waits for others, so that many are one write
_FLUSH_TIMEOUT = 1.0  # seconds that the end of the process waits for a reader of stderr
_start_thread = get_original("_thread", "start_new_thread")
_sleep = get_original("time", "sleep")
_BASE_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """One line for each record: time (UTC), level, logger, message; a traceback in indented lines below it."""

    def format(self, record: logging.LogRecord) -> str:
        first, *more = record.getMessage().split("\n")
        text = f"{_time(record)} {record.levelname} {record.name}: {escaped(first)}"
        if not (more or record.exc_text or record.exc_info or record.stack_info):
            return f"{text}\n"
        for block in (_traceback(self, record), record.stack_info or ""):
            more += block.split("\n") if block else ()
        # Indented, no line of a message looks like a record.
        return "".join([text, "\n", *(f"    {escaped(line)}\n" for line in more)])


class JsonFormatter(logging.Formatter):
    """One JSON object on one line for each record: ``time``, ``level``, ``logger``, ``message``, the fields of an
    access event or those given with ``extra``, and ``exception`` for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        more = record.msg.fields() if isinstance(record.msg, Event) else _extra(record)
        fields = {**fields, **more, **fields}  # these keep their names and come first
        if exception := _traceback(self, record):
            fields["exception"] = exception
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps(fields, default=str) + "\n"


class LineWriter(logging.Handler):
    """Hands lines to a thread that writes them. Thread: any; never waits for the stream.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._is_closed = False
        self._has_thread = self._is_woken = False
        self._alarm: Any = None
        self._forget_process()

    def createLock(self) -> None:  # noqa: N802  the base class's name
        self.lock = new_reentrant_lock()  # a native one, whatever gevent has patched

    def emit(self, record: logging.LogRecord) -> None:
        if self._process != os.getpid():
            self._forget_process()
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        try:
            # What others log is made text here: what it is made of may be something else a moment later.
            self._waiting.append(record if isinstance(record.msg, Event) else self.format(record))
        except Exception:  # of a record whose arguments do not fit its message
            self.handleError(record)
            return
        if not self._is_woken:
            self._is_woken = True
            if not self._has_thread:
                self._has_thread = True
                _start_thread(self._write_for_ever, ())
            with suppress(RuntimeError):  # it is released already
                self._alarm.release()

    def flush(self) -> None:
        """Writes what waits, unless the stream has been stuck for a second. Called by: ``logging.shutdown``."""
        if self._output.acquire(timeout=_FLUSH_TIMEOUT):
            try:
                self._write()
            finally:
                self._output.release()

    def close(self) -> None:
        """Ends the thread."""
        self._is_closed = True
        with suppress(RuntimeError):
            self._alarm.release()
        super().close()

    def _forget_process(self) -> None:
        """Threads do not live on in a forked process, and what waits here is written by the one it comes from."""
        self._process = os.getpid()
        self._waiting: deque[logging.LogRecord | str] = deque()
        self._dropped = 0
        self._has_thread = self._is_woken = False
        self._output = new_lock()  # held while something is written
        self._alarm = new_lock()  # released when there is something to write
        self._alarm.acquire()

    def _write_for_ever(self) -> None:
        while not self._is_closed:
            self._alarm.acquire()
            _sleep(_GATHERING)
            self._is_woken = False
            with self._output:
                self._write()

    def _write(self) -> None:
        lines = []
        while self._waiting:
            with suppress(IndexError):
                line = self._waiting.popleft()
                lines.append(line if isinstance(line, str) else self.format(line))
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            told = logging.LogRecord(__name__, logging.ERROR, "", 0, "%d records were dropped", (dropped,), None)
            lines.append(self.format(told))
        if lines:
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                self._stream.write("".join(lines))
                self._stream.flush()


def new_formatter(config: Config) -> logging.Formatter:
    """What makes lines of records, as ``log_format`` says; each ends with a newline."""
    return JsonFormatter() if config.log_format == "json" else TextFormatter()


def configure(config: Config, stream: TextIO | None = None) -> LineWriter:
    """Lets every record of the process go to ``stream``, stderr by default, as the settings say. Once per process; a
    process that is forked later keeps to it.
    """
    writer = LineWriter(sys.stderr if stream is None else stream)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, LineWriter)] + [writer]
    reconfigure(config)
    return writer


def reconfigure(config: Config) -> None:
    """Lets the settings hold from now on for what ``configure`` set up; without that it does nothing."""
    root = logging.getLogger()
    for writer in root.handlers:
        if isinstance(writer, LineWriter):
            writer.setFormatter(new_formatter(config))
            root.setLevel(logging.DEBUG if config.debug else config.log_level.upper())
            access_logger.setLevel(logging.NOTSET if config.access_log else logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_text:
        return record.exc_text
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _BASE_FIELDS}
