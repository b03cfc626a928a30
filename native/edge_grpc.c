/* A call's way in: headers, then messages in gRPC's framing, then the end of them.
 *
 *   | 0 or 1: compressed | u32 length, big-endian | message ... | 0 or 1 | length | ...         over any DATA frames
 *
 * A unary call is told of when its one message and its end are there; a stream when its headers are, and then message
 * by message. What breaks a rule is answered here, in the way of grpc-go: nobody else hears of it.
 *
 * The window that DATA takes is given back to the connection at once. A stream's is given back as its messages are
 * handed on, or as Python says (EDGE_GRANTED); a message that is larger than the window gets it back while it grows. So
 * the peer may send, per stream, what stream_window says and one message; and what that adds up to is bounded by
 * inbound_connection_max and inbound_max, past which the call that asks for more memory ends with RESOURCE_EXHAUSTED:
 * to wait for memory here would be to wait for other clients. */
#include "edge_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { GRPC_INTERNAL = 13, GRPC_UNIMPLEMENTED = 12, GRPC_RESOURCE_EXHAUSTED = 8, GRPC_DEADLINE_EXCEEDED = 4 };

/* ---- the table of methods */

static uint32_t hash(const char *path, size_t length) { /* FNV-1a */
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < length; i++) h = (h ^ (uint8_t)path[i]) * 16777619u;
    return h;
}

bool edge_method_add(struct edge *e, const struct edge_method *m) {
    size_t length = strlen(m->path);
    if (!m->number || m->path[0] != '/' || length >= EDGE_PATH_BYTES_MAX) {
        errno = EINVAL;
        return false;
    }
    uint32_t at = hash(m->path, length) % EDGE_METHODS_MAX;
    while (e->methods[at].path) at = (at + 1) % EDGE_METHODS_MAX;
    e->methods[at].path = edge_alloc(e, length + 1);
    if (!e->methods[at].path) return false;
    memcpy(e->methods[at].path, m->path, length + 1);
    e->methods[at].length = (uint32_t)length;
    e->methods[at].number = m->number;
    e->methods[at].shape = m->shape;
    e->tallies[m->number].known = true;
    return true;
}

static bool find_method(const struct edge *e, struct edge_call *c) {
    uint32_t at = hash(c->path, c->path_length) % EDGE_METHODS_MAX;
    for (; e->methods[at].path; at = (at + 1) % EDGE_METHODS_MAX) {
        if (e->methods[at].length != c->path_length || memcmp(e->methods[at].path, c->path, c->path_length)) continue;
        c->method = e->methods[at].number;
        c->shape = e->methods[at].shape;
        return true;
    }
    return false;
}

/* ---- birth and death */

struct edge_call *edge_call_new(struct edge_connection *k, int32_t stream) {
    struct edge *e = k->edge;
    struct edge_call *c = edge_alloc(e, sizeof *c);
    if (!c) return NULL;
    memset(c, 0, sizeof *c);
    c->connection = k;
    c->stream = stream;
    c->timer.of = EDGE_TIMER_CALL;
    c->queue.owned = &k->owned;
    c->next = k->calls;
    if (k->calls) k->calls->prev = c;
    k->calls = c;
    k->call_count++;
    e->stats.streams++;
    e->stats.calls++;
    edge_relieve(e);
    return k->gone ? NULL : c;
}

/* What is held for a call that isn't whole: the message being assembled, the token. */
void edge_call_hold(struct edge_call *c, int64_t bytes) {
    c->connection->inbound += (uint64_t)bytes;
    c->connection->edge->stats.inbound += (uint64_t)bytes;
}

static void drop_token(struct edge_call *c) {
    edge_release(c->connection->edge, c->token);
    edge_call_hold(c, -(int64_t)c->token_length);
    c->token = NULL;
    c->token_length = 0;
}

static void drop_more(struct edge_call *c) {
    edge_release(c->connection->edge, c->more);
    edge_call_hold(c, -(int64_t)c->more_length);
    c->more = NULL;
    c->more_length = 0;
}

static void drop_message(struct edge_call *c) {
    edge_release(c->connection->edge, c->message);
    edge_call_hold(c, -(int64_t)c->room);
    c->message = NULL;
    c->have = c->want = c->room = 0;
}

