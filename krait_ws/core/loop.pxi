# The network loop's turn; see network/loop.py for what is meant.

from cpython.dict cimport PyDict_GetItem


cdef extern from "Python.h":
    char* PyByteArray_AS_STRING(object)

cdef enum:
    READ = 1
    WRITE = 2
    HANGUP = 4
    MOST_EVENTS = 256


cdef inline int events_of(unsigned int mask):
    if mask == EPOLLIN:
        return READ
    if mask == EPOLLOUT:
        return WRITE
    if mask == EPOLLRDHUP:
        return HANGUP
    if mask == (EPOLLRDHUP | EPOLLOUT):
        return HANGUP | WRITE
    return READ | WRITE


cdef class LoopCore:
    cdef public object in_hook
    cdef public double now
    cdef public bint _scheduled
    cdef public bint _woken  # another thread has something for the loop
    cdef readonly bytearray buffer
    cdef readonly Py_ssize_t buffer_size
    cdef uint8_t* _data
    cdef list _dirty  # connections with something to send
    cdef list _active  # connections that are lent to threads which got a message lately
    cdef bint _ticks
    cdef unsigned long _thread
    cdef int _epoll, _hub_descriptor
    cdef public int linger  # microseconds
    cdef Linger _pauses
    cdef epoll_event* _events

    def __cinit__(self, *_, **__):
        self._epoll = -1
        self._events = <epoll_event*>malloc(MOST_EVENTS * sizeof(epoll_event))
        if self._events is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._events)

    def __init__(self, buffer_size):
        self.buffer = bytearray(buffer_size)
        self.buffer_size = buffer_size
        self._data = <uint8_t*>PyByteArray_AS_STRING(self.buffer)
        self._dirty = []
        self._active = []
        self._thread = PyThread_get_thread_ident()

    def watches_with(self, epoll, int hub_descriptor):
        self._epoll = epoll.fileno()
        self._hub_descriptor = hub_descriptor

    def serve_epoll(self, epoll, dict owners, int most):
        cdef int count = epoll_wait(self._epoll, self._events, min(most, MOST_EVENTS), 0)
        cdef int at
        if count <= 0:
            return 0
        self._scheduled = True
        self.now = krait_now()
        for at in range(count):
            owner = owners.get(self._events[at].data.fd)
            if owner is not None:
                try:
                    self._serve_one(owner, self._events[at].events)
                except Exception:
                    self._failed(owner)
        self._run_soon()
        return count

    def lingers(self):
        cdef bint is_ready
        if not self.linger or self._hub_descriptor < 0 or self._scheduled or not krait_may_linger(&self._pauses):
            return False
        with nogil:
            is_ready = krait_linger(&self._pauses, self.linger, self._hub_descriptor, -1, &self._woken)
        return is_ready

    cdef _serve_one(self, owner, unsigned int mask):
        cdef LinkCore link
        if not isinstance(owner, LinkCore):
            owner.on_ready(events_of(mask))
            return
        link = owner
        if mask == EPOLLIN and link.usual and link._reading:
            if not link._lent:  # else it is its thread's
                link.read()
            return
        if link._held.size and not link._lent:
            link.put_back(link._held.data, link._held.size)  # the reader in Python begins with it
        link.on_ready(events_of(mask))

    @property
    def is_dirty(self):
        return PyList_GET_SIZE(self._dirty) > 0

    def flush_dirty(self):
        cdef LinkCore link
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        for item in dirty:
            link = item
            link._is_dirty = False
            try:
                link.send_now()
            except Exception:
                self._failed(link)

    cdef _note_active(self, LinkCore link):
        if not link._is_active:
            link._is_active = True
            self._active.append(link)
            if not self._ticks:
                self._ticks = True
                self.call(self._start_ticking)

    def tick(self):
        """Returns whether there is to be another one."""
        cdef LinkCore link
        active, self._active = self._active, []
        for item in active:
            link = item
            link._is_active = False
            try:
                if link.tick() and not link._is_active:
                    link._is_active = True
                    self._active.append(link)
            except Exception:  # the others are to have their tick all the same
                self._failed(link)
        self._ticks = bool(self._active)
        return self._ticks
