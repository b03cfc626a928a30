/* Inside the edge: what its files share. edge.h says what it is for and what bounds it; here is what it is made of.
 *
 *   edge --- listeners
 *        --- connections, by id ------ session (nghttp2) ------ calls, by stream id
 *        --- timers, a heap            tls (OpenSSL)             message being assembled, answers waiting
 *        --- the batch that gathers    out: what the socket      metadata, deadline
 *        --- ready: to be written      did not take
 *
 * Life and death. A call dies in edge_call_drop() alone, when nghttp2 says that its stream is closed or with its
 * connection; a connection in edge_reap() alone, which runs when no callback of nghttp2 is on the stack. Until then a
 * connection that is done for is marked (`gone`) and left alone by all.
 *
 * Output. Answers queue at their call as pieces. nghttp2 asks for a call's bytes when the peer's windows allow it to
 * send them; they are copied once, into one buffer that all connections share, and written from there. What the socket
 * does not take moves to the connection's own `out`, and until that is gone the session is asked for nothing. So an
 * idle connection has no buffer, and a stalled one at most EDGE_SCRATCH_BYTES and what its answers hold. */
#ifndef KVORUM_EDGE_INSIDE_H
#define KVORUM_EDGE_INSIDE_H

#include <nghttp2/nghttp2.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

#include "edge.h"

enum {
    EDGE_READ_BYTES = 1 << 16,      /* one read of a socket */
    EDGE_READS_MAX = 4,             /* of one connection in one poll, so that everybody has a turn */
    EDGE_SCRATCH_BYTES = 1 << 16,   /* frames gathered for one write */
    EDGE_FRAME_BYTES_MAX = 16384 + 9,
    EDGE_ACCEPTS_MAX = 256,         /* in one poll */
    EDGE_WRITES_MAX = 64,           /* of one connection in one turn */
    EDGE_LINGER_MS = 1000,          /* for a peer to hear why it is closed */
    EDGE_NOTICE_MS = 500,           /* between the two GOAWAYs of a shutdown */
    EDGE_LISTENERS_MAX = 16,
    EDGE_TLS_FILES = 4,             /* certificate, key, CA, CRL */
    EDGE_METHODS_MAX = 256,         /* slots of the table, a power of two, over twice the methods that fit */
    EDGE_PATH_BYTES_MAX = 256,      /* of an unknown path, what is kept */
    EDGE_ORIGIN_BYTES_MAX = 256,    /* longer ones are nobody's */
    EDGE_HEADERS_MAX = 16,          /* of EDGE_RESPONSE */
    EDGE_VERSIONS_MAX = 32,         /* of clients, told apart */
    EDGE_TEXT_BYTES_MAX = 1024,     /* of an error's text, what is sent */
    EDGE_TOKEN_BYTES_MAX = 8192,
    EDGE_MORE_BYTES_MAX = 10240,    /* of headers for EDGE_REQUEST: a token, and some */
    EDGE_CALL_BYTES = 650,          /* what an idle call takes, about, with what nghttp2 has for its stream */
    EDGE_FRAMING_BYTES = 5,         /* gRPC: compressed flag, length */
    EDGE_RECORD_BYTES = 16
};

/* ---- time */

struct edge_timer {
    uint64_t at;                    /* ms */
    uint32_t index;                 /* in the heap + 1; 0: not set */
    uint8_t of;                     /* enum edge_timer_of */
};

enum edge_timer_of { EDGE_TIMER_CALL, EDGE_TIMER_CONNECTION };

/* ---- what epoll points to */

enum edge_source_kind { EDGE_LISTENER, EDGE_CONNECTION, EDGE_CLOCK };

struct edge_source {
    uint8_t kind;
};

struct edge_listener {
    struct edge_source source;
    int socket;
    bool tls;
};

/* ---- answers */

/* Bytes that several pieces show. */
struct edge_shared {
    uint64_t serial;
    uint32_t references, length;
    uint8_t bytes[];
};

