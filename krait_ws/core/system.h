/* What the compiled core asks of Linux, each in a few lines of C: frames in a buffer, and the wait for one socket. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/futex.h>

/* A frame whose head has been read. */
typedef struct {
    int first;          /* its first byte */
    size_t start;       /* where its payload begins */
    size_t size;        /* of its payload */
} Frame;

enum { KRAIT_UNUSUAL = -1, KRAIT_HEAD = 0 };

/* Reads the head of a masked data frame that is a message by itself. Returns the size of the whole frame, KRAIT_HEAD when
 * its head is not all there, and KRAIT_UNUSUAL for anything else, which the reader in Python then judges: other opcodes,
 * reserved bits, no mask, a length that is not in its shortest form or above what a message may have. */
static inline int64_t krait_frame(const uint8_t *data, size_t length, size_t most, Frame *frame) {
    if (data[0] != 0x81 && data[0] != 0x82) return KRAIT_UNUSUAL;
    if (length < 2) return KRAIT_HEAD;
    if (!(data[1] & 0x80)) return KRAIT_UNUSUAL;
    uint64_t size = data[1] & 0x7f;
    size_t start = 6;
    if (size == 126) {
        start = 8;
        if (length < 4) return KRAIT_HEAD;
        size = ((uint64_t)data[2] << 8) | data[3];
        if (size < 126) return KRAIT_UNUSUAL;
    } else if (size == 127) {
        start = 14;
        if (length < 10) return KRAIT_HEAD;
        size = 0;
        for (int i = 2; i < 10; i++) size = (size << 8) | data[i];
        if (size < 65536 || size >> 63) return KRAIT_UNUSUAL;
    }
    if (size > most) return KRAIT_UNUSUAL;
    if (length < start) return KRAIT_HEAD;
    frame->first = data[0];
    frame->start = start;
    frame->size = size;
    return (int64_t)(start + size);
}

/* Masking is its own opposite (RFC 6455 section 5.3). Source and target may be the same. */
static inline void krait_mask(const uint8_t *key, const uint8_t *source, uint8_t *target, size_t size) {
    uint32_t four;
    uint64_t eight, word;
    size_t at = 0;
    memcpy(&four, key, 4);
    eight = ((uint64_t)four << 32) | four;
    for (; at + 8 <= size; at += 8) {
        memcpy(&word, source + at, 8);
        word ^= eight;
        memcpy(target + at, &word, 8);
    }
    for (; at < size; at++) target[at] = source[at] ^ key[at & 3];
}

/* Goes on checking that a masked text is UTF-8 (RFC 3629), so that a bad byte is noticed when it comes.
 *
 * state: 0 at first; else the continuation bytes that are missing, and in the two bytes above what the next one of them
 *        may be. Returns 0 at a byte that cannot be. */
static int krait_check_utf8(const uint8_t *key, const uint8_t *payload, size_t from, size_t to, uint32_t *state) {
    uint32_t missing = *state & 0xff, low = *state >> 8 & 0xff, high = *state >> 16 & 0xff;
    for (size_t at = from; at < to; at++) {
        uint8_t byte = payload[at] ^ key[at & 3];
        if (missing) {
            if (byte < low || byte > high) return 0;
            low = 0x80, high = 0xbf;
            missing--;
        } else if (byte >= 0x80) {
            low = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
            high = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
            if (byte >= 0xc2 && byte <= 0xdf) missing = 1;
            else if (byte >= 0xe0 && byte <= 0xef) missing = 2;
            else if (byte >= 0xf0 && byte <= 0xf4) missing = 3;
            else return 0;
        }
    }
    *state = missing | low << 8 | high << 16;
    return 1;
}

enum { KRAIT_OWN_READ = 4 << 10 };      /* bytes that a thread reads of its own socket at once, */
enum { KRAIT_LARGE_READ = 128 << 10 };  /* or when larger messages come */

/* What a thread has read of a usual frame that is not whole yet. */
typedef struct {
    uint8_t *data;
    size_t size, capacity;
    size_t checked;     /* bytes of its text that are known to be UTF-8 */
    uint32_t state;
} Held;

static void krait_drop_held(Held *held) {
    free(held->data);
    memset(held, 0, sizeof *held);
}

/* Room for more. There is never more than a read and twice what has come: nothing is spent on what is only announced. */
static int krait_grow_held(Held *held, size_t least) {
    uint8_t *data;
    if (held->data && held->capacity - held->size >= KRAIT_OWN_READ) return 1;
    size_t capacity = held->size * 2 > least ? held->size * 2 : least;
    if (!(data = realloc(held->data, capacity))) return 0;
    held->data = data;
    held->capacity = capacity;
    return 1;
}