void edge_call_list(struct edge_call *c, struct edge_call **list, uint16_t flag) {
    c->flags |= flag;
    c->also_prev = NULL;
    c->also_next = *list;
    if (*list) (*list)->also_prev = c;
    *list = c;
}

void edge_call_unlist(struct edge_call *c, struct edge_call **list, uint16_t flag) {
    if (!(c->flags & flag)) return;
    c->flags &= (uint16_t)~flag;
    if (c->also_next) c->also_next->also_prev = c->also_prev;
    if (c->also_prev) c->also_prev->also_next = c->also_next;
    else *list = c->also_next;
}

void edge_call_drop(struct edge_call *c, uint32_t error_code) {
    struct edge_connection *k = c->connection;
    struct edge *e = k->edge;
    if (!(c->flags & CALL_FINISHED)) {
        uint16_t status = error_code == NGHTTP2_CANCEL || error_code == NGHTTP2_NO_ERROR || k->gone ? 1 : GRPC_INTERNAL;
        if (c->flags & CALL_TOLD && !k->gone)
            edge_event(e, edge_call_id(c), EDGE_CANCELLED, c->method, status, 0, NULL, 0, NULL, 0);
        if (c->method) e->tallies[c->method].ended[status]++;
    }
    edge_call_unlist(c, &k->blocked_calls, CALL_BLOCKED);
    edge_call_unlist(c, &e->piped, CALL_PIPED);
    edge_timer_stop(e, &c->timer);
    drop_message(c);
    k->outbound -= c->queue.bytes;
    e->stats.outbound -= c->queue.bytes;
    edge_queue_drop(e, &c->queue);
    drop_token(c);
    edge_release(e, c->path);
    drop_more(c);
    edge_release(e, c->text);
    if (c->next) c->next->prev = c->prev;
    if (c->prev) c->prev->next = c->next;
    else k->calls = c->next;
    k->call_count--;
    e->stats.streams--;
    edge_release(e, c);
}

/* ---- headers */

static bool is(const uint8_t *name, const char *wanted, size_t length) {
    return !memcmp(name, wanted, length);
}

static bool keep(struct edge *e, char **to, uint32_t *length, const uint8_t *value, size_t size) {
    char *copy = edge_alloc(e, size + 1);
    if (!copy) return false;
    memcpy(copy, value, size);
    copy[size] = 0;
    edge_release(e, *to);
    *to = copy;
    *length = (uint32_t)size;
    return true;
}

static void note_token(struct edge_call *c, uint8_t which, const uint8_t *value, size_t length) {
    /* What token says counts before authorization, and the first of each. */
    if (c->metadata & EDGE_TOKEN || (c->metadata & EDGE_AUTHORIZATION && which == EDGE_AUTHORIZATION)) return;
    struct edge *e = c->connection->edge;
    drop_token(c);
    if (length > EDGE_TOKEN_BYTES_MAX || c->connection->inbound + length > e->config.inbound_connection_max) {
        c->bad = BAD_HEADERS_TOO_LARGE;
    } else if (keep(e, &c->token, &c->token_length, value, length)) {
        c->metadata = (uint8_t)((c->metadata & (EDGE_HAS_LEADER | EDGE_BAD_VERSION)) | which);
        edge_call_hold(c, (int64_t)length);
    } else {
        e->failed = true;
    }
}

/* A header that means something for EDGE_REQUEST, which there is over TLS alone. A client of gRPC has mostly said by now
 * that it is one, and needn't pay for this. */
static void note_more(struct edge_call *c, const uint8_t *name, size_t name_length, const uint8_t *value,
                      size_t length) {
    struct edge *e = c->connection->edge;
    size_t size = name_length + length + 2;
    if (!c->connection->tls || c->flags & CALL_GRPC) return;
    if (c->more_length + size > EDGE_MORE_BYTES_MAX || c->connection->inbound + size > e->config.inbound_connection_max) {
        c->bad = BAD_HEADERS_TOO_LARGE;
        return;
    }
    char *more = edge_realloc(e, c->more, c->more_length + size);
    if (!more) {
        e->failed = true;
        return;
    }
    c->more = more;
    more += c->more_length;
    *more++ = 0;
    memcpy(more, name, name_length);
    more[name_length] = 0;
    memcpy(more + name_length + 1, value, length);
    c->more_length += (uint32_t)size;
    edge_call_hold(c, (int64_t)size);
}

