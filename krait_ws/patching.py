"""Whether blocking calls of the standard library give way to other greenlets.

In a patched process ``time.sleep``, sockets, locks and queues switch to the network loop's hub while they wait, so
thousands of handlers can block on one thread. It is decided once, before anything else is imported: what copied a
function before keeps the one that blocks.
"""

from __future__ import annotations

from gevent import monkey

from krait_ws.errors import ConfigError


def patch_standard_library() -> None:
    """Replaces what blocks by what cooperates, for the whole process. Called by: the main thread, as its first act."""
    monkey.patch_all()


def is_patched() -> bool:
    """Whether a new ``threading.Thread`` is a greenlet."""
    return bool(monkey.is_module_patched("threading"))


def check_runs_on(runs_on: str | None, whose: str) -> None:
    """Refuses ``"thread"`` where there are no threads: it would run, and block, on the network loop.

    Args:
        runs_on: What somebody asked for.
        whose: Who, for the error.

    Raises:
        ConfigError: It cannot be had in this process.
    """
    if runs_on == "thread" and is_patched():
        raise ConfigError(
            f"{whose}: runs_on = 'thread' cannot be had in a process whose standard library is patched by gevent "
            "(--runs-on greenlet does that): use 'greenlet', or serve with --runs-on thread"
        )
