/* The edge: where programs that speak gRPC or HTTP/1.1 come in. One epoll loop, driven by its one caller.
 *
 *    clients              edge (C)                                    gateway (Python)
 *   --HTTP/2--> session, streams, gRPC framing --+--> calls:  a wire batch, sent on unread   --> apply
 *   --HTTP/1--> bytes as they come --------------+--> events: an array of fixed records      --> whoever knows
 *   <---------- frames, flow control, trailers <----- edge_deliver(): a wire batch           <-- answers
 *                                                +--- edge_fan_out(): one payload, many streams
 *
 * A wire batch is what everything in kvorum speaks (kvorum/wire.py): records of u32 length, u8 method, u8 kind, u16
 * status, u64 id, payload. A call's id is connection << 32 | stream; it is never used twice while anybody could mean
 * the first one, and an answer to a call that is gone is dropped. A connection's id is that with stream 0.
 *
 * Most calls are one message each way. Those of methods in the table with EDGE_PIPE, without credentials, are gathered
 * into one batch that can go to the apply process as it is, and its answers can come back as they are: they cost Python
 * nothing each. All else is an event of 32 bytes.
 *
 * What bounds it. Nothing is read while nobody calls edge_poll(), and one call gathers at most batch_bytes and
 * batch_records before it returns, so what Python doesn't take stays in the sockets. Held for clients are: messages
 * that are not whole (inbound_*, assembly_ms), and answers that a slow reader has not taken (outbound_*). Past a limit
 * the call or the connection that grew over it ends, with a status that says so, and everybody else is served; past
 * memory_max it is the connection that holds most. What a peer can make us do for nothing (PING, SETTINGS, RST_STREAM,
 * empty frames, CONTINUATION) is counted against a budget.
 *
 * For one thread. Nothing here blocks but edge_poll() when told to. Files: edge.c (this page), edge_conn.c (sockets and
 * their lives), edge_write.c, edge_tls.c, edge_selfsigned.c, edge_http2.c (sessions), edge_grpc.c (calls and messages),
 * edge_gzip.c, edge_answer.c, edge_util.c (memory, time, the batch). */
#ifndef KVORUM_EDGE_H
#define KVORUM_EDGE_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum edge_shape {
    EDGE_UNARY = 0,                   /* one message in: EDGE_CALL; answered by one or by many (a server stream) */
    EDGE_PIPE = 1,                    /* the same, in the batch `calls` if it has no metadata and there is room */
    EDGE_STREAM = 2,                  /* messages in as they come: EDGE_BEGUN, EDGE_MESSAGE, EDGE_HALF_CLOSED */
    EDGE_GRANTED = 4,                 /* with EDGE_STREAM: the peer's window is given back by EDGE_GRANT alone */
    EDGE_CALLS = 8                    /* with EDGE_STREAM: each message is a call that has the stream's id, in the batch
                                         `calls` if there is room, and each EDGE_REPLY a message. The stream ends when
                                         its client has ended and all are answered, or with the first error. Only
                                         without metadata; else it is a stream as any other */
};

enum edge_event_kind {
    EDGE_OPENED = 1,                  /* a connection; status: enum edge_protocol; method: 1 over TLS; payload
                                         "address:port", extra: the common name of its certificate */
    EDGE_CLOSED = 2,                  /* it is gone, and all its calls with it; status: enum edge_reason */
    EDGE_CALL = 3,                    /* method, deadline, status: enum edge_flag; payload: the message; extra: token */
    EDGE_BEGUN = 4,                   /* the same without a message */
    EDGE_MESSAGE = 5,                 /* payload: the message */
    EDGE_HALF_CLOSED = 6,             /* no more messages, or bytes, from there */
    EDGE_CANCELLED = 7,               /* the call is gone; status: 1 by the client, 4 its deadline has passed, 13 its
                                         client broke a rule, 8 a limit; of a stream of EDGE_CALLS any, whatever ended
                                         it. Not for calls that went into `calls`, not after
                                         EDGE_CLOSED, not after the last answer */
    EDGE_UNKNOWN = 8,                 /* a call of a path that is not in the table; payload: the path. To be answered */
    EDGE_BLOCKED = 9,                 /* call or HTTP/1 connection: much waits already, deliver no more */
    EDGE_WRITABLE = 10,               /* and now it has gone */
    EDGE_BYTES = 11,                  /* of an HTTP/1 connection */
    EDGE_REQUEST = 12                 /* HTTP/2 but not gRPC (curl, TLS): payload: body; extra: "METHOD path", and
                                         behind it, a NUL before each, names and values of the headers that mean
                                         something: authorization, origin, grpc-timeout and some of grpc-metadata-* */
};

enum edge_protocol { EDGE_HTTP2 = 2, EDGE_HTTP1 = 1 };

