# Waits of threads and greenlets; see waiting.py for what is meant.

from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport uint8_t

from krait_ws.core.hubs import LONGEST, ON_LOOP, get_hub_if_exists, getcurrent, is_served, new_lock, switch_to


cdef extern from "pythread.h":
    ctypedef void* PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock)
    int PyThread_acquire_lock(PyThread_type_lock, int) nogil
    void PyThread_release_lock(PyThread_type_lock)
    unsigned long PyThread_get_thread_ident() nogil


cdef double bounded(timeout) except -1:
    return min(max(0.0, <double>timeout), <double>LONGEST)


cdef class Lock:
    """A native lock. ``held`` tells whoever has the interpreter that somebody is in the middle of something."""

    cdef PyThread_type_lock _lock
    cdef readonly bint held

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._lock is not NULL:
            PyThread_free_lock(self._lock)

    def __enter__(self):
        if not PyThread_acquire_lock(self._lock, 0):
            with nogil:
                PyThread_acquire_lock(self._lock, 1)
        self.held = True

    def __exit__(self, *_):
        self.held = False
        PyThread_release_lock(self._lock)


cdef class Waiter:
    cpdef bint wait(self, timeout) except -1:
        raise NotImplementedError

    cpdef wake(self):
        raise NotImplementedError


cdef class ThreadWaiter(Waiter):
    cdef object _lock

    def __init__(self):
        self._lock = new_lock()
        self._lock.acquire()

    cpdef bint wait(self, timeout) except -1:
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(True, bounded(timeout))

    cpdef wake(self):
        self._lock.release()


cdef class GreenletWaiter(Waiter):
    cdef object _hub, _greenlet
    cdef bint _woken

    def __init__(self, hub):
        self._hub = hub

    cpdef bint wait(self, timeout) except -1:
        # The greenlet is named before the flag is read: a wake from another thread after that finds it.
        self._greenlet = getcurrent()
        if self._woken:
            self._greenlet = None
            return True
        hub = self._hub
        timer = None
        if timeout is not None or not is_served(hub):
            timer = hub.loop.timer(<double>LONGEST if timeout is None else bounded(timeout))
            timer.start(self._resume)
        try:
            switch_to(hub)
        finally:
            self._greenlet = None
            if timer is not None:
                timer.close()
        return self._woken

    cpdef wake(self):
        self._woken = True
        hub = self._hub
        if getcurrent() is hub:
            self._resume()  # on the loop itself: it runs now, until it waits again
        elif get_hub_if_exists() is hub:
            hub.loop.run_callback(self._resume)
        else:
            hub.loop.run_callback_threadsafe(self._resume)

    def _resume(self):
        sleeper, self._greenlet = self._greenlet, None
        if sleeper is not None:
            switch_to(sleeper)


cdef class Waiters:
    cdef list _waiters

    def __bool__(self):
        return self._waiters is not None and PyList_GET_SIZE(self._waiters) > 0

    cpdef Waiter add_locked(self):
        hub = get_hub_if_exists()
        cdef Waiter waiter
        if hub is None:
            waiter = ThreadWaiter()
        elif getcurrent() is hub:
            raise RuntimeError(ON_LOOP)
        else:
            waiter = GreenletWaiter(hub)
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        return waiter

    cpdef bint remove_locked(self, Waiter waiter):
        if self._waiters is None or waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        return True

    cpdef move_all_locked(self, Waiters other):
        if self._waiters:
            other._waiters = [*(other._waiters or ()), *self._waiters]
            self._waiters = None

    cpdef take_locked(self, Py_ssize_t most):
        cdef list taken, waiters
        if self._waiters is None:
            return ()
        taken = []  # made first: the collector may let others run
        waiters, self._waiters = self._waiters, None
        if waiters is None or PyList_GET_SIZE(waiters) <= most:
            return waiters or ()
        while PyList_GET_SIZE(taken) < most:
            taken.append(waiters.pop(0))
        self._waiters = waiters
        return taken

    cpdef take_all_locked(self):
        if not self._waiters:
            return ()
        waiters, self._waiters = self._waiters, None
        return waiters


cpdef wake_all(waiters):
    for waiter in waiters:
        waiter.wake()
