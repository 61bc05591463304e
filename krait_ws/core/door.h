/* The interpreter's door.
 *
 * A thread that waits for Python's lock wakes every few milliseconds to ask its holder for it; dozens that do slow each
 * other down, and each hand-over takes two changes of thread. So threads whose handlers are usually back at once come in
 * one by one: who is inside leaves the door when it goes to wait for its socket again. Who does not come back, because
 * its handler waits for something else this time, is not waited for: a keeper, a thread that is there only while somebody
 * is at the door, sees that nobody has come in for a while and opens it. */
#ifndef KRAIT_DOOR_H
#define KRAIT_DOOR_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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

#endif
