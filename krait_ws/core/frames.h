/* Frames in a buffer, and the beginning of one that is held until its rest comes. */
#ifndef KRAIT_FRAMES_H
#define KRAIT_FRAMES_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
    uint32_t missing = *state & 0xff, low = *state >> 8 & 0xff, high = *state >> 16 & 0xff, four;
    uint64_t eight, word;
    memcpy(&four, key, 4);
    eight = ((uint64_t)four << 32) | four;
    for (size_t at = from; at < to; at++) {
        for (; !missing && !(at & 3) && at + 8 <= to; at += 8) {        /* most texts are ASCII for long stretches */
            memcpy(&word, payload + at, 8);
            if ((word ^ eight) & 0x8080808080808080) break;
        }
        if (at == to) break;
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
enum { KRAIT_LARGE_READ = 128 << 10 };  /* or of a larger message */

/* What has been read of a usual frame that is not whole yet. */
typedef struct {
    uint8_t *data;
    size_t size, capacity;
    size_t whole;       /* bytes of the frame, when its head is there */
    size_t checked;     /* bytes of its text that are known to be UTF-8 */
    uint32_t state;
} Held;

static void krait_drop_held(Held *held) {
    free(held->data);
    memset(held, 0, sizeof *held);
}

/* Room for more: for the frame, but not more than eight times what has come of it, or a large read: nothing is spent on
 * what is only announced. A buffer above a large read has no room for more than its frame, so that the beginning of the
 * next one never keeps it. Returns 0 when there is no memory. */
static int krait_grow_held(Held *held) {
    uint8_t *data;
    size_t room = held->capacity - held->size;
    if (held->data && (room >= KRAIT_OWN_READ || (held->whole && held->capacity >= held->whole))) return 1;
    size_t capacity = held->size * 8;
    size_t least = held->whole || !held->size ? KRAIT_LARGE_READ : KRAIT_OWN_READ;
    if (capacity < least) capacity = least;
    if (held->whole && capacity > held->whole) capacity = held->whole;
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
    int is_new = !(held->data && data >= held->data && data < held->data + held->capacity);
    if (is_new) krait_drop_held(held);
    held->size = size;
    held->whole = (size_t)whole;
    if (is_new && !krait_grow_held(held)) {
        krait_drop_held(held);
        return 0;
    }
    if (data != held->data) {
        memmove(held->data, data, size);
        held->checked = held->state = 0;
    }
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

#endif
