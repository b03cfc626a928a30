#include "ends.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

/* Of zmq.h, whose numbers are part of libzmq's ABI. */
#define ZMQ_DONTWAIT 1
#define ZMQ_SNDMORE 2
#define ZMQ_FD 14
#define ZMQ_EVENTS 15
#define ZMQ_POLLIN 1

typedef struct zmq_msg {
    _Alignas(void *) unsigned char opaque[64];
} zmq_msg;

static struct {
    int (*getsockopt)(void *, int, void *, size_t *);
    int (*send)(void *, const void *, size_t, int);
    int (*msg_init)(zmq_msg *);
    int (*msg_recv)(zmq_msg *, void *, int);
    void *(*msg_data)(zmq_msg *);
    size_t (*msg_size)(const zmq_msg *);
    int (*msg_more)(const zmq_msg *);
    int (*msg_close)(zmq_msg *);
} zmq;

struct end {
    void *socket; /* NULL: a file descriptor of somebody else */
    int fd;
    bool dry;
};

struct ends {
    int count;
    struct end ends[ENDS_MAX];
    int held;
    zmq_msg messages[ENDS_MESSAGES * ENDS_PARTS]; /* those of `parts`, which points into them */
    struct ends_part parts[ENDS_MESSAGES * ENDS_PARTS];
};

int ends_load(const char *library, const char **missing) {
    const struct {
        const char *name;
        void *place;
    } wanted[] = {
        {"zmq_getsockopt", &zmq.getsockopt}, {"zmq_send", &zmq.send},         {"zmq_msg_init", &zmq.msg_init},
        {"zmq_msg_recv", &zmq.msg_recv},     {"zmq_msg_data", &zmq.msg_data}, {"zmq_msg_size", &zmq.msg_size},
        {"zmq_msg_more", &zmq.msg_more},     {"zmq_msg_close", &zmq.msg_close},
    };
    *missing = library;
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) return -1;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(handle, wanted[i].name);
        if (!found) {
            *missing = wanted[i].name;
            return -1;
        }
        *(void **)wanted[i].place = found;
    }
    return 0; /* the handle is kept: what was found must stay where it is */
}

struct ends *ends_new(void) {
    return calloc(1, sizeof(struct ends));
}

static void let_go(struct ends *e) {
    while (e->held) zmq.msg_close(&e->messages[--e->held]);
}

void ends_free(struct ends *e) {
    if (!e) return;
    let_go(e);
    free(e);
}

static int add(struct ends *e, struct end end) {
    if (e->count == ENDS_MAX) {
        errno = EMFILE;
        return -1;
    }
    e->ends[e->count] = end;
    return e->count++;
}

int ends_add_socket(struct ends *e, uintptr_t socket) {
    struct end end = {.socket = (void *)socket};
    size_t size = sizeof end.fd;
    if (zmq.getsockopt(end.socket, ZMQ_FD, &end.fd, &size)) return -1;
    return add(e, end);
}

int ends_add_fd(struct ends *e, int fd) {
    return add(e, (struct end){.fd = fd});
}

/* 1: there is a message. 0: there is none, and the descriptor will say when that changes. */
static int ask(struct end *end) {
    int events = 0;
    size_t size = sizeof events;
    while (zmq.getsockopt(end->socket, ZMQ_EVENTS, &events, &size))
        if (errno != EINTR) return -1;
    end->dry = !(events & ZMQ_POLLIN);
    return !end->dry;
}

static int64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int ends_wait(struct ends *e, uint64_t which, int timeout_ms, uint64_t *ready) {
    struct pollfd polled[ENDS_MAX];
    int64_t until = timeout_ms > 0 ? milliseconds() + timeout_ms : 0;
    *ready = 0;
    let_go(e);
    for (int i = 0; i < e->count; i++) {
        struct end *end = &e->ends[i];
        polled[i] = (struct pollfd){.fd = which >> i & 1 ? end->fd : -1, .events = POLLIN};
        if (!end->socket || end->dry || !(which >> i & 1)) continue;
        int found = ask(end);
        if (found < 0) return -1;
        *ready |= (uint64_t)found << i;
    }
    for (;;) {
        if (poll(polled, (nfds_t)e->count, *ready ? 0 : timeout_ms) < 0) return -1;
        for (int i = 0; i < e->count; i++) {
            struct end *end = &e->ends[i];
            if (!(which >> i & 1) || !polled[i].revents) continue;
            int found = end->socket ? ask(end) : 1;
            if (found < 0) return -1;
            *ready |= (uint64_t)found << i;
        }
        if (*ready || timeout_ms <= 0) return 0;
        int64_t left = until - milliseconds(); /* commands that brought no message, or the time is up */
        timeout_ms = left > 0 ? (int)left : 0;
    }
}

/* The next part into `m`. 1, 0 if there is none now, -1. */
static int receive(struct end *end, zmq_msg *m) {
    zmq.msg_init(m);
    while (zmq.msg_recv(m, end->socket, ZMQ_DONTWAIT) < 0) {
        if (errno == EINTR) continue;
        int error = errno;
        zmq.msg_close(m);
        errno = error;
        return error == EAGAIN ? 0 : -1;
    }
    return 1;
}

/* What comes behind the parts that are kept. */
static int skip(struct end *end) {
    for (bool more = true; more;) {
        zmq_msg m;
        if (receive(end, &m) < 1) return -1; /* messages come whole, so there is a next part */
        more = zmq.msg_more(&m);
        zmq.msg_close(&m);
    }
    return 0;
}

int ends_take(struct ends *e, int number, const struct ends_part **parts, int *dry) {
    struct end *end = &e->ends[number];
    uint64_t bytes = 0;
    let_go(e);
    *parts = e->parts;
    end->dry = false;
    for (int messages = 0; messages < ENDS_MESSAGES && bytes <= ENDS_BYTES && !end->dry; messages++) {
        for (int part = 0, more = 1; more; part++) {
            zmq_msg *m = &e->messages[e->held];
            int found = receive(end, m);
            if (found < 0 || (!found && part)) return -1;
            if (!found) {
                end->dry = true;
                break;
            }
            more = zmq.msg_more(m);
            bool last = !more || part + 1 == ENDS_PARTS;
            size_t size = zmq.msg_size(m);
            e->parts[e->held++] = (struct ends_part){.data = zmq.msg_data(m), .size = size, .last = last};
            bytes += size;
            if (last && more && skip(end)) return -1;
            if (last) break;
        }
    }
    *dry = end->dry;
    return e->held;
}

static int send_part(struct end *end, const char *data, size_t size, int flags) {
    while (zmq.send(end->socket, data, size, flags) < 0)
        if (errno != EINTR) return errno;
    return 0;
}

int ends_send(struct ends *e, int number, const char *head, size_t head_size, const char *frame, size_t size,
              int blocking) {
    struct end *end = &e->ends[number];
    int flags = blocking ? 0 : ZMQ_DONTWAIT;
    end->dry = false;
    if (head_size) {
        int error = send_part(end, head, head_size, flags | ZMQ_SNDMORE);
        if (error) return error;
    }
    return send_part(end, frame, size, flags);
}
