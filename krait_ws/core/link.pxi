# A session and its connection, as far as a usual message needs them; see session.py and network/connection.py.

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef extern from "sockets.h":
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_wait(int, epoll_event*, int, int) nogil
    int epoll_ctl(int, int, int, epoll_event*) nogil
    unsigned int EPOLLIN, EPOLLOUT, EPOLLRDHUP
    int EPOLL_CTL_MOD
    ctypedef struct Frame:
        int first
        size_t start, size
    long long krait_frame(const uint8_t*, size_t, size_t, Frame*) nogil
    ctypedef struct Held:
        uint8_t* data
        size_t size, capacity
    void krait_drop_held(Held*) nogil
    bint krait_grow_held(Held*) nogil
    int krait_hold(Held*, const uint8_t*, size_t, size_t) nogil
    ssize_t krait_gather(int, double, size_t, bint, uint8_t**, Held*, size_t*, double*, int*) nogil
    void krait_mask(const uint8_t*, const uint8_t*, uint8_t*, size_t) nogil
    size_t krait_head(uint8_t*, int, size_t) nogil
    double krait_now() nogil
    int KRAIT_READY, KRAIT_TIMEOUT, KRAIT_SIGNAL
    int OWN_READ_SIZE "KRAIT_OWN_READ"
    bint krait_prepare()
    int KRAIT_INTERRUPTED
    void krait_enter(unsigned long*) nogil
    bint krait_leave(unsigned long*) nogil
    void krait_fence() nogil
    int krait_wait_readable(int, double) nogil
    ctypedef struct Linger:
        int left
    bint krait_may_linger(Linger*)
    bint krait_linger(Linger*, int, int, double, const bint*) nogil
    int FIRST_PAUSE "KRAIT_FIRST_PAUSE"
    ssize_t recv(int, void*, size_t, int) nogil
    ssize_t send(int, const void*, size_t, int) nogil
    int shutdown(int, int) nogil
    int MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR
    ctypedef unsigned long pthread_t
    pthread_t pthread_self() nogil
    int pthread_kill(pthread_t, int) nogil

cdef extern from "alloca.h":
    void* alloca(size_t) nogil

cdef extern from "Python.h":
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1
    object PyUnicode_DecodeUTF8(const char*, Py_ssize_t, const char*)

cdef enum:
    READ_SIZE = 16 * 1024
    JOIN_SIZE = 64 * 1024
    MOST_FRAMES = 256  # in one turn

    QUICK_AFTER = 4  # turns
    SLOW_FOR = 64  # turns
    MISS = 8
    MOST_MISSES = 16

cdef double QUICK = 0.0005  # seconds

cdef bint can_lend = krait_prepare()


cdef struct Chunk:
    PyObject* owner  # a frame, or NULL for memory of its own
    uint8_t* data
    Py_ssize_t size


cdef inline void hold_chunk(Chunk* chunk, bytes frame):
    chunk.owner = <PyObject*>frame
    Py_INCREF(frame)
    chunk.data = <uint8_t*>PyBytes_AS_STRING(frame)
    chunk.size = PyBytes_GET_SIZE(frame)


cdef inline void release_chunk(Chunk* chunk):
    if chunk.owner is not NULL:
        Py_DECREF(<object>chunk.owner)
    else:
        free(chunk.data)


cdef class SessionCore:
    cdef public long long bytes_in, bytes_out, messages_in
    cdef public bint _ended, _delivers_on_loop
    cdef public InQueue arrivals
    cdef public OutQueue outgoing
    cdef public object _context, _hook, _in_lock, _rest, _wake, _transport
    cdef public int shared_window


def post_all(list sessions, bytes frame, own_frame, list news):
    cdef Py_ssize_t queued = 0
    cdef SessionCore session
    cdef OutQueue outgoing
    cdef bytes own
    for item in sessions:
        session = item
        own = own_frame(session) if session.shared_window else frame
        outgoing = session.outgoing
        if not outgoing._takes(own):
            queued += bool(outgoing.push_with_care(own, may_block=False))
            continue
        outgoing._append(own)
        queued += 1
        if not outgoing._signalled:
            outgoing._signalled = True
            news.append(session)
    return queued