/* Keeps the beginning of a usual frame until the rest has come. Returns 0 when it is none or whole, and nothing is kept;
 * below 0 when it is kept and is no UTF-8. */
static int krait_hold(Held *held, const uint8_t *data, size_t size, size_t most) {
    Frame frame;
    int64_t whole = krait_frame(data, size, most, &frame);
    if (whole == KRAIT_UNUSUAL || (whole > 0 && (size_t)whole <= size)) return 0;
    if (data != held->data) {
        if (!(held->data && data > held->data && data < held->data + held->capacity)) {
            krait_drop_held(held);
            if (!krait_grow_held(held, KRAIT_LARGE_READ)) return 0;
        }
        memmove(held->data, data, size);
        held->checked = held->state = 0;
    }
    held->size = size;
    if (whole > 0 && held->data[0] == 0x81) {
        const uint8_t *payload = held->data + frame.start;
        if (!krait_check_utf8(payload - 4, payload, held->checked, size - frame.start, &held->state)) return -1;
        held->checked = size - frame.start;
    }
    return 1;
}

/* The head of an unmasked frame, in the shortest form of section 5.2. Returns its size, at most 10. */
static inline size_t krait_head(uint8_t *target, int first, size_t size) {
    target[0] = (uint8_t)first;
    if (size < 126) {
        target[1] = (uint8_t)size;
        return 2;
    }
    if (size < 65536) {
        target[1] = 126;
        target[2] = (uint8_t)(size >> 8);
        target[3] = (uint8_t)size;
        return 4;
    }
    target[1] = 127;
    for (int i = 0; i < 8; i++) target[2 + i] = (uint8_t)((uint64_t)size >> (56 - 8 * i));
    return 10;
}

static inline double krait_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* ---- the wait of a thread for its socket, which another thread can interrupt
 *
 * The signal's only purpose is to end the wait. One that comes just before the wait is lost, so whoever interrupts goes on
 * with it until the thread is back. It is sent only to a thread that is on its way into the wait or out of it, and disturbs no
 * call of anybody else. Its usual action is to be ignored; who has a handler for it, for urgent data, keeps it. */
enum { KRAIT_SIGNAL = SIGURG };
enum { KRAIT_READY, KRAIT_TIMEOUT, KRAIT_INTERRUPTED };

static void krait_on_signal(int number) { (void)number; }

/* Once in a process, unless somebody else has a use for the signal: then returns 0, and nobody may wait. */
static int krait_prepare_signal(void) {
    struct sigaction old, action;
    if (sigaction(KRAIT_SIGNAL, NULL, &old)) return 0;
    if ((old.sa_flags & SA_SIGINFO) || old.sa_handler == krait_on_signal) return old.sa_handler == krait_on_signal;
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return 0;
    memset(&action, 0, sizeof action);
    action.sa_handler = krait_on_signal;
    return sigaction(KRAIT_SIGNAL, &action, NULL) == 0;
}

/* Below 0 seconds it waits for as long as it takes. */
static int krait_wait_readable(int descriptor, double seconds) {
    struct pollfd watched = {.fd = descriptor, .events = POLLIN};
    struct timespec timeout;
    if (seconds >= 0) {
        timeout.tv_sec = (time_t)seconds;
        timeout.tv_nsec = (long)((seconds - (double)timeout.tv_sec) * 1e9);
    }
    int ready = ppoll(&watched, 1, seconds >= 0 ? &timeout : NULL, NULL);
    return ready > 0 ? KRAIT_READY : ready == 0 ? KRAIT_TIMEOUT : KRAIT_INTERRUPTED;
}

/* ---- the interpreter's door
 *
 * A thread that waits for Python's lock wakes every few milliseconds to ask its holder for it; dozens that do slow each
 * other down, and each hand-over takes two changes of thread. So threads whose handlers are usually back at once come in
 * one by one: who is inside leaves the door when it goes to wait for its socket again. Who does not come back, because
 * its handler waits for something else this time, is not waited for: a keeper, a thread that is there only while somebody
 * is at the door, sees that nobody has come in for a while and opens it. */
enum { KRAIT_PATIENCE = 500000 };       /* nanoseconds; up to twice as long */
enum { KRAIT_IDLE_LOOKS = 200 };        /* without anybody at the door, until the keeper goes */

static int krait_door;                  /* 0 free, 1 taken, 2 taken and waited for */
static unsigned long krait_inside;      /* the place of who will open it */
static unsigned long krait_places;
static int krait_has_keeper;

static inline void krait_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

static void krait_futex(int operation, int value) { syscall(SYS_futex, &krait_door, operation, value, NULL, NULL, 0); }

