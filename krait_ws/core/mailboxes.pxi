# The two queues between a handler and the network loop, without what is rare; see mailbox.py for what is meant.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject

from krait_ws.core.sizes import memory_size, no_one


cdef extern from "Python.h":
    int PyList_SetSlice(object, Py_ssize_t, Py_ssize_t, PyObject*) except -1
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL
    bint PyUnicode_IS_COMPACT_ASCII(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    void* PyUnicode_DATA(object)

cdef extern from *:
    """
    #define krait_is_ascii(text) (PyUnicode_IS_READY(text) && PyUnicode_IS_COMPACT_ASCII(text))
    #if PY_VERSION_HEX >= 0x030C0000
    #undef krait_is_ascii
    #define krait_is_ascii(text) PyUnicode_IS_COMPACT_ASCII(text)
    #endif
    """
    bint krait_is_ascii(object)

cdef enum:
    FIN_BIT = 0x80
    TEXT_OPCODE = 0x1
    BINARY_OPCODE = 0x2
    MOST_DEFERRED = 256  # frames


cdef inline Py_ssize_t item_size(item) except -1:
    if type(item) is bytes:
        return PyBytes_GET_SIZE(item)
    if type(item) is str:
        return PyUnicode_GET_LENGTH(item) if krait_is_ascii(item) else 4 * PyUnicode_GET_LENGTH(item)
    return memory_size(item)


cdef class InQueue:
    cdef list _items
    cdef Py_ssize_t _head  # how many of them have been popped
    cdef object _limits
    cdef Py_ssize_t _max_messages, _max_bytes, _bytes
    cdef bint _full, _waits, _closed
    cdef Waiters _poppers, _room_waiters
    cdef public object on_room, on_drained
    cdef LinkCore link  # the connection that a thread may read by itself

    def __init__(self, limits):
        self.limits = limits
        self.on_room = self.on_drained = no_one
        self._items = []
        self._waits = True
        self._poppers = Waiters()
        self._room_waiters = Waiters()

    def __len__(self):
        return self._length()

    cdef inline Py_ssize_t _length(self):
        return PyList_GET_SIZE(self._items) - self._head

    @property
    def limits(self):
        return self._limits

    @limits.setter
    def limits(self, limits):
        self._limits = limits
        self._max_messages = limits.max_in_messages
        self._max_bytes = limits.max_in_bytes

    @property
    def is_drained(self):
        return self._length() == 0 and bool(self._poppers)

    @property
    def is_full(self):
        return self._full

    cpdef bint put(self, list messages, wake=wake_all) except -1:
        if self._closed:
            return True
        waiters = self._append(messages)
        if waiters:
            wake(waiters)
        self._interrupt()
        return not self._full

    cdef _append(self, list messages):
        """Returns who is to be woken."""
        cdef Py_ssize_t size = 0
        for item in messages:
            size += item_size(item)
        self._items.extend(messages)
        self._bytes += size
        if self._bytes >= self._max_bytes or self._length() >= self._max_messages:
            self._full = self._waits
        return self._poppers.take_locked(PyList_GET_SIZE(messages))

    cdef _take(self):
        cdef list items = self._items
        cdef Py_ssize_t size
        item = items[self._head]
        items[self._head] = None
        self._head += 1
        if self._head == PyList_GET_SIZE(items):
            items.clear()
            self._head = 0
        elif self._head > 256 and self._head * 2 > PyList_GET_SIZE(items):
            del items[:self._head]
            self._head = 0
        size = item_size(item)
        self._bytes -= size
        if self._full and self._length() * 2 <= self._max_messages and self._bytes * 2 <= self._max_bytes:
            self._full = False
            wake_all(self._room_waiters.take_all_locked())
            self.on_room()
        return item

    cpdef pop(self, timeout=0):
        cdef double deadline = 0
        cdef bint is_last = False
        cdef LinkCore link
        while True:
            link = self.link  # named here: it may be taken from the mailbox during a wait
            if self._length():
                return self._take()
            if self._closed or not self._waits or is_last or timeout == 0:
                if link is not None:
                    link.come_back()
                return None
            if timeout is None:
                remaining = None
            else:
                if not deadline:
                    deadline = krait_now() + bounded(timeout)
                remaining = deadline - krait_now()
            if link is not None and link.may_wait():
                is_last = not link.wait(-1 if remaining is None else bounded(remaining))
            else:
                if link is not None:
                    link.come_back()
                is_last = not self._wait(remaining)

    cdef bint _wait(self, remaining) except -1:
        """Waits for ``put``. Returns whether it was woken."""
        cdef Waiter waiter = self._poppers.add_locked()
        cdef bint woken = False
        try:
            if self.on_drained is not no_one:
                self.on_drained()
            # The collector may have run other threads since the look that found nothing.
            woken = self._length() or self._closed or not self._waits or waiter.wait(remaining)
        finally:
            self._leave(waiter, woken)
        return woken

    cdef _leave(self, Waiter waiter, bint woken):
        # After a timeout or an exception, a wake-up that came too late goes to the next in line.
        if not self._poppers.remove_locked(waiter) and not woken and self._length():
            wake_all(self._poppers.take_locked(1))

    def wait_for_room(self):
        cdef Waiter waiter
        if not self._closed and self._full:
            waiter = self._room_waiters.add_locked()
            if self._closed or not self._full:  # the collector may have run others
                self._room_waiters.remove_locked(waiter)
            else:
                waiter.wait(None)

    def end_waiting(self):
        self._waits = False
        self._full = False
        self._wake_everyone()

    def close(self):
        self._closed = True
        self._wake_everyone()

    cdef _wake_everyone(self):
        waiters = [*self._poppers.take_all_locked(), *self._room_waiters.take_all_locked()]
        wake_all(waiters)
        self._interrupt()

    cdef _interrupt(self):
        """A thread that waits for the socket has something else to look at."""
        if self.link is not None:
            self.link.interrupt()


cdef bytes encoded(message):
    """A frame of ``str`` or ``bytes``."""
    cdef Py_ssize_t size
    cdef const char* data
    cdef int first
    cdef uint8_t head[10]
    cdef size_t start
    if type(message) is bytes:
        data = PyBytes_AS_STRING(message)
        size = PyBytes_GET_SIZE(message)
        first = FIN_BIT | BINARY_OPCODE
    elif krait_is_ascii(message):
        data = <const char*>PyUnicode_DATA(message)
        size = PyUnicode_GET_LENGTH(message)
        first = FIN_BIT | TEXT_OPCODE
    else:
        payload = message.encode()  # the text itself would keep what it is encoded to
        data = PyBytes_AS_STRING(payload)
        size = PyBytes_GET_SIZE(payload)
        first = FIN_BIT | TEXT_OPCODE
    start = krait_head(head, first, size)
    frame = PyBytes_FromStringAndSize(NULL, start + size)
    memcpy(PyBytes_AS_STRING(frame), head, start)
    memcpy(PyBytes_AS_STRING(frame) + start, data, size)
    return frame


cdef class OutQueue:
    cdef object _limits
    cdef Py_ssize_t _max_messages, _max_bytes
    cdef readonly Lock _lock
    cdef public list frames
    cdef public Py_ssize_t _bytes
    cdef public bint _signalled, _closed, _has_fragments
    cdef public object _held  # what was pushed since a fragmented message began
    cdef public Waiters _pushers
    cdef public object on_output, on_overflow
    cdef public long long taken
    cdef LinkCore link  # the connection, while it takes frames as they are

    def __init__(self, limits):
        self.limits = limits
        self.on_output = self.on_overflow = no_one
        self._lock = Lock()
        self.frames = []
        self._pushers = Waiters()

    def __len__(self):
        return PyList_GET_SIZE(self.frames)

    @property
    def limits(self):
        return self._limits

    @limits.setter
    def limits(self, limits):
        self._limits = limits
        self._max_messages = limits.max_out_messages
        self._max_bytes = limits.max_out_bytes

    @property
    def is_congested(self):
        return self._is_congested()

    cdef inline bint _is_congested(self):
        return self._bytes * 2 > self._max_bytes or PyList_GET_SIZE(self.frames) * 2 > self._max_messages

    cdef inline bint _takes(self, bytes frame):
        """Whether a frame can be appended without a further look."""
        return (
            not self._lock.held
            and not self._closed
            and self._held is None
            and self._has_room(PyBytes_GET_SIZE(frame))
        )

    cdef inline bint _has_room(self, Py_ssize_t size):
        return PyList_GET_SIZE(self.frames) == 0 or (
            PyList_GET_SIZE(self.frames) < self._max_messages and self._bytes + size <= self._max_bytes
        )

    def _has_room_locked(self, Py_ssize_t size):
        return self._has_room(size)

    def send(self, message):
        if type(message) is str or type(message) is bytes:
            return self.push(encoded(message))
        return self.send_other(message)

    def push(self, bytes frame, *, bint may_block=True):
        cdef LinkCore link = self.link
        if not self._takes(frame):
            return self.push_with_care(frame, may_block=may_block)
        if link is not None and link.is_lent_to_caller():
            if PyList_GET_SIZE(self.frames) == 0 and link.send_answer(frame):
                return True
            if link.puts_off() and self._stays_half_empty(frame):
                self._append(frame)  # its thread sends it when it has answered the rest, or the loop with the next tick
                return True
        self._append(frame)
        if not self._signalled:
            self._signalled = True
            if link is None or not link.will_be_flushed():
                self.on_output()
        return True

    cdef inline bint _stays_half_empty(self, bytes frame):
        """Whether it has room for as much again when it has taken a frame of which nobody is told. What the policy for a
        full one does is for slow clients."""
        cdef Py_ssize_t count = PyList_GET_SIZE(self.frames)
        return (
            count < MOST_DEFERRED
            and (count + 1) * 2 <= self._max_messages
            and (self._bytes + PyBytes_GET_SIZE(frame)) * 2 <= self._max_bytes
        )

    cdef inline _append(self, bytes frame):
        self.frames.append(frame)
        self._bytes += PyBytes_GET_SIZE(frame)

    def take(self, Py_ssize_t max_bytes):
        if self._lock.held or self._bytes > max_bytes or self._has_fragments:
            return self.take_with_care(max_bytes)
        fresh = []  # made first: the collector may run others
        frames, self.frames = self.frames, fresh
        self._note_taken(len(frames))
        self._wake_pushers()
        return frames

    cdef inline _note_taken(self, Py_ssize_t count):
        """The list is empty: what waited is on its way."""
        self._bytes = 0
        self._signalled = False
        self.taken += count

    cdef inline _wake_pushers(self):
        if self._pushers._waiters is not None:
            wake_all(self._pushers.take_all_locked())