enum edge_flag {
    EDGE_HAS_LEADER = 1,              /* metadata hasleader: true */
    EDGE_TOKEN = 2,                   /* extra is the value of token */
    EDGE_AUTHORIZATION = 4,           /* extra is the value of authorization, and there was no token */
    EDGE_BAD_VERSION = 8              /* metadata client-api-version that isn't UTF-8 */
};

enum edge_reason {
    EDGE_BY_PEER = 1,
    EDGE_BY_US = 2,                   /* as told, or drained */
    EDGE_BAD_PROTOCOL = 3,
    EDGE_TOO_MUCH = 4,                /* a flood, or an answer that nobody takes */
    EDGE_TOO_LATE = 5                 /* a deadline of the connection: silence, draining */
};

struct edge_event {
    uint64_t call;
    uint64_t deadline;                /* milliseconds of CLOCK_MONOTONIC; 0: none */
    uint32_t at, length, extra;       /* bytes[at : at+length] is the payload, the next `extra` bytes the extra */
    uint8_t kind, method;
    uint16_t status;
};

/* Kinds of records for edge_deliver(). The first three are wire.Kind's. */
enum edge_answer {
    EDGE_REPLY = 1,                   /* status 0: the one message and the end; else the error's code and text */
    EDGE_SEND = 3,                    /* one message of many */
    EDGE_END = 4,                     /* the end of many: status, text */
    EDGE_HEADERS = 16,                /* the response headers now, before there is a message */
    EDGE_RESET = 17,                  /* RST_STREAM with error code `status` */
    EDGE_GRANT = 18,                  /* all messages so far are dealt with: the peer may send as many again */
    EDGE_WRITE = 19,                  /* bytes to an HTTP/1 connection */
    EDGE_CLOSE = 20,                  /* a connection, when what was written has gone */
    EDGE_PAUSE = 21,                  /* read no more from an HTTP/1 connection */
    EDGE_RESUME = 22,
    EDGE_RESPONSE = 23,               /* answers EDGE_REQUEST; status: HTTP's; payload: content type, NUL, body. Behind
                                         the content type may be more headers, "\nname: value" each */
    EDGE_RESPONSE_BEGUN = 24          /* the same, but the body goes on: EDGE_SEND, EDGE_END */
};

enum { EDGE_SUFFIX_MAX = 16 };

enum { EDGE_VERSION_BYTES_MAX = 32 }; /* of a client-api-version that is told apart from others */

struct edge_method {
    const char *path;                 /* "/service/method" */
    uint8_t number;                   /* not 0 */
    uint8_t shape;
};

/* Bounds. Bytes, milliseconds, counts; nothing may be 0 but keepalive_ms (never ask). */
struct edge_config {
    uint32_t connections_max;
    uint32_t streams_max;             /* at once, per connection */
    uint32_t message_max;             /* a message from a client */
    uint32_t header_list_max;         /* names, values and 32 for each, as HTTP/2 counts */
    uint32_t continuations_max;       /* frames of one header block after the first */
    uint32_t stream_window, connection_window;
    uint64_t inbound_connection_max, inbound_max;      /* messages that are not whole, and tokens of calls that aren't:
                                                          per connection, in all */
    uint32_t outbound_high;           /* of one call: past it EDGE_BLOCKED, below its half EDGE_WRITABLE */
    uint64_t outbound_connection_high;                 /* the same for all calls of a connection together; EDGE_WRITABLE
                                                          below its half, or when all of the call's own has gone */
    uint64_t outbound_connection_max; /* memory of its answers: past it a connection is given up */
    uint64_t memory_max;              /* of all: past it the connection that holds most of it is given up, and none
                                         is accepted */
    uint32_t reset_burst, reset_rate; /* calls that a client may reset: at once, and more per second */
    uint32_t noise_burst, noise_rate; /* frames that carry nothing, the same way */
    uint32_t ping_min_ms, ping_strikes_max;            /* etcd's --grpc-keepalive-min-time */
    uint32_t handshake_ms;            /* from accept() to a finished handshake and the HTTP/2 preface */
    uint32_t keepalive_ms, keepalive_timeout_ms;       /* etcd's --grpc-keepalive-interval and -timeout */
    uint32_t assembly_ms;             /* from the first byte of a message to its last */
    uint32_t batch_bytes, batch_records;               /* one edge_poll() stops reading past either, and `calls` goes
                                                          over batch_bytes by at most one record */
};

struct edge_stats {
    uint64_t connections, accepted, refused, streams, calls;   /* now, ever, for want of room; now, ever */
    uint64_t bytes_in, bytes_out, messages_in, messages_out;
    uint64_t memory, inbound, outbound;        /* held: in all (OpenSSL's aside), of it unfinished messages, answers */
    uint64_t resets, floods, timeouts, handshake_failures;
    uint64_t tls_loads, tls_load_failures;     /* how often its files were read, and of no use though they had changed */
};

