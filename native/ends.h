/* A process's ends of its conversations: wait for any of them, take what has come, send.
 *
 *   ZeroMQ socket ──mailbox fd──┐            ┌── ends_take: all messages of one socket, or a good part of them
 *   ZeroMQ socket ──mailbox fd──┼── poll() ──┤
 *   file descriptor ────────────┘            └── the owner reads it
 *
 * The sockets are pyzmq's, and are set up by it; what happens on every turn of a process happens here. The same through
 * pyzmq was half of a raft process's time: zmq_poll asks every socket twice and polls twice (34 calls of poll and 38 of
 * getpid for a lone put at a follower), an empty socket is an exception, and every flag an enumeration. A turn for one
 * request finds none of that in the CPU's caches.
 *
 * How waiting works. A socket's file descriptor says that there are commands in its mailbox; some say that messages have
 * come. Any call on the socket takes the commands in, and then the descriptor says nothing. So before it is waited for,
 * a socket must have been asked since the last call on it, unless that was a receive which found nothing (`dry`). All
 * calls on a socket that was added must therefore go through here.
 *
 * For one thread. Errors are negative, with errno; ETERM and ENOTSOCK mean that a socket is of no more use. */
#ifndef KVORUM_ENDS_H
#define KVORUM_ENDS_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum ends_limit {
    ENDS_MAX = 32,      /* sockets and file descriptors together */
    ENDS_MESSAGES = 128, /* taken at once, at most */
    ENDS_PARTS = 3,     /* of a message; what comes behind the third is let go, as no message of ours has so many */
    ENDS_BYTES = 2097152, /* after so many no more are taken at once */
};

struct ends;

struct ends_part {
    const void *data; /* valid until the next ends_take or ends_wait */
    uint64_t size;
    uint64_t last; /* of its message */
};

/* Finds libzmq's functions: in the library of that path or in what it needs. 0, or -1 and the name of what is missing. */
int ends_load(const char *library, const char **missing);

/* NULL: no memory. */
struct ends *ends_new(void);
void ends_free(struct ends *e);

/* The number of the new end: the bit of ends_wait's masks. EMFILE: there are ENDS_MAX already. */
int ends_add_socket(struct ends *e, uintptr_t socket);
int ends_add_fd(struct ends *e, int fd);

/* Until one of the ends in `which` has something or `timeout_ms` have passed (0: only look). EINTR: a signal came. */
int ends_wait(struct ends *e, uint64_t which, int timeout_ms, uint64_t *ready);

/* How many parts were taken, whole messages each. `dry`: there is no more now. */
int ends_take(struct ends *e, int end, const struct ends_part **parts, int *dry);

/* 0, or an errno. EAGAIN (only if not `blocking`): not now. EHOSTUNREACH: nobody has the name `head`. head_size 0: a
 * message of one part. Nothing is sent of a message that isn't sent whole. */
int ends_send(struct ends *e, int end, const char *head, size_t head_size, const char *frame, size_t size, int blocking);

/* cdef: end */

#endif
