# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, nonecheck=False
# cython: auto_pickle=False, freethreading_compatible=False
"""What each message passes through, compiled: the same as ``pure``, and more of it. Linux only.

Comes in: ready sockets, messages that are pushed. Goes out: messages to mailboxes, handlers and hooks; bytes to
sockets. Only the usual has a way through here: whole data frames on an open, plain, uncompressed connection, and
mailboxes with room. Whatever else comes is given to the Python class that is built on these, at the byte where it
begins, so that there is one place for each rule.

The interpreter's lock guards what is here: nothing in this file lets go of it but where it says ``nogil``, and no
Python code runs between a look at something and what follows from it. Where Python code of a subclass takes several
steps, it holds a ``Lock`` and everybody here keeps away meanwhile.

A thread that handles messages reads its own socket while it waits for the next one (``LinkCore.wait``): one wake-up a
message instead of two, and none of the loop. The connection is *lent* to it meanwhile. It goes back to the loop with
the first byte that is not usual, when it is to be closed, and when the thread has been away for a tick.
"""

include "waiting.pxi"
include "mailboxes.pxi"
include "link.pxi"
include "loop.pxi"
