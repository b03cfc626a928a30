/* What the rest of the edge stands on: counted memory, time, budgets, the batch that gathers. */
#include "edge_inside.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>

/* ---- memory: every byte the edge and nghttp2 hold is counted, by what the allocator says that it gave */

void *edge_alloc(struct edge *e, size_t size) {
    void *got = malloc(size);
    if (got) e->stats.memory += malloc_usable_size(got);
    return got;
}

void edge_release(struct edge *e, void *memory) {
    if (memory) e->stats.memory -= malloc_usable_size(memory);
    free(memory);
}

void *edge_realloc(struct edge *e, void *old, size_t size) {
    size_t before = old ? malloc_usable_size(old) : 0;
    void *got = realloc(old, size);
    if (got) e->stats.memory += malloc_usable_size(got) - before;
    return got;
}

static void *session_alloc(size_t size, void *e) {
    return edge_alloc(e, size);
}

static void session_release(void *memory, void *e) {
    edge_release(e, memory);
}

static void *session_calloc(size_t count, size_t size, void *user) {
    struct edge *e = user;
    void *got = calloc(count, size);
    if (got) e->stats.memory += malloc_usable_size(got);
    return got;
}

static void *session_realloc(void *old, size_t size, void *e) {
    return edge_realloc(e, old, size);
}

void edge_memory(struct edge *e) {
    e->memory = (nghttp2_mem){e, session_alloc, session_release, session_calloc, session_realloc};
}

/* ---- time */

uint64_t edge_milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void place(struct edge *e, struct edge_timer *t, uint32_t at) {
    e->heap[at] = t;
    t->index = at + 1;
}

/* Move the timer that belongs near `at` to where none above is later and none below is sooner. */
static void sift(struct edge *e, struct edge_timer *t, uint32_t at) {
    while (at > 0 && e->heap[(at - 1) / 2]->at > t->at) {
        place(e, e->heap[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    for (;;) {
        uint32_t below = 2 * at + 1;
        if (below + 1 < e->heap_count && e->heap[below + 1]->at < e->heap[below]->at) below++;
        if (below >= e->heap_count || e->heap[below]->at >= t->at) break;
        place(e, e->heap[below], at);
        at = below;
    }
    place(e, t, at);
}

int edge_timer_set(struct edge *e, struct edge_timer *t, uint64_t at) {
    t->at = at;
    if (!t->index) {
        if (e->heap_count == e->heap_room) {
            uint32_t room = e->heap_room ? 2 * e->heap_room : 64;
            struct edge_timer **heap = edge_realloc(e, e->heap, room * sizeof *heap);
            if (!heap) return -1;
            e->heap = heap;
            e->heap_room = room;
        }
        t->index = ++e->heap_count;
    }
    sift(e, t, t->index - 1);
    return 0;
}

void edge_timer_stop(struct edge *e, struct edge_timer *t) {
    if (!t->index) return;
    uint32_t at = t->index - 1;
    struct edge_timer *last = e->heap[--e->heap_count];
    t->index = 0;
    if (last != t) sift(e, last, at);
}

struct edge_timer *edge_timer_due(struct edge *e) {
    if (!e->heap_count || e->heap[0]->at > e->now) return NULL;
    struct edge_timer *t = e->heap[0];
    edge_timer_stop(e, t);
    return t;
}

/* The clock may ring too soon, which costs a turn, but never too late; so it is set only for a sooner time. */
void edge_clock_set(struct edge *e, bool now) {
    uint64_t at = now ? 1 : e->heap_count ? e->heap[0]->at : 0;
    if (!at || (e->armed && e->armed <= at)) return;
    struct itimerspec t = {.it_value = {.tv_sec = (time_t)(at / 1000), .tv_nsec = (long)(at % 1000 * 1000000)}};
    timerfd_settime(e->clock, TFD_TIMER_ABSTIME, &t, NULL);
    e->armed = at;
}

bool edge_spend(struct edge *e, struct edge_budget *b, uint32_t burst, uint32_t rate, uint32_t cost) {
    uint64_t refill = (e->now - b->at) * rate / 1000;
    if (refill) {
        b->left = refill >= burst - b->left ? burst : b->left + (uint32_t)refill;
        b->at = e->now;
    }
    if (b->left < cost) return false;
    b->left -= cost;
    return true;
}

/* ---- the batch */

static bool reserve(struct edge *e, struct edge_bytes *b, size_t more) {
    if (b->room - b->size >= more) return true;
    size_t room = b->room ? b->room : 1 << 14;
    while (room - b->size < more) room *= 2;
    uint8_t *bytes = edge_realloc(e, b->bytes, room);
    if (!bytes) {
        e->failed = true;
        return false;
    }
    b->bytes = bytes;
    b->room = room;
    return true;
}

static void append(struct edge_bytes *b, const void *bytes, size_t size) {
    if (size) memcpy(b->bytes + b->size, bytes, size);
    b->size += size;
}

bool edge_event(struct edge *e, uint64_t call, uint8_t kind, uint8_t method, uint16_t status, uint64_t deadline,
                const void *payload, size_t length, const void *extra, size_t extra_length) {
    if (e->event_count == e->event_room) {
        size_t room = e->event_room ? 2 * e->event_room : 256;
        struct edge_event *events = edge_realloc(e, e->events, room * sizeof *events);
        if (!events) {
            e->failed = true;
            return false;
        }
        e->events = events;
        e->event_room = room;
    }
    if (!reserve(e, &e->bytes, length + extra_length)) return false;
    e->events[e->event_count++] = (struct edge_event){.call = call,
                                                      .deadline = deadline,
                                                      .at = (uint32_t)e->bytes.size,
                                                      .length = (uint32_t)length,
                                                      .extra = (uint32_t)extra_length,
                                                      .kind = kind,
                                                      .method = method,
                                                      .status = status};
    append(&e->bytes, payload, length);
    append(&e->bytes, extra, extra_length);
    return true;
}

static void little(uint8_t *to, uint64_t n, int bytes) {
    for (int i = 0; i < bytes; i++) to[i] = (uint8_t)(n >> 8 * i);
}

bool edge_call_record(struct edge *e, uint64_t call, uint8_t method, const void *payload, uint32_t length) {
    if (!reserve(e, &e->calls, EDGE_RECORD_BYTES + (size_t)length)) return false;
    uint8_t head[EDGE_RECORD_BYTES] = {0};
    little(head, length, 4);
    head[4] = method;
    little(head + 8, call, 8);
    append(&e->calls, head, sizeof head);
    append(&e->calls, payload, length);
    e->call_count++;
    return true;
}

bool edge_batch_full(const struct edge *e) {
    return e->calls.size + e->bytes.size >= e->config.batch_bytes ||
           e->call_count + e->event_count >= e->config.batch_records;
}