/* Well-formed (RFC 3629): the shortest form, no surrogates, up to U+10FFFF. */
static bool utf8(const uint8_t *s, size_t length) {
    for (size_t i = 0; i < length;) {
        uint8_t first = s[i++], low = 0x80, high = 0xbf;
        if ((first >= 0x80 && first < 0xc2) || first > 0xf4) return false;
        if (first == 0xe0) low = 0xa0;
        if (first == 0xed) high = 0x9f;
        if (first == 0xf0) low = 0x90;
        if (first == 0xf4) high = 0x8f;
        for (int more = (first >= 0xc2) + (first >= 0xe0) + (first >= 0xf0); more; more--, low = 0x80, high = 0xbf) {
            if (i == length || s[i] < low || s[i] > high) return false;
            i++;
        }
    }
    return true;
}

/* The first one counts. */
static void note_version(struct edge_call *c, const uint8_t *value, size_t length) {
    struct edge *e = c->connection->edge;
    uint32_t i = 2;
    if (c->version || c->metadata & EDGE_BAD_VERSION) return;
    if (!utf8(value, length)) {
        c->metadata |= EDGE_BAD_VERSION;
        return;
    }
    while (i < e->version_count && (e->versions[i].length != length || memcmp(e->versions[i].text, value, length))) i++;
    if (length > EDGE_VERSION_BYTES_MAX || i == EDGE_VERSIONS_MAX) {
        i = 1;
    } else if (i == e->version_count) {
        memcpy(e->versions[i].text, value, length);
        e->versions[i].length = (uint32_t)length;
        e->version_count++;
    }
    c->version = (uint8_t)i;
}

/* 1 to 8 digits and a unit: H, M, S, m, u, n. Rounded up to milliseconds. */
static void note_timeout(struct edge_call *c, const uint8_t *value, size_t length) {
    static const char units[] = "HMSmun";
    static const uint64_t nanoseconds[] = {3600000000000, 60000000000, 1000000000, 1000000, 1000, 1};
    uint64_t n = 0;
    c->bad = c->bad ? c->bad : BAD_TIMEOUT;
    if (length < 2 || length > 9) return;
    for (size_t i = 0; i + 1 < length; i++) {
        if (value[i] < '0' || value[i] > '9') return;
        n = 10 * n + (uint64_t)(value[i] - '0');
    }
    const char *unit = memchr(units, value[length - 1], sizeof units - 1);
    if (!unit) return;
    if (c->bad == BAD_TIMEOUT) c->bad = 0;
    uint64_t scale = nanoseconds[unit - units]; /* an overlong wait is as good as 1000 years */
    uint64_t ms = scale >= 1000000 ? n * (scale / 1000000) : (n * scale + 999999) / 1000000;
    c->deadline = c->connection->edge->now + ms;
}