/* One message on its way out: its gRPC framing, a body of its own or shared, a suffix. */
struct edge_piece {
    struct edge_piece *next;
    struct edge_shared *shared;     /* NULL: the body follows here */
    uint32_t body, sent;            /* length of the body; how much of framing, body and suffix has been sent */
    uint32_t cost;                  /* what its connection is charged for it */
    uint8_t head, suffix;           /* lengths: head is EDGE_FRAMING_BYTES, or 0 (no gRPC) */
    uint8_t framing[EDGE_FRAMING_BYTES];
    uint8_t suffix_bytes[EDGE_SUFFIX_MAX];
    uint8_t bytes[];
};

struct edge_queue {
    struct edge_piece *first, **last;
    uint64_t bytes;                 /* not sent yet */
    uint64_t *owned;                /* the connection's */
};

/* ---- a call */

enum edge_call_flag {
    CALL_BEGUN = 1 << 0,            /* its headers are complete */
    CALL_TOLD = 1 << 1,             /* Python knows it by an event, so it must hear of its end */
    CALL_PIPED = 1 << 2,            /* it, or a message of it, went into `calls`; it is in the list e->piped */
    CALL_ANSWERED = 1 << 3,         /* the response has begun */
    CALL_FINISHED = 1 << 4,         /* its status is known; nothing more is taken */
    CALL_REMOTE_CLOSED = 1 << 5,
    CALL_DEFERRED = 1 << 6,         /* nghttp2 waits to be told that there is more to send */
    CALL_BLOCKED = 1 << 7,          /* EDGE_BLOCKED was said, and it is in the list connection->blocked_calls */
    CALL_DEAF = 1 << 8,             /* what comes in is thrown away */
    CALL_HAS_MESSAGE = 1 << 9,      /* a unary call's one message is whole */
    CALL_PLAIN = 1 << 10,           /* no gRPC: EDGE_REQUEST */
    CALL_GREW = 1 << 11,            /* the message being assembled was given window beyond the stream's own */
    CALL_GRPC = 1 << 12             /* content-type says so */
};

struct edge_call {
    struct edge_connection *connection;
    struct edge_call *next, *prev;  /* all calls of the connection */
    struct edge_call *also_next, *also_prev;    /* of those that wait for apply, or of the connection's blocked ones */
    int32_t stream;
    uint16_t flags;
    uint8_t method, metadata;       /* metadata: enum edge_flag */
    uint8_t shape, status;          /* status: the gRPC status it ended with, once CALL_FINISHED */
    uint8_t framing_have;
    uint8_t framing[EDGE_FRAMING_BYTES];
    char encoding[12];              /* grpc-encoding, as much of it as fits; empty: identity */
    uint8_t request;                /* enum edge_request: :method */
    uint8_t seen;                   /* enum edge_seen */
    uint8_t version;                /* its client-api-version, of edge.versions */
    uint16_t bad;                   /* a header that can't be served: enum edge_bad */
    uint32_t headers;               /* size of the header list so far */
    struct edge_timer timer;        /* the deadline, or the end of assembly, if that is sooner */
    uint64_t deadline, assembly;    /* ms; 0: none */
    uint8_t *message;               /* being assembled */
    uint32_t have, want, room;
    uint32_t owed;                  /* bytes of window that were not given back */
    uint32_t unanswered;            /* of the calls that its messages are (EDGE_CALLS) */
    char *path;                     /* until the headers are complete, and of EDGE_REQUEST */
    char *token, *text;             /* metadata; the error's text for the trailers */
    char *more;                     /* of EDGE_REQUEST: headers, as its extra has them */
    uint32_t path_length, token_length, text_length, more_length;
    struct edge_queue queue;
};

enum edge_request {
    REQUEST_POST = 1,
    REQUEST_GET,
    REQUEST_HEAD,
    REQUEST_PUT,
    REQUEST_DELETE,
    REQUEST_OPTIONS,
    REQUEST_OTHER
};