/* Returns 0 when the door was opened before. */
static int krait_open(unsigned long place) {
    if (!__atomic_compare_exchange_n(&krait_inside, &place, 0, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return 0;
    if (__atomic_exchange_n(&krait_door, 0, __ATOMIC_RELEASE) == 2) krait_futex(FUTEX_WAKE_PRIVATE, 1);
    return 1;
}

static int krait_becomes_keeper(void) {
    int none = 0;
    return __atomic_compare_exchange_n(&krait_has_keeper, &none, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

static void *krait_keep(void *nothing) {
    struct timespec patience = {.tv_nsec = KRAIT_PATIENCE};
    unsigned long seen = 0;
    do {
        for (int idle = 0; idle < KRAIT_IDLE_LOOKS; idle++) {
            nanosleep(&patience, NULL);
            unsigned long inside = __atomic_load_n(&krait_inside, __ATOMIC_ACQUIRE);
            if (__atomic_load_n(&krait_door, __ATOMIC_RELAXED) == 2) {
                idle = 0;
                if (inside && inside == seen) krait_open(inside);
            }
            seen = inside;
        }
        __atomic_store_n(&krait_has_keeper, 0, __ATOMIC_SEQ_CST);
    } while (__atomic_load_n(&krait_door, __ATOMIC_SEQ_CST) == 2 && krait_becomes_keeper());
    return nothing;
}

/* Returns 0 when the system gives no thread. */
static int krait_call_keeper(void) {
    pthread_t thread;
    sigset_t all, mine;
    if (!krait_becomes_keeper()) return 1;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mine);  /* which it inherits: signals are for others */
    int is_there = pthread_create(&thread, NULL, krait_keep, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &mine, NULL);
    if (is_there) pthread_detach(thread);
    else __atomic_store_n(&krait_has_keeper, 0, __ATOMIC_SEQ_CST);
    return is_there;
}

static void krait_enter(unsigned long *place) {
    int is_free = 0;
    *place = 0;
    if (!__atomic_compare_exchange_n(&krait_door, &is_free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        while (__atomic_exchange_n(&krait_door, 2, __ATOMIC_SEQ_CST) != 0) {
            if (!krait_call_keeper()) return;   /* without one it goes in as any thread does */
            krait_futex(FUTEX_WAIT_PRIVATE, 2);
        }
    *place = __atomic_add_fetch(&krait_places, 1, __ATOMIC_RELAXED);
    __atomic_store_n(&krait_inside, *place, __ATOMIC_RELEASE);
}

/* Any thread may do it for the one that came in; more than once is no harm. Returns 1 when the keeper had to do it. */
static int krait_leave(unsigned long *place) {
    unsigned long mine = *place;
    *place = 0;
    return mine && !krait_open(mine);
}

static void krait_forget_threads(void) {        /* in a forked process, which has but one */
    krait_door = krait_has_keeper = 0;
    krait_inside = 0;
}

/* Once in a process. Returns 0 when threads cannot wait for their sockets in it. */
static int krait_prepare(void) {
    return pthread_atfork(NULL, NULL, krait_forget_threads) == 0 && krait_prepare_signal();
}

/* ---- reading by the thread that waits
 *
 * Waits for a socket and reads it, until there is more than a part of one usual frame.
 *
 * place: in, room for KRAIT_OWN_READ bytes; out, what is to be looked at: there, or all that is held.
 * taken: bytes that were read. heard_at: when the last of them came. result: how the last wait ended. Returns what the last read did: bytes, 0 for the end of
 * the stream, below 0 for an error. */
static ssize_t krait_gather(int descriptor, double seconds, size_t most, int reads_much, uint8_t **place, Held *held,
                            size_t *taken, double *heard_at, int *result) {
    uint8_t *room = *place;
    double until = seconds > 0 ? krait_now() + seconds : seconds;
    for (;;) {
        size_t had = held->size, size = KRAIT_OWN_READ;
        *result = krait_wait_readable(descriptor, seconds > 0 ? (until > krait_now() ? until - krait_now() : 0) : seconds);
        if (*result != KRAIT_READY) return 0;
        *place = room;
        if ((had || reads_much) && krait_grow_held(held, KRAIT_LARGE_READ)) {
            *place = held->data;
            size = held->capacity - had;
        } else if (had) {
            return -1;  /* no memory */
        }
        ssize_t length = recv(descriptor, *place + (*place == room ? 0 : had), size, MSG_DONTWAIT);
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) {
            *result = KRAIT_INTERRUPTED;
            return 0;
        }
        if (length <= 0) return length;
        size = (size_t)length;
        *taken += size;
        *heard_at = krait_now();        /* a slow peer is none that is silent */
        if (*place == held->data) size = held->size += (size_t)length;
        if (krait_hold(held, *place, size, most) <= 0) return length;
    }
}