static void note_method(struct edge_call *c, const uint8_t *value, size_t length) {
    static const char *const names[] = {"", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS"};
    c->request = REQUEST_OTHER;
    for (uint8_t i = REQUEST_POST; i < REQUEST_OTHER; i++)
        if (length == strlen(names[i]) && is(value, names[i], length)) c->request = i;
}

void edge_call_header(struct edge_call *c, const uint8_t *name, size_t name_length, const uint8_t *value,
                      size_t length) {
    struct edge *e = c->connection->edge;
    size_t size = name_length + length + 32;
    if (size > e->config.header_list_max - c->headers) {
        c->bad = BAD_HEADERS_TOO_LARGE;
        return;
    }
    c->headers += (uint32_t)size;
    switch (name_length) {
    case 5:
        if (is(name, ":path", 5) && !keep(e, &c->path, &c->path_length, value, length)) e->failed = true;
        else if (is(name, "token", 5)) note_token(c, EDGE_TOKEN, value, length);
        break;
    case 6:
        if (is(name, "origin", 6) && length && length <= EDGE_ORIGIN_BYTES_MAX)
            note_more(c, name, name_length, value, length);
        break;
    case 7:
        if (is(name, ":method", 7)) note_method(c, value, length);
        break;
    case 9:
        if (is(name, "hasleader", 9) && length == 4 && is(value, "true", 4)) c->metadata |= EDGE_HAS_LEADER;
        break;
    case 12:
        if (is(name, "grpc-timeout", 12)) {
            note_timeout(c, value, length);
            note_more(c, name, name_length, value, length);
        } else if (is(name, "content-type", 12) && length >= 16 && is(value, "application/grpc", 16) &&
                 (length == 16 || value[16] == '+' || value[16] == ';'))
            c->flags |= CALL_GRPC;
        break;
    case 19:
        if (is(name, "grpc-metadata-token", 19)) note_more(c, name, name_length, value, length);
        break;
    case 23:
        if (is(name, "grpc-metadata-hasleader", 23)) note_more(c, name, name_length, value, length);
        break;
    case 27:
        if (is(name, "grpc-metadata-authorization", 27)) note_more(c, name, name_length, value, length);
        break;
    case 18:
        if (is(name, "client-api-version", 18)) note_version(c, value, length);
        break;
    case 13:
        if (is(name, "authorization", 13)) {
            note_token(c, EDGE_AUTHORIZATION, value, length);
            note_more(c, name, name_length, value, length);
        } else if (is(name, "grpc-encoding", 13) && !(length == 8 && is(value, "identity", 8))) {
            if (length >= sizeof c->encoding) length = sizeof c->encoding - 1;
            memcpy(c->encoding, value, length);
        }
        break;
    }
}

static void set_timer(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    uint64_t at = c->deadline && (!c->assembly || c->deadline < c->assembly) ? c->deadline : c->assembly;
    if (!at) edge_timer_stop(e, &c->timer);
    else if (!(c->timer.index && c->timer.at == at) && edge_timer_set(e, &c->timer, at)) e->failed = true;
}

static void tell_begun(struct edge_call *c, uint8_t kind, const void *payload, size_t length) {
    c->flags |= CALL_TOLD;
    edge_event(c->connection->edge, edge_call_id(c), kind, c->method, c->metadata, c->deadline, payload, length,
               c->token, c->token_length);
}

void edge_call_begun(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    c->flags |= CALL_BEGUN;
    if (c->bad == BAD_HEADERS_TOO_LARGE) {
        edge_answer_refuse(c, 200, GRPC_RESOURCE_EXHAUSTED, "received metadata is over %u bytes",
                           e->config.header_list_max);
    } else if (!(c->flags & CALL_GRPC)) {
        /* Over TLS nobody can tell beforehand whether a connection is for gRPC, so here etcd serves both. */
        if (c->connection->tls && c->path) {
            c->flags |= CALL_PLAIN;
            c->bad = 0;
            c->deadline = 0; /* who answers in JSON says in JSON that it is over */
            drop_token(c);
        } else {
            edge_answer_refuse(c, 415, 3, "invalid gRPC request content-type");
        }
    } else if (c->request != REQUEST_POST) {
        edge_answer_refuse(c, 405, GRPC_INTERNAL, "a gRPC request's :method should be POST");
    } else if (c->bad == BAD_TIMEOUT) {
        edge_answer_refuse(c, 400, GRPC_INTERNAL, "malformed grpc-timeout");
    } else if (!find_method(e, c)) {
        c->flags |= CALL_DEAF;
        bool long_one = c->path_length > EDGE_PATH_BYTES_MAX;
        tell_begun(c, EDGE_UNKNOWN, c->path, long_one ? EDGE_PATH_BYTES_MAX : c->path_length);
    } else {
        e->tallies[c->method].started++;
        if (!(c->metadata & EDGE_BAD_VERSION)) e->versions[c->version].started[c->method]++;
        if (c->deadline) set_timer(c);
        if (c->metadata) c->shape &= (uint8_t)~EDGE_CALLS;
        if (c->shape & EDGE_STREAM) tell_begun(c, EDGE_BEGUN, NULL, 0);
    }
    if (!(c->flags & CALL_PLAIN)) {
        edge_release(e, c->path);
        c->path = NULL;
        drop_more(c);
    }
    if (c->flags & (CALL_TOLD | CALL_DEAF)) drop_token(c);
}

/* ---- messages */

/* Have room for `more` bytes of the `want` that there will be. */
bool edge_call_grow(struct edge_call *c, uint32_t more, uint32_t want) {
    struct edge_connection *k = c->connection;
    struct edge *e = k->edge;
    if (c->room - c->have >= more) return true;
    uint64_t room = 2 * (uint64_t)c->have > c->have + (uint64_t)more ? 2 * (uint64_t)c->have : c->have + (uint64_t)more;
    if (room < 256) room = 256;
    if (room > want) room = want;
    uint64_t added = room - c->room;
    uint8_t *message = NULL;
    if (k->inbound + added <= e->config.inbound_connection_max && e->stats.inbound + added <= e->config.inbound_max &&
        e->stats.memory + added <= e->config.memory_max)
        message = edge_realloc(e, c->message, room);
    if (!message) {
        edge_answer_refuse(c, 200, GRPC_RESOURCE_EXHAUSTED, "etcdserver: too many requests");
        drop_message(c);
        return false;
    }
    edge_call_hold(c, (int64_t)added);
    c->message = message;
    c->room = (uint32_t)room;
    return true;
}

/* The five bytes before a message are there: is it one that we take? */
static bool admit(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    const uint8_t *f = c->framing;
    c->want = (uint32_t)f[1] << 24 | (uint32_t)f[2] << 16 | (uint32_t)f[3] << 8 | f[4];
    if (f[0] > 1)
        edge_answer_refuse(c, 200, GRPC_INTERNAL, "grpc: received unexpected payload format %u", f[0]);
    else if (f[0] && !c->encoding[0])
        edge_answer_refuse(c, 200, GRPC_INTERNAL, "grpc: compressed flag set with identity or empty encoding");
    else if (c->encoding[0] && strcmp(c->encoding, "gzip"))
        edge_answer_refuse(c, 200, GRPC_UNIMPLEMENTED, "grpc: Decompressor is not installed for grpc-encoding \"%s\"",
                           c->encoding);
    else if (c->want > e->config.message_max)
        edge_answer_refuse(c, 200, GRPC_RESOURCE_EXHAUSTED, "grpc: received message larger than max (%u vs. %u)",
                           c->want, e->config.message_max);
    else if (c->flags & CALL_HAS_MESSAGE)
        edge_answer_refuse(c, 200, GRPC_INTERNAL, "grpc: more than one message in a unary call");
    if (c->flags & CALL_DEAF) return false;
    if ((uint64_t)c->want + EDGE_FRAMING_BYTES > e->config.stream_window / 2) c->flags |= CALL_GREW;
    return true;
}

static void complete(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    if (c->framing[0] && !edge_gzip_unpack(c)) return;
    c->framing_have = 0;
    c->flags &= (uint16_t)~CALL_GREW;
    e->stats.messages_in++;
    if (!(c->shape & EDGE_STREAM)) {
        c->flags |= CALL_HAS_MESSAGE;
        return;
    }
    bool is_call = c->shape & EDGE_CALLS;
    if (is_call) {
        c->unanswered++;
        if (!(c->flags & CALL_PIPED)) edge_call_list(c, &e->piped, CALL_PIPED);
    }
    if (is_call && e->calls.size < e->config.batch_bytes && e->call_count < e->config.batch_records)
        edge_call_record(e, edge_call_id(c), c->method, c->message, c->have);
    else
        edge_event(e, edge_call_id(c), EDGE_MESSAGE, c->method, 0, 0, c->message, c->have, NULL, 0);
    drop_message(c);
}

/* A body that is too large is read to its end, for clients that write first and read then. */
static void take_plain(struct edge_call *c, const uint8_t *data, size_t size) {
    c->flags |= CALL_GREW;
    if (!c->bad && size > c->connection->edge->config.message_max - c->have) {
        c->bad = BAD_BODY_TOO_LARGE;
        drop_message(c);
    }
    if (c->bad || !edge_call_grow(c, (uint32_t)size, UINT32_MAX)) return;
    memcpy(c->message + c->have, data, size);
    c->have += (uint32_t)size;
}

static void take(struct edge_call *c, const uint8_t *data, size_t size) {
    while (!(c->flags & CALL_DEAF)) {
        if (c->framing_have < EDGE_FRAMING_BYTES) {
            if (!size) return;
            c->framing[c->framing_have++] = *data++;
            size--;
            if (c->framing_have < EDGE_FRAMING_BYTES || !admit(c)) continue;
        }
        uint32_t n = c->want - c->have;
        if (n > size) n = (uint32_t)size;
        if (n && !edge_call_grow(c, n, c->want)) return;
        if (n) memcpy(c->message + c->have, data, n);
        c->have += n;
        data += n;
        size -= n;
        if (c->have < c->want) return;
        complete(c);
    }
}

void edge_call_data(struct edge_call *c, const uint8_t *data, size_t size) {
    struct edge_connection *k = c->connection;
    nghttp2_session_consume_connection(k->session, size);
    if (c->flags & CALL_DEAF) return;
    c->owed += (uint32_t)size;
    if (c->flags & CALL_PLAIN) take_plain(c, data, size);
    else take(c, data, size);
    if (c->flags & CALL_DEAF) {
        drop_message(c);
        return;
    }
    if (c->flags & CALL_GREW || (c->shape & (EDGE_STREAM | EDGE_GRANTED)) == EDGE_STREAM) edge_call_grant(c);
    bool partial = c->framing_have || c->message || c->flags & CALL_PLAIN;
    if (partial == (c->assembly != 0)) return;
    c->assembly = partial ? k->edge->now + k->edge->config.assembly_ms : 0;
    set_timer(c);
}

void edge_call_grant(struct edge_call *c) {
    if (!c->owed || c->flags & CALL_REMOTE_CLOSED) return;
    nghttp2_session_consume_stream(c->connection->session, c->stream, c->owed);
    c->owed = 0;
    edge_ready(c->connection);
}

/* ---- the end of what comes in */

static void dispatch(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    /* One read can complete many large messages, so what a wire batch may not hold becomes events as well. */
    if (c->shape != EDGE_PIPE || c->metadata || e->calls.size >= e->config.batch_bytes ||
        e->call_count >= e->config.batch_records) {
        tell_begun(c, EDGE_CALL, c->message, c->have);
        return;
    }
    if (edge_call_record(e, edge_call_id(c), c->method, c->message, c->have)) edge_call_list(c, &e->piped, CALL_PIPED);
}

static void request(struct edge_call *c) {
    static const char *const names[] = {"", "POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "OTHER"};
    struct edge *e = c->connection->edge;
    const char *name = names[c->request];
    size_t length = strlen(name), size = length + 1 + c->path_length;
    char *line = edge_alloc(e, size + c->more_length);
    if (!line) {
        e->failed = true;
        return;
    }
    memcpy(line, name, length);
    line[length] = ' ';
    memcpy(line + length + 1, c->path, c->path_length);
    if (c->more) memcpy(line + size, c->more, c->more_length);
    c->flags |= CALL_TOLD;
    edge_event(e, edge_call_id(c), EDGE_REQUEST, 0, 0, 0, c->message, c->have, line, size + c->more_length);
    drop_more(c);
    edge_release(e, line);
}

void edge_call_half_closed(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    c->flags |= CALL_REMOTE_CLOSED;
    if (c->flags & CALL_DEAF) return;
    if (c->flags & CALL_PLAIN && c->bad)
        edge_answer_refuse(c, 413, GRPC_RESOURCE_EXHAUSTED, "the body is over %u bytes", e->config.message_max);
    else if (c->flags & CALL_PLAIN) request(c);
    else if (c->framing_have) edge_answer_refuse(c, 200, GRPC_INTERNAL, "unexpected EOF");
    else if (c->shape & EDGE_CALLS)
        edge_answer_maybe_end(c);
    else if (c->shape & EDGE_STREAM)
        edge_event(e, edge_call_id(c), EDGE_HALF_CLOSED, c->method, 0, 0, NULL, 0, NULL, 0);
    else if (!(c->flags & CALL_HAS_MESSAGE))
        edge_answer_refuse(c, 200, GRPC_INTERNAL, "grpc: no message in a unary call");
    else dispatch(c);
    drop_message(c);
    drop_token(c);
    if (!c->assembly) return;
    c->assembly = 0;
    if (!(c->flags & CALL_FINISHED)) set_timer(c);
}

void edge_call_timer(struct edge_call *c) {
    struct edge *e = c->connection->edge;
    e->stats.timeouts++;
    if (c->deadline && c->deadline <= e->now)
        edge_answer_refuse(c, 200, GRPC_DEADLINE_EXCEEDED, "context deadline exceeded");
    else
        edge_answer_refuse(c, c->flags & CALL_PLAIN ? 408 : 200, GRPC_RESOURCE_EXHAUSTED,
                           "the message was not whole within %u ms", e->config.assembly_ms);
    drop_message(c);
}
