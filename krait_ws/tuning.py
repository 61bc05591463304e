"""What a serving process asks of its system, to keep freed memory and to find one sleeping thread among thousands; and
of Python, not to look for garbage in what is there for good.

Where the system knows nothing of it, nothing happens.
"""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_PR_FUTEX_HASH, _PR_FUTEX_HASH_SET_SLOTS = 78, 1  # of linux/prctl.h, since Linux 6.16
_SLOTS = 4096  # 256 KB


def tune_process() -> None:
    """What the system is asked. To be called once in each process that serves, before it has threads."""
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    _keep_freed_memory(library)
    _spread_sleepers(library)


def keep_what_is_loaded() -> None:
    """Takes what is loaded by now out of every later search for garbage: with all the modules of a server a search
    holds up the network loop for 10 to 15 ms, and there are several a second while many connections come and go. To be
    called once in each process that serves, before the first connection."""
    gc.collect()
    gc.freeze()


def _keep_freed_memory(library: ctypes.CDLL) -> None:
    """Else glibc gives each buffer of a large message back to the system and takes it anew, with a page fault per
    4 KiB: 408 µs of CPU for an echo of 1 MiB, 358 with this."""
    try:
        mallopt = library.mallopt
    except AttributeError:  # another C library
        return
    for option, size in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20), (_M_TOP_PAD, 4 << 20)):
        mallopt(option, size)


def _spread_sleepers(library: ctypes.CDLL) -> None:
    """A newer Linux keeps the sleeping threads of a process in a table of four lists a processor; each wake-up walks
    along one: with 15,000 handlers waiting it took 139 µs of an echo, 26 with this. An older one refuses it."""
    library.prctl(_PR_FUTEX_HASH, _PR_FUTEX_HASH_SET_SLOTS, _SLOTS, 0, 0)