enum edge_seen { /* of a request's headers so far */
    SEEN_METHOD = 1 << 0,
    SEEN_SCHEME = 1 << 1,
    SEEN_PATH = 1 << 2,
    SEEN_NEEDED = SEEN_METHOD | SEEN_SCHEME | SEEN_PATH,
    SEEN_AUTHORITY = 1 << 3,
    SEEN_REGULAR = 1 << 4, /* none that begins with a colon may follow */
    SEEN_RESET = 1 << 5    /* something was wrong with them: RST_STREAM is on its way */
};

enum edge_bad {
    BAD_HEADERS_TOO_LARGE = 1,
    BAD_TIMEOUT = 2,
    BAD_BODY_TOO_LARGE = 3          /* of an EDGE_REQUEST */
};

/* ---- a connection */

enum edge_mode { MODE_HANDSHAKE, MODE_SNIFF, MODE_HTTP2, MODE_HTTP1 };

/* What a peer may do for nothing: `left` refills by `rate` per second up to `burst`. */
struct edge_budget {
    uint32_t left;
    uint64_t at;
};

struct edge_connection {
    struct edge_source source;
    uint8_t mode, sniffed, strikes;
    bool tls_h2;                    /* agreed on in the handshake */
    bool told;                      /* EDGE_OPENED was said, so EDGE_CLOSED is due */
    bool ready;                     /* in the edge's list */
    bool more;                      /* stopped writing only to let others have a turn */
    bool closing, lingering, gone;  /* to be closed when all is written; waits for the peer's end; lost */
    bool paused, ended;             /* not to be read: Python says so, there is nothing more */
    bool peer_left, shut;           /* GOAWAY was received; our last was sent */
    bool tls_wants_write;           /* to be able to read */
    bool ping_reset;                /* we sent HEADERS or DATA since the last PING */
    bool blocked;                   /* HTTP/1: EDGE_BLOCKED was said */
    uint16_t reason;
    uint32_t id, interest;          /* interest: what epoll watches for */
    int socket;
    struct edge *edge;
    struct edge_connection *hash_next, *next, *prev, *ready_next, *gone_next;
    SSL *tls;
    nghttp2_session *session;
    struct edge_call *calls;
    struct edge_call *blocked_calls;
    uint32_t call_count, continuations;
    struct edge_timer timer;
    uint64_t heard, asked, ping_at; /* ms: last read; our PING, nothing read since, or 0; the peer's last PING */
    struct edge_budget resets, noise;
    uint64_t inbound, outbound;     /* held: messages that are not whole, answers not sent */
    uint64_t owned;                 /* memory of those answers, a shared payload being charged once to a connection */
    uint64_t last_shared;           /* the serial of the one that was charged last */
    uint8_t *out;                   /* what the socket did not take */
    uint32_t out_at, out_size;
    struct edge_queue queue;        /* HTTP/1: bytes to write */
};

/* ---- TLS */

/* Which content of a file was read. All zero: it wasn't there. */
struct edge_stamp {
    uint64_t device, inode;
    int64_t size, seconds, nanoseconds;
};

struct edge_tls {
    SSL_CTX *context;               /* for connections to come; NULL: there is no TLS */
    struct edge_tls_config config;  /* copies */
    struct edge_stamp stamps[EDGE_TLS_FILES];
    bool young;                     /* they may have changed since without showing it */
    char error[512];
};

struct edge_bytes {
    uint8_t *bytes;
    size_t size, room;
};

struct edge {
    struct edge_config config;
    int epoll, clock, spare;        /* spare: a descriptor to give up when there are no more */
    struct edge_source clock_source;
    uint64_t now, armed;            /* ms; armed: when the clock rings, 0: it doesn't */
    struct edge_listener listeners[EDGE_LISTENERS_MAX];
    uint32_t listener_count;
    struct edge_connection **table, *connections, *ready, *gone;
    uint32_t table_size, last_id;
    struct edge_call *piped;
    struct edge_timer **heap;
    uint32_t heap_count, heap_room;
    struct edge_bytes calls, bytes;
    struct edge_event *events;
    size_t event_count, event_room;
    uint32_t call_count;
    uint8_t *read_buffer, *scratch;
    size_t scratch_used;
    bool relieved;                  /* somebody was given up for want of memory, and is not buried yet */
    uint64_t serial;                /* of the last shared payload */
    bool draining, failed;          /* failed: a promise could not be kept for want of memory; final */
    uint64_t drain_at;
    struct {
        char *path;
        uint32_t length;
        uint8_t number, shape;
    } methods[EDGE_METHODS_MAX];
    struct {
        uint64_t started, ended[17];
        bool known;
    } tallies[256];
    struct {
        char text[EDGE_VERSION_BYTES_MAX];
        uint32_t length;
        uint64_t started[256];      /* by method */
    } versions[EDGE_VERSIONS_MAX];
    uint32_t version_count;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    nghttp2_mem memory;
    struct edge_tls tls;
    z_stream inflater;              /* its state is NULL until the first message that is compressed */
    struct edge_stats stats;
};