struct edge_tls_config {
    const char *certificate, *key;    /* PEM files: a chain, and the key of its first */
    const char *ca;                   /* PEM: clients must show a certificate that it signed; NULL: they needn't */
    const char *crl;                  /* PEM: certificates that it revoked, with `ca`; NULL: none */
    const char *hosts;                /* with `ca`, and commas: their certificate is for one of these; NULL: or for any */
    const char *ciphers;              /* of TLS 1.2, as OpenSSL calls them, with colons; NULL: those HTTP/2 permits */
    int version_min, version_max;     /* 12, 13 (TLS 1.2, 1.3); 0: no wish */
};

struct edge;

/* NULL with errno set: EINVAL (the table, a bound of 0), ENOMEM, or what the kernel said. The table is copied. */
struct edge *edge_new(const struct edge_config *config, const struct edge_method *methods, size_t count);

/* Closes everything at once. */
void edge_free(struct edge *e);

/* Listen on a numeric address. Returns the port (that the kernel chose, for 0), or -1 with errno set. */
int edge_listen(struct edge *e, const char *address, int port, int reuse_port, int tls);

/* Take connections from a socket that listens and doesn't block. It is the edge's from now on, and closed also if this
 * fails: -1 with errno set. */
int edge_listen_on(struct edge *e, int socket, int tls);

/* Take over a connected stream socket, as if it had been accepted. Returns 0 or -1, then the socket is closed. */
int edge_adopt(struct edge *e, int socket, int tls);

/* Read the files, for connections to come. They are read again when they have changed (edge_tls.c). The config is copied.
 * 0, or -1 with what is wrong in edge_tls_error(), and nothing is changed. */
int edge_tls(struct edge *e, const struct edge_tls_config *config);
const char *edge_tls_error(const struct edge *e);

/* A new key, and a certificate for it that it signs itself, good for `days` from now. `hosts` as OpenSSL reads
 * alternative names: "IP:127.0.0.1,DNS:localhost". Both as PEM text into `room` bytes each. 0, or -1: it can't be made. */
int edge_tls_self_signed(const char *hosts, int days, char *certificate, char *key, size_t room);

/* For a poller of the caller's: readable when edge_poll() has something to do, be it a deadline. */
int edge_fileno(const struct edge *e);

/* What has arrived, gathered since edge_clear(). All stays valid until the next call of anything here. */
struct edge_batch {
    const uint8_t *calls;             /* wire records of kind 0 (CALL) */
    size_t calls_size;
    const struct edge_event *events;
    size_t event_count;
    const uint8_t *bytes;             /* what the events point into */
    size_t bytes_size;
    uint32_t call_count;
};

/* Wait up to timeout_ms (-1: for ever) if nothing is gathered yet, then do all there is to do. Returns 0, or -1 with
 * errno set (EINTR: nothing happened; else the edge is of no more use). */
int edge_poll(struct edge *e, int timeout_ms, struct edge_batch *batch);
void edge_clear(struct edge *e);

/* Carry out the records of a batch, then write what can be written. Whatever it needs is copied. Returns how many
 * records found their call; -1 with errno EINVAL if the batch is no sequence of whole records of the kinds above: then
 * those before the wrong one are carried out. */
int64_t edge_deliver(struct edge *e, const uint8_t *batch, size_t size);

/* To each of `count` streams one message: the payload, then its own suffix, suffixes[ends[i-1] : ends[i]], of at most
 * EDGE_SUFFIX_MAX bytes. The payload is copied once. Returns how many streams were found, or -1 with errno EINVAL or
 * ENOMEM. */
int64_t edge_fan_out(struct edge *e, const uint8_t *payload, size_t size, const uint64_t *calls, const uint32_t *ends,
                     size_t count, const uint8_t *suffixes, size_t suffixes_size);

/* Answer with an error all calls of `method` (0: all methods) that went into `calls` and have no answer. For when
 * nobody is left who would. Returns how many. */
int64_t edge_fail(struct edge *e, int method, int status, const char *text);

/* Stop listening, tell every client to go elsewhere (GOAWAY), and close each connection with its last call, or after
 * `grace_ms`. Streams end when told to. Returns how many connections are left; edge_poll() goes on. */
uint64_t edge_drain(struct edge *e, int grace_ms);

void edge_stats(const struct edge *e, struct edge_stats *stats);

/* How many calls of the method ended with each gRPC status, 0 to 16. 0, or -1: no such method. */
int edge_method_stats(const struct edge *e, int method, uint64_t *started, uint64_t ended[17]);

/* How many calls of each method began with the metadata client-api-version `text`, of which `length` bytes count. Versions
 * are numbered from 0, as they were first seen: 0 is "unknown", of calls that name none, 1 is "other", what is too long or
 * comes when there are too many. 0, or -1: no such version. */
int edge_version_stats(const struct edge *e, int version, char text[32], uint32_t *length, uint64_t started[256]);

/* cdef: end */

#endif
