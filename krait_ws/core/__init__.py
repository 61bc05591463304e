"""What each message passes through: mailboxes, the session's and the connection's part of it, the loop's turn.

There are two of it with the same names: ``compiled`` (Cython, Linux), and ``pure`` where it cannot be compiled or
``KRAIT_PURE_PYTHON`` is set to anything. The classes that the rest of the package knows are built on these: they add
what is rare, once for both. What the methods do is said in ``pure``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("KRAIT_PURE_PYTHON"):
    from krait_ws.core import pure as core
else:
    try:
        from krait_ws.core import compiled as core
    except ImportError:  # it could not be compiled where krait-ws was installed
        from krait_ws.core import pure as core

IS_COMPILED = core.__name__.endswith(".compiled")
"""Whether the compiled one is in use."""

InQueue = core.InQueue
LinkCore = core.LinkCore
Lock = core.Lock
LoopCore = core.LoopCore
OutQueue = core.OutQueue
SessionCore = core.SessionCore
Waiter = core.Waiter
Waiters = core.Waiters
post_all = core.post_all
send_posted = core.send_posted
wake_all = core.wake_all