/* ---- edge_util.c: memory that is counted, timers, the batch that gathers */

void *edge_alloc(struct edge *e, size_t size);                 /* NULL if there is none */
void *edge_realloc(struct edge *e, void *old, size_t size);
void edge_release(struct edge *e, void *memory);
void edge_memory(struct edge *e);                              /* fills e->memory for nghttp2 */
uint64_t edge_milliseconds(void);
int edge_timer_set(struct edge *e, struct edge_timer *t, uint64_t at);  /* 0, or -1: no memory */
void edge_timer_stop(struct edge *e, struct edge_timer *t);
struct edge_timer *edge_timer_due(struct edge *e);             /* the next that is due, stopped; NULL: none */
void edge_clock_set(struct edge *e, bool now);                 /* make the clock ring at the next timer, or now */
bool edge_spend(struct edge *e, struct edge_budget *b, uint32_t burst, uint32_t rate, uint32_t cost);

/* Append an event. false: no memory; the edge is then failed, and poll says so. */
bool edge_event(struct edge *e, uint64_t call, uint8_t kind, uint8_t method, uint16_t status, uint64_t deadline,
                const void *payload, size_t length, const void *extra, size_t extra_length);
bool edge_call_record(struct edge *e, uint64_t call, uint8_t method, const void *payload, uint32_t length);
bool edge_batch_full(const struct edge *e);

static inline uint64_t edge_call_id(const struct edge_call *c) {
    return (uint64_t)c->connection->id << 32 | (uint32_t)c->stream;
}

static inline uint64_t edge_connection_id(const struct edge_connection *k) {
    return (uint64_t)k->id << 32;
}

/* ---- edge_conn.c */

void edge_accept(struct edge *e, struct edge_listener *l);
int edge_connect(struct edge *e, int socket, bool tls);        /* 0, or -1: the socket is closed */
struct edge_connection *edge_connection_find(const struct edge *e, uint32_t id);    /* NULL: none that is of use */
void edge_connection_io(struct edge_connection *k, uint32_t events);
void edge_connection_timer(struct edge_connection *k);
void edge_connection_drain(struct edge_connection *k);
void edge_connection_close(struct edge_connection *k, int reason);                 /* when all is written */
void edge_lose(struct edge_connection *k, int reason);         /* at once; edge_reap() does the rest */
void edge_interest(struct edge_connection *k);                 /* tell epoll what it waits for */
void edge_reap(struct edge *e);

/* ---- edge_write.c */

void edge_ready(struct edge_connection *k);                    /* it has something to write */
void edge_flush(struct edge *e);                               /* write for all that are ready */
void edge_connection_write(struct edge_connection *k, const uint8_t *bytes, uint32_t size);     /* HTTP/1 */
void edge_relieve(struct edge *e);      /* if all memory is used: the connection that holds most of it is lost */
bool edge_overdrawn(struct edge_connection *k, uint64_t newest);        /* too much memory is held, `newest` the cost of
                                                                  the newest piece. true: it is lost */

/* ---- edge_http2.c */

