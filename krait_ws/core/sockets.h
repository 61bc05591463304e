/* What threads and the loop ask of Linux for their sockets: to wait, to look on for a moment, to read. */
#ifndef KRAIT_SOCKETS_H
#define KRAIT_SOCKETS_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include "door.h"
#include "frames.h"

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

/* until: on krait_now's clock; 0 for a look, below 0 for as long as it takes. */
static int krait_wait_readable(int descriptor, double until) {
    struct pollfd watched = {.fd = descriptor, .events = POLLIN};
    struct timespec timeout;
    if (until >= 0) {
        double seconds = until > 0 ? until - krait_now() : 0;
        if (seconds < 0) seconds = 0;
        timeout.tv_sec = (time_t)seconds;
        timeout.tv_nsec = (long)((seconds - (double)timeout.tv_sec) * 1e9);
    }
    int ready = ppoll(&watched, 1, until >= 0 ? &timeout : NULL, NULL);
    return ready > 0 ? KRAIT_READY : ready == 0 ? KRAIT_TIMEOUT : KRAIT_INTERRUPTED;
}

/* ---- lingering
 *
 * To sleep and be woken takes most of an exchange with a peer that answers at once. So whoever is about to sleep looks on for a
 * moment, and the processor is there meanwhile for all who want it. Only while it pays: each time that it was in vain
 * takes credit, which the others give; without any left it is not done for a number of sleeps, twice as many each time. */
enum { KRAIT_TRIES = 4, KRAIT_MOST_CREDIT = 16 };
enum { KRAIT_FIRST_PAUSE = 16, KRAIT_LONGEST_PAUSE = 4096 };    /* sleeps */

typedef struct {
    int credit;         /* times that may be in vain */
    int pause;          /* the last one; 0 when it has paid since */
    int left;           /* of it */
} Linger;

/* To be asked once before each sleep. */
static inline int krait_may_linger(Linger *linger) { return !linger->left || !linger->left--; }

/* until: as for krait_wait_readable. is_wanted: set by who has something else for this thread. Returns 1 when the descriptor
 * is readable. */
static int krait_linger(Linger *linger, int microseconds, int descriptor, double until, const int *is_wanted) {
    double moment = microseconds * 1e-6, now = krait_now(), over = now + moment;
    if (until >= 0 && until < over) over = until;
    do {
        if (krait_wait_readable(descriptor, 0) == KRAIT_READY) {
            if (linger->credit < KRAIT_MOST_CREDIT) linger->credit++;
            linger->pause = 0;
            return 1;
        }
        sched_yield();
        now = krait_now();
    } while (!__atomic_load_n(is_wanted, __ATOMIC_RELAXED) && now < over);
    if (now > over + moment) linger->credit = 0;        /* somebody wanted the processor for long: who sleeps gets it back sooner */
    if (linger->credit-- > 0) return 0;
    linger->credit = KRAIT_TRIES;
    linger->pause = 2 * linger->pause + KRAIT_FIRST_PAUSE;
    if (linger->pause > KRAIT_LONGEST_PAUSE) linger->pause = KRAIT_LONGEST_PAUSE;
    linger->left = linger->pause;
    return 0;
}

/* ---- reading by the thread that waits
 *
 * Reads a socket that is readable, and waits for the rest while there is no more than a part of one usual frame.
 *
 * until: as for krait_wait_readable. place: in, room for KRAIT_OWN_READ bytes; out, what is to be looked at: there, or all
 * that is held. taken: bytes that were read. heard_at: when the last of them came. result: how the last wait ended. Returns
 * what the last read did: bytes, 0 for the end of the stream, below 0 for an error. */
static ssize_t krait_gather(int descriptor, double until, size_t most, int reads_much, uint8_t **place, Held *held,
                            size_t *taken, double *heard_at, int *result) {
    uint8_t *room = *place;
    for (;;) {
        size_t had = held->size, size = KRAIT_OWN_READ;
        *place = room;
        if ((had || reads_much) && krait_grow_held(held)) {
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
        *result = krait_wait_readable(descriptor, until);
        if (*result != KRAIT_READY) return 0;
    }
}

/* Once in a process. Returns 0 when threads cannot wait for their sockets in it. */
static int krait_prepare(void) {
    return pthread_atfork(NULL, NULL, krait_forget_threads) == 0 && krait_prepare_signal();
}

#endif