def send_posted(list sessions):
    cdef SessionCore session
    for item in sessions:
        session = item
        transport = session._transport
        if isinstance(transport, LinkCore):
            (<LinkCore>transport).send_now()
        elif transport is not None:
            transport.send_now()


cdef class LinkCore:
    cdef public LoopCore _loop
    cdef public SessionCore _session
    cdef public object _sock
    cdef public int _descriptor
    cdef public object _unsent  # the rest of a chunk that the socket did not take
    cdef public object _unread  # what was read, and comes before anything else that is
    cdef public object stuck_since, _in_system
    cdef public double heard_at
    cdef public bint _reading
    cdef public bint usual  # whole frames may come, and are messages
    cdef public bint writable  # frames may go out as they are
    cdef public bint sending  # the loop has frames in its hands that have not gone yet
    cdef public Py_ssize_t max_size
    cdef bint _lends, _lent, _is_active, _is_dirty, _wants_flush
    cdef bint _waiting  # its thread waits for the socket
    cdef bint _is_wanted  # somebody has interrupted that
    cdef bint _is_away  # it is in a call of the system with it
    cdef unsigned long _borrower
    cdef pthread_t _thread
    cdef long _turn, _seen_turn
    cdef int _answers  # that its thread may send at once
    cdef double _left_at  # when its thread got something to do
    cdef int _quick_turns
    cdef unsigned long _place  # at the interpreter's door
    cdef int _misses, _detour, _next_detour  # turns that it takes without it
    cdef Linger _linger
    cdef object _doomed
    cdef Held _held
    cdef Py_ssize_t _last_frame  # bytes; the next is likely to be as large

    def __dealloc__(self):
        krait_drop_held(&self._held)

    # ---- on the loop

    def connect(self):
        self._session.outgoing.link = self

    def disconnect(self):
        self.usual = self.writable = False
        self._session.outgoing.link = None
        if self._session.arrivals is not None:
            self._session.arrivals.link = None

    cdef read(self):
        """What the socket has, when only the usual is to be expected."""
        cdef LoopCore loop = self._loop
        cdef uint8_t* data = loop._data
        cdef list messages = []  # made first: the collector may let a thread run, which would read on
        cdef Py_ssize_t size = READ_SIZE
        cdef Py_ssize_t had = self._held.size
        cdef ssize_t length
        if had:
            if not krait_grow_held(&self._held):
                raise MemoryError
            data = self._held.data
            size = min(<Py_ssize_t>self._held.capacity - had, loop.buffer_size)
        elif self._last_frame > READ_SIZE:
            size = loop.buffer_size
        length = recv(self._descriptor, data + had, size, MSG_DONTWAIT)
        if length <= 0:
            if length == 0 or (errno != EAGAIN and errno != EINTR):
                self._gone()
            return
        self.heard_at = loop.now
        self._session.bytes_in += length
        self.take_apart(data, had + length, messages)
        if messages and not self.deliver(messages):
            self._pause_reading()
        if self._unread:
            self._receive_unread()

    cdef take_apart(self, uint8_t* data, Py_ssize_t length, list messages):
        """Parses what has been read, behind what is held or by itself, and holds the part of a frame at its end. Before
        others run: whoever reads the socket now reads what comes behind this."""
        cdef Py_ssize_t used
        cdef int held
        if data == self._held.data:
            self._held.size = length
        used = self.parse(data, length, messages)
        if used == length:
            if self._held.data is not NULL:
                krait_drop_held(&self._held)
            return
        held = krait_hold(&self._held, data + used, length - used, self.max_size)
        if held == 0:
            self.put_back(data + used, length - used)
        elif held < 0:
            self.put_back(self._held.data, self._held.size)

    cdef Py_ssize_t parse(self, uint8_t* data, Py_ssize_t length, list messages) except -1:
        """Returns the place of the first byte that is not usual."""
        cdef Py_ssize_t at = 0
        cdef int count = 0
        cdef long long whole
        cdef Frame frame
        cdef uint8_t* payload
        while at < length and count < MOST_FRAMES:
            whole = krait_frame(data + at, length - at, self.max_size, &frame)
            if whole <= 0 or whole > length - at:
                break
            payload = data + at + frame.start
            if frame.first == FIN_BIT | BINARY_OPCODE:
                item = PyBytes_FromStringAndSize(NULL, frame.size)
                krait_mask(payload - 4, payload, <uint8_t*>PyBytes_AS_STRING(item), frame.size)
            else:
                krait_mask(payload - 4, payload, payload, frame.size)
                try:
                    item = PyUnicode_DecodeUTF8(<char*>payload, frame.size, NULL)
                except UnicodeDecodeError:
                    krait_mask(payload - 4, payload, payload, frame.size)
                    break
            messages.append(item)
            at += whole
            count += 1
            self._last_frame = whole
        return at

    cdef bint deliver(self, list messages) except -1:
        """Returns whether the socket may be read on."""
        cdef SessionCore session = self._session
        session.messages_in += PyList_GET_SIZE(messages)
        if not session._delivers_on_loop:
            return session.arrivals is None or session.arrivals.put(messages, session._wake)
        if session._rest:
            return session.receive(messages)
        self._loop.in_hook = session
        try:
            PyContext_Enter(session._context)
            try:
                self.call_hook(session, messages)
            finally:
                PyContext_Exit(session._context)
        except BaseException as error:
            session.hook_raised(error)
        finally:
            self._loop.in_hook = None
        if PyList_GET_SIZE(session.outgoing.frames) and session.outgoing._is_congested():
            return False
        return session.arrivals is None or not session.arrivals._full

    cdef call_hook(self, SessionCore session, list messages):
        cdef OutQueue outgoing = session.outgoing
        cdef Py_ssize_t at
        hook = session._hook
        lock = session._in_lock if session._in_lock is not None else session.in_lock
        lock.acquire()
        try:
            for at in range(PyList_GET_SIZE(messages)):
                if session._ended:
                    return
                if PyList_GET_SIZE(outgoing.frames) and outgoing._is_congested():
                    session._rest = messages[at:]
                    return
                hook(messages[at])
        finally:
            lock.release()

    cpdef send_now(self):
        """Sends what waits; leaves to Python what is not just frames on an open connection."""
        cdef OutQueue outgoing = self._session.outgoing
        if self._sock is None or self._unsent is not None:
            return
        if self.sending or not self.send_frames(outgoing) or not self._reading:
            self.flush()

    cdef bint send_frames(self, OutQueue outgoing) except -1:
        """Returns whether nothing is left to be done that it does not know of."""
        cdef Chunk chunk
        if not self.take_chunk(outgoing, &chunk):
            return False
        try:
            if chunk.size:
                self.write(&chunk, False)
        finally:
            release_chunk(&chunk)
        outgoing._wake_pushers()
        return True

    cdef bint take_chunk(self, OutQueue outgoing, Chunk* chunk) except -1:
        """Takes all that waits. Returns ``False`` when it is more than one call should send, or not just frames."""
        cdef list frames = outgoing.frames
        cdef Py_ssize_t count = PyList_GET_SIZE(frames)
        cdef bytes frame
        chunk.data = NULL
        chunk.owner = NULL
        chunk.size = 0
        if not self.writable or outgoing._lock.held or outgoing._has_fragments:
            return False
        if count == 0:
            outgoing._signalled = False
            return True
        if count == 1:
            hold_chunk(chunk, frames[0])
        elif outgoing._bytes <= JOIN_SIZE:
            chunk.data = <uint8_t*>malloc(outgoing._bytes)
            if chunk.data is NULL:
                raise MemoryError
            for item in frames:
                frame = item
                memcpy(chunk.data + chunk.size, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
                chunk.size += PyBytes_GET_SIZE(frame)
        else:
            return False
        frames.clear()  # a new list might let the collector run, and others with it
        outgoing._note_taken(count)
        return True

    cdef write(self, Chunk* chunk, bint is_own):
        """Sends a chunk; from the thread that the connection is lent to, others may run meanwhile."""
        cdef ssize_t sent
        cdef int error
        self._session.bytes_out += chunk.size
        if is_own:
            self.sending = self._is_away = True
            with nogil:
                sent = send(self._descriptor, chunk.data, chunk.size, MSG_DONTWAIT | MSG_NOSIGNAL)
                error = errno
            self._is_away = False
            self.note_sent(chunk, sent, error)
            self.end_sending()
            self._bury()
        else:
            sent = send(self._descriptor, chunk.data, chunk.size, MSG_DONTWAIT | MSG_NOSIGNAL)
            error = errno
            self.sending = True  # until the rest is noted: the collector may run others
            self.note_sent(chunk, sent, error)
            self.end_sending()

    cdef note_sent(self, Chunk* chunk, ssize_t sent, int error):
        """What the socket did not take. All was counted before it was sent: who has it may ask for the count."""
        cdef bint is_lost = sent < 0 and error != EAGAIN and error != EINTR
        sent = max(sent, 0)
        self._session.bytes_out -= chunk.size - sent
        if is_lost:
            self.usual = self.writable = False
            self._loop.call(self._gone)
        elif sent < chunk.size:
            if chunk.owner is NULL:
                self._unsent = memoryview(PyBytes_FromStringAndSize(<char*>chunk.data + sent, chunk.size - sent))
            else:
                self._unsent = memoryview(<object>chunk.owner)[sent:]
            self.stuck_since = krait_now()
            self._in_system = None
            self.rearm()

    def begin_sending(self):
        """Returns whether nobody else sends at the moment; else the loop will flush when they have."""
        if self.sending:
            self._wants_flush = True
            krait_fence()
            if self.sending:
                return False
            self._wants_flush = False  # the thread has sent it meanwhile, without the interpreter
        self.sending = True
        return True

    cpdef end_sending(self):
        self.sending = False
        self.flush_if_wanted()

    cdef flush_if_wanted(self):
        if self._wants_flush:
            self._wants_flush = False
            self._loop.call(self.flush)

    cdef _bury(self):
        """Closes a socket that was given up while this thread was in a call of the system with it."""
        if self._doomed is not None:
            self._lent = False
            doomed, self._doomed = self._doomed, None
            doomed.close()  # here: the loop may have ended meanwhile

    # ---- any thread

    cdef bint will_be_flushed(self) except -1:
        """On the loop's own thread: soon, and nobody need be told."""
        cdef LoopCore loop = self._loop
        if PyThread_get_thread_ident() != loop._thread:
            return False
        if not self._is_dirty:
            self._is_dirty = True
            loop._dirty.append(self)
            if not loop._scheduled:
                loop._schedule()
        return True

    # ---- lent to the thread that waits for its messages

    @property
    def is_lent(self):
        return self._lent

    def lend(self):
        """From now on the thread that takes its messages may read them."""
        self._lends = can_lend and self._loop._epoll >= 0
        self._linger.left = FIRST_PAUSE  # most connections never have so much to say
        self._session.arrivals.link = self

    cdef inline bint is_lent_to_caller(self):
        return self._lent and self._borrower == PyThread_get_thread_ident()

    cdef bint may_wait(self) except -1:
        return (
            self._lends
            and self.usual
            and self._reading
            and self._sock is not None
            and (not self._lent or (self._borrower == PyThread_get_thread_ident() and not self._waiting))
            and get_hub_if_exists() is None
        )

    cdef bint wait(self, double seconds) except -1:
        """Sends what its thread has put off, and waits until there may be something new, a message or another reason to
        look; below 0 for as long as it takes. Returns ``False`` when the time is up."""
        cdef int result = KRAIT_INTERRUPTED
        cdef int error = 0
        cdef ssize_t length = 0
        cdef ssize_t sent = 0
        cdef uint8_t* data = NULL
        cdef size_t taken = 0
        cdef Chunk chunk
        cdef InQueue arrivals = self._session.arrivals
        cdef OutQueue outgoing = self._session.outgoing
        cdef bint uses_door
        cdef bint is_look = False
        cdef bint is_alone, lingers
        cdef double until
        chunk.data = NULL
        chunk.owner = NULL
        chunk.size = 0
        if not self._lent:
            self._lent = True
            self._borrower = PyThread_get_thread_ident()
            self.rearm()
        self.note_turn()
        if not (self.may_write() and self.take_chunk(outgoing, &chunk)):
            self._tell(outgoing)
            if not self.is_lent_to_caller() or not self.usual or self._sock is None:
                return True  # others ran meanwhile, and took it back
        if arrivals._length() or arrivals._closed or not arrivals._waits:
            is_look = True  # it came while this looked elsewhere
        elif chunk.size and outgoing._pushers._waiters is not None:
            is_look = True  # there is room for them now
        if is_look:
            seconds = 0
        until = krait_now() + seconds if seconds > 0 else seconds
        # Several threads that linger would keep each other from the processor, and those who sleep from their turn.
        is_alone = PyList_GET_SIZE(self._loop._active) <= self._is_active
        lingers = self._loop.linger and seconds != 0 and is_alone and krait_may_linger(&self._linger)
        self._thread = pthread_self()
        self._waiting = self._is_away = True
        if chunk.size:
            self.sending = True  # else it may be the loop that sends
            self._session.bytes_out += chunk.size
        self._turn += 1
        with nogil:
            uses_door = self.chooses_door(krait_leave(&self._place))
            if chunk.size:
                sent = send(self._descriptor, chunk.data, chunk.size, MSG_DONTWAIT | MSG_NOSIGNAL)
                error = errno
                if sent == chunk.size:
                    self.sending = False
                    krait_fence()
            # What others push meanwhile is the loop's to send; it may have found this thread sending, and left it to it.
            if sent == chunk.size and not self._wants_flush:
                if lingers and krait_linger(
                    &self._linger, self._loop.linger, self._descriptor, until, &self._is_wanted
                ):
                    result = KRAIT_READY
                elif not self._is_wanted:
                    result = krait_wait_readable(self._descriptor, until)
            if result == KRAIT_READY:
                # Not before: what it calls would lie below, and take a page more of the stack while it waits.
                data = <uint8_t*>alloca(OWN_READ_SIZE)
                length = krait_gather(
                    self._descriptor,
                    until,
                    self.max_size,
                    self._last_frame > OWN_READ_SIZE,
                    &data,
                    &self._held,
                    &taken,
                    &self.heard_at,
                    &result,
                )
            if uses_door:
                krait_enter(&self._place)
        self._waiting = self._is_away = self._is_wanted = False
        self._turn += 1
        self._left_at = krait_now()
        try:
            if chunk.size:
                self.note_sent(&chunk, sent, error)
            if sent != chunk.size:
                self.sending = False
            self.flush_if_wanted()
            if self._doomed is not None:
                self._bury()
                return True
            self._session.bytes_in += taken
            if result == KRAIT_READY:
                self.take_own(data, length)
            if self._lent and (is_look or result != KRAIT_TIMEOUT):
                self._loop._note_active(self)  # whatever it has got to do, it may be away for long
            outgoing._wake_pushers()
        finally:
            release_chunk(&chunk)
        return is_look or result != KRAIT_TIMEOUT

    cdef inline bint chooses_door(self, bint kept_others) noexcept nogil:
        """Whether its thread comes back through the interpreter's door: not for a good while after the keeper had to open
        it for the others several times, because its handler waited for something else.

        Args:
            kept_others: It has this time.
        """
        if kept_others:
            self._misses += MISS
            if self._misses > MOST_MISSES:
                self._misses = 0
                self._detour = self._next_detour = min(2 * self._next_detour + 64, 4096)
        elif self._misses:
            self._misses -= 1
        if self._detour:
            self._detour -= 1
            return False
        return True

    cdef note_turn(self):
        """Its thread is back. While it is so soon, its answers are better sent by itself, together, when it is."""
        if self._left_at and krait_now() - self._left_at > QUICK:
            self._quick_turns = -SLOW_FOR
        elif self._quick_turns < QUICK_AFTER:
            self._quick_turns += 1

    cdef inline bint is_quick(self):
        return self._quick_turns >= QUICK_AFTER

    cdef take_own(self, uint8_t* data, ssize_t length):
        """What has been read."""
        cdef SessionCore session = self._session
        cdef list messages = []
        if length <= 0:
            self.usual = False  # the loop finds the same and knows what to do
            self.give_back()
            return
        self.take_apart(data, self._held.size if data == self._held.data else length, messages)
        if messages and not session.arrivals._closed:
            session.messages_in += PyList_GET_SIZE(messages)
            self._answers = 1
            wake_all(session.arrivals._append(messages))
        if self._unread:
            self._loop.call(self._receive_unread)

    cdef put_back(self, uint8_t* data, Py_ssize_t size):
        """The loop is to judge this before anybody reads on."""
        self._unread = PyBytes_FromStringAndSize(<char*>data, size)
        krait_drop_held(&self._held)
        self.usual = self._lent = False

    cdef bint send_answer(self, bytes frame) except -1:
        """Sends the first answer to what was read at once. Further ones are better sent together."""
        cdef Chunk chunk
        if not self._answers or not self.may_write() or self.puts_off():
            return False
        self._answers = 0
        self._session.outgoing.taken += 1
        hold_chunk(&chunk, frame)
        try:
            self.write(&chunk, True)
        finally:
            release_chunk(&chunk)
        return True

    cdef inline bint puts_off(self):
        """Whether its thread will be back soon, to send all its answers together."""
        return self.is_quick() or self._session.arrivals._length() > 0

    cdef inline bint may_write(self):
        return self.writable and self._unsent is None and not self.sending and self._sock is not None

    cdef _tell(self, OutQueue outgoing):
        """The loop is to send what its thread has put off."""
        if PyList_GET_SIZE(outgoing.frames) and not outgoing._signalled:
            outgoing._signalled = True
            outgoing.on_output()

    cdef come_back(self):
        """Its thread leaves without a message, or to wait for something else."""
        if self._borrower == PyThread_get_thread_ident():
            krait_leave(&self._place)
            if self._lent:
                self.give_back()

    cdef give_back(self):
        if self._held.size:
            self.put_back(self._held.data, self._held.size)
        self._lent = False  # first: others may run from here on
        krait_leave(&self._place)
        self._tell(self._session.outgoing)
        if self._unread:
            self._loop.call(self._receive_unread)
        else:
            self.rearm()

    cdef rearm(self):
        """Tells the poller what to watch now: without a look at its books, which belong to the loop."""
        cdef epoll_event event
        if self._sock is None:
            return
        if self._loop._epoll < 0 or not self._reading:
            self._loop.call(self._watch)
            return
        event.events = (0 if self._lent else EPOLLIN) | (EPOLLOUT if self._unsent is not None else 0)
        event.data.fd = self._descriptor
        epoll_ctl(self._loop._epoll, EPOLL_CTL_MOD, self._descriptor, &event)

    cdef interrupt(self):
        """There is something to look at besides the socket."""
        if self._waiting:
            self._is_wanted = True
            pthread_kill(self._thread, KRAIT_SIGNAL)
            self._loop._note_active(self)  # which does it again, should it have come just before the wait

    def recall(self):
        """The loop wants to read on."""
        if self._waiting:
            self.interrupt()
        elif self._lent:
            self.give_back()

    def leave_to_waiter(self, sock):
        """A socket may not be closed while a thread waits for it: then it closes it. Returns whether it does."""
        if not self._is_away:
            self._lent = False
            krait_drop_held(&self._held)
            return False
        self._doomed = sock
        shutdown(self._descriptor, SHUT_RDWR)  # wakes it for sure
        return True

    cdef bint tick(self) except -1:
        """Takes the connection back from a thread that has been away since the last tick, or sends what it has put off.
        Returns whether to look again."""
        cdef bint is_same = self._turn == self._seen_turn
        self._seen_turn = self._turn
        if self._waiting and self._is_wanted:
            pthread_kill(self._thread, KRAIT_SIGNAL)
            return True
        if not self._lent or self._sock is None:
            return False
        if self._waiting:
            return not is_same
        if PyList_GET_SIZE(self._session.outgoing.frames):
            self._quick_turns = -SLOW_FOR
            self._tell(self._session.outgoing)
            is_same = is_same and self._turn == self._seen_turn  # its thread may have come back meanwhile
        if is_same and self._lent:
            self.give_back()
        return not is_same