int edge_http2_setup(struct edge *e);
void edge_http2_begin(struct edge_connection *k);
void edge_http2_input(struct edge_connection *k, const uint8_t *bytes, size_t size);
void edge_http2_goaway(struct edge_connection *k, uint32_t code, const char *text, int reason);
void edge_http2_fill(struct edge_connection *k);               /* frames into the scratch buffer */
void edge_http2_drop(struct edge_connection *k);               /* ends the session and its calls */
void edge_http2_ping(struct edge_connection *k);
void edge_http2_shutdown(struct edge_connection *k, bool last);
bool edge_http2_over(const struct edge_connection *k);        /* the session has ended itself, GOAWAY included */
bool edge_http2_choked(const struct edge_connection *k);      /* too many frames of ours wait for the socket */

/* ---- edge_grpc.c: a call's way in */

struct edge_call *edge_call_new(struct edge_connection *k, int32_t stream);
void edge_call_header(struct edge_call *c, const uint8_t *name, size_t name_length, const uint8_t *value,
                      size_t value_length);
void edge_call_begun(struct edge_call *c);
void edge_call_data(struct edge_call *c, const uint8_t *data, size_t size);
void edge_call_half_closed(struct edge_call *c);
void edge_call_timer(struct edge_call *c);
void edge_call_grant(struct edge_call *c);
void edge_call_list(struct edge_call *c, struct edge_call **list, uint16_t flag);     /* enter it, set the flag */
void edge_call_unlist(struct edge_call *c, struct edge_call **list, uint16_t flag);   /* leave it, if the flag is set */
void edge_call_drop(struct edge_call *c, uint32_t error_code); /* its stream is closed: frees it */
void edge_call_hold(struct edge_call *c, int64_t bytes);       /* more, or less, is held for it */
bool edge_call_grow(struct edge_call *c, uint32_t more, uint32_t want);   /* room in its message; false: it is refused */
bool edge_method_add(struct edge *e, const struct edge_method *m);

/* ---- edge_gzip.c */

bool edge_gzip_unpack(struct edge_call *c);                    /* its whole message; false: it is refused */
void edge_gzip_free(struct edge *e);

/* ---- edge_answer.c: and out */

void edge_answer_message(struct edge_call *c, const uint8_t *payload, uint32_t length, struct edge_shared *shared,
                         const uint8_t *suffix, uint8_t suffix_length);
void edge_answer_end(struct edge_call *c, uint16_t status, const char *text, size_t length);
void edge_answer_call(struct edge_call *c, uint16_t status, const uint8_t *payload, uint32_t length);
void edge_answer_maybe_end(struct edge_call *c);
void edge_answer_http(struct edge_call *c, uint16_t status, const uint8_t *payload, size_t length, bool more);
void edge_answer_headers(struct edge_call *c);
void edge_answer_reset(struct edge_call *c, uint32_t code);
void edge_answer_refuse(struct edge_call *c, uint16_t http, uint16_t status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void edge_answer_unblock(struct edge_connection *k);
ssize_t edge_answer_read(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                         nghttp2_data_source *source, void *user);
/* A piece of `body`, or of what is shared; `charged`: its connection pays for that. Its cost; 0: no memory. */
uint32_t edge_queue_add(struct edge *e, struct edge_queue *q, const uint8_t *framing, const uint8_t *body,
                        uint32_t length, struct edge_shared *shared, bool charged, const uint8_t *suffix,
                        uint8_t suffix_length);
void edge_queue_copy(struct edge *e, struct edge_queue *q, uint8_t *to, size_t size);
void edge_queue_drop(struct edge *e, struct edge_queue *q);
struct edge_shared *edge_shared_new(struct edge *e, const uint8_t *bytes, size_t size);
void edge_shared_let(struct edge *e, struct edge_shared *s);

/* ---- edge_tls.c */

bool edge_tls_begin(struct edge_connection *k);
int edge_tls_handshake(struct edge_connection *k);             /* 1: done, 0: not yet, -1: failed */
int64_t edge_tls_read(struct edge_connection *k, uint8_t *bytes, size_t size);    /* as recv: 0 end, -1 + errno */
int64_t edge_tls_write(struct edge_connection *k, const uint8_t *bytes, size_t size);
size_t edge_tls_name(const struct edge_connection *k, char *name, size_t room);
void edge_tls_end(struct edge_connection *k);
void edge_tls_free(struct edge *e);

#endif
