/* A call's way out: messages, trailers, errors.
 *
 *   answered        HEADERS :status 200
 *   a message       a piece in the call's queue; nghttp2 asks for its bytes when the windows are open
 *   the end         the status, which goes out as trailers behind the last piece; or alone, if there was none before
 *
 * What is answered, in which state, is decided here alone: an answer to a call that has its end already is dropped. */
#include "edge_inside.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME(name, value, length) \
    {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, (length), \
     NGHTTP2_NV_FLAG_NO_COPY_NAME}
#define FIXED(name, value) \
    {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, \
     NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}

/* ---- pieces */

struct edge_shared *edge_shared_new(struct edge *e, const uint8_t *bytes, size_t size) {
    struct edge_shared *s = edge_alloc(e, sizeof *s + size);
    if (!s) return NULL;
    s->serial = ++e->serial;
    s->references = 1;
    s->length = (uint32_t)size;
    if (size) memcpy(s->bytes, bytes, size);
    return s;
}

void edge_shared_let(struct edge *e, struct edge_shared *s) {
    if (--s->references == 0) edge_release(e, s);
}

uint32_t edge_queue_add(struct edge *e, struct edge_queue *q, const uint8_t *framing, const uint8_t *body,
                        uint32_t length, struct edge_shared *shared, bool charged, const uint8_t *suffix,
                        uint8_t suffix_length) {
    struct edge_piece *p = edge_alloc(e, sizeof *p + (shared ? 0 : length));
    if (!p) return 0;
    p->next = NULL;
    p->shared = shared;
    p->body = shared ? shared->length : length;
    p->sent = 0;
    p->cost = (uint32_t)sizeof *p + (charged ? p->body : 0);
    *q->owned += p->cost;
    p->head = framing ? EDGE_FRAMING_BYTES : 0;
    p->suffix = suffix_length;
    if (framing) memcpy(p->framing, framing, EDGE_FRAMING_BYTES);
    if (suffix_length) memcpy(p->suffix_bytes, suffix, suffix_length);
    if (shared) shared->references++;
    else if (length) memcpy(p->bytes, body, length);
    if (!q->first) q->last = &q->first;
    *q->last = p;
    q->last = &p->next;
    q->bytes += p->head + (uint64_t)p->body + p->suffix;
    return p->cost;
}

static void remove_first(struct edge *e, struct edge_queue *q) {
    struct edge_piece *p = q->first;
    q->first = p->next;
    *q->owned -= p->cost;
    if (p->shared) edge_shared_let(e, p->shared);
    edge_release(e, p);
}

void edge_queue_drop(struct edge *e, struct edge_queue *q) {
    while (q->first) remove_first(e, q);
    q->bytes = 0;
}

/* Copies what of [from, from + part) lies at and behind p->sent. Returns false when `size` has run out. */
static bool copy_part(struct edge_piece *p, uint32_t from, const uint8_t *part, uint32_t length, uint8_t **to,
                      size_t *size) {
    if (p->sent >= from + length) return true;
    uint32_t skip = p->sent - from, take = length - skip;
    if (take > *size) take = (uint32_t)*size;
    memcpy(*to, part + skip, take);
    *to += take;
    *size -= take;
    p->sent += take;
    return p->sent == from + length;
}

/* Take the next `size` bytes, which are there, out of the queue. */
void edge_queue_copy(struct edge *e, struct edge_queue *q, uint8_t *to, size_t size) {
    q->bytes -= size;
    while (q->first) {
        struct edge_piece *p = q->first;
        const uint8_t *body = p->shared ? p->shared->bytes : p->bytes;
        if (!copy_part(p, 0, p->framing, p->head, &to, &size) || !copy_part(p, p->head, body, p->body, &to, &size) ||
            !copy_part(p, p->head + p->body, p->suffix_bytes, p->suffix, &to, &size))
            return;
        remove_first(e, q);
    }
}

/* ---- too much waits */

static void hold(struct edge_call *c, int64_t bytes) {
    c->connection->outbound += (uint64_t)bytes;
    c->connection->edge->stats.outbound += (uint64_t)bytes;
}

/* After a message was queued: say so if it is time to stop, end it all if nobody stopped. */
static void measure(struct edge_call *c, uint32_t cost) {
    struct edge_connection *k = c->connection;
    struct edge *e = k->edge;
    if (edge_overdrawn(k, cost)) return;
    if (c->flags & (CALL_BLOCKED | CALL_FINISHED) || !(c->flags & CALL_TOLD) || c->shape & EDGE_CALLS) return;
    if (c->queue.bytes < e->config.outbound_high && k->outbound < e->config.outbound_connection_high) return;
    edge_call_list(c, &k->blocked_calls, CALL_BLOCKED);
    edge_event(e, edge_call_id(c), EDGE_BLOCKED, c->method, 0, 0, NULL, 0, NULL, 0);
}

static void go_on(struct edge_call *c) {
    edge_call_unlist(c, &c->connection->blocked_calls, CALL_BLOCKED);
    edge_event(c->connection->edge, edge_call_id(c), EDGE_WRITABLE, c->method, 0, 0, NULL, 0, NULL, 0);
}

/* After something was sent: those of the connection that may go on. One that has nothing left to send goes on by itself
 * (edge_answer_read), whatever the others hold: a client that leaves some of its streams unread must not stop the rest. */
void edge_answer_unblock(struct edge_connection *k) {
    const struct edge_config *config = &k->edge->config;
    if (!k->blocked_calls || k->outbound > config->outbound_connection_high / 2) return;
    for (struct edge_call *c = k->blocked_calls, *next; c; c = next) {
        next = c->also_next;
        if (c->queue.bytes <= config->outbound_high / 2) go_on(c);
    }
}

/* ---- headers and trailers */

/* The text as HTTP/2 may carry it: printable ASCII but for '%' as it is, all else as %XX (gRPC's rule). */
static size_t percent_encode(char *to, const char *text, size_t length) {
    static const char digits[] = "0123456789ABCDEF";
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte >= 0x20 && byte <= 0x7e && byte != '%') {
            to[n++] = (char)byte;
        } else {
            to[n++] = '%';
            to[n++] = digits[byte >> 4];
            to[n++] = digits[byte & 15];
        }
    }
    return n;
}

static size_t number(char *to, unsigned n) {
    return (size_t)sprintf(to, "%u", n);
}

static void tally(struct edge_call *c) {
    if (c->method) c->connection->edge->tallies[c->method].ended[c->status]++;
}

/* The call has its status: nothing more is awaited for it, or taken from it. */
static void finish(struct edge_call *c, uint16_t status) {
    struct edge *e = c->connection->edge;
    c->status = status <= 16 ? (uint8_t)status : 2;
    c->flags |= CALL_FINISHED;
    edge_call_unlist(c, &c->connection->blocked_calls, CALL_BLOCKED);
    edge_call_unlist(c, &e->piped, CALL_PIPED);
    edge_timer_stop(e, &c->timer);
    tally(c);
}

static void submit_headers(struct edge_call *c) {
    nghttp2_nv head[] = {FIXED(":status", "200"), FIXED("content-type", "application/grpc")};
    nghttp2_data_provider provider = {{.ptr = c}, edge_answer_read};
    c->flags |= CALL_ANSWERED;
    if (nghttp2_submit_response(c->connection->session, c->stream, head, 2, &provider))
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
    edge_ready(c->connection);
}

void edge_answer_headers(struct edge_call *c) {
    if (!(c->flags & (CALL_ANSWERED | CALL_FINISHED | CALL_PLAIN))) submit_headers(c);
}

/* nghttp2 waits for data of this call only if it was told that there is none; it looks by itself otherwise. */
static void resume(struct edge_call *c) {
    if (c->flags & CALL_DEFERRED) {
        c->flags &= (uint16_t)~CALL_DEFERRED;
        nghttp2_session_resume_data(c->connection->session, c->stream);
    }
    edge_ready(c->connection);
}

void edge_answer_message(struct edge_call *c, const uint8_t *payload, uint32_t length, struct edge_shared *shared,
                         const uint8_t *suffix, uint8_t suffix_length) {
    struct edge *e = c->connection->edge;
    bool plain = c->flags & CALL_PLAIN;
    if (c->flags & CALL_FINISHED || (plain && !(c->flags & CALL_ANSWERED)) || (plain && !length)) return;
    uint32_t whole = (shared ? shared->length : length) + suffix_length;
    uint8_t framing[] = {0, (uint8_t)(whole >> 24), (uint8_t)(whole >> 16), (uint8_t)(whole >> 8), (uint8_t)whole};
    bool charged = !shared || shared->serial != c->connection->last_shared;
    if (shared) c->connection->last_shared = shared->serial;
    uint32_t cost = edge_queue_add(e, &c->queue, plain ? NULL : framing, payload, length, shared, charged, suffix,
                                   suffix_length);
    if (!cost) {
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
        return;
    }
    hold(c, (plain ? 0 : EDGE_FRAMING_BYTES) + (int64_t)whole);
    e->stats.messages_out++;
    if (c->flags & CALL_ANSWERED) resume(c);
    else submit_headers(c);
    measure(c, cost);
}

/* The status alone: HEADERS that end the stream. */
static void submit_trailers_only(struct edge_call *c, uint16_t http, uint16_t status, const char *text, size_t length) {
    char http_digits[8], digits[8], encoded[3 * EDGE_TEXT_BYTES_MAX];
    if (length > EDGE_TEXT_BYTES_MAX) length = EDGE_TEXT_BYTES_MAX;
    nghttp2_nv head[] = {NAME(":status", http_digits, number(http_digits, http)),
                         FIXED("content-type", "application/grpc"),
                         NAME("grpc-status", digits, number(digits, status)),
                         NAME("grpc-message", encoded, percent_encode(encoded, text, length))};
    c->flags |= CALL_ANSWERED;
    if (nghttp2_submit_response(c->connection->session, c->stream, head, length ? 4 : 3, NULL))
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
    edge_ready(c->connection);
}

void edge_answer_end(struct edge_call *c, uint16_t status, const char *text, size_t length) {
    struct edge *e = c->connection->edge;
    if (c->flags & CALL_FINISHED || (c->flags & CALL_PLAIN && !(c->flags & CALL_ANSWERED))) return;
    finish(c, status);
    if (!(c->flags & CALL_ANSWERED)) {
        submit_trailers_only(c, 200, c->status, text, length);
        return;
    }
    if (length > EDGE_TEXT_BYTES_MAX) length = EDGE_TEXT_BYTES_MAX;
    if (length && (c->text = edge_alloc(e, length))) {
        memcpy(c->text, text, length);
        c->text_length = (uint32_t)length;
    }
    resume(c);
}

/* ---- streams whose messages are calls */

static void end_and_tell(struct edge_call *c, uint16_t status, const char *text, size_t length) {
    edge_answer_end(c, status, text, length);
    edge_event(c->connection->edge, edge_call_id(c), EDGE_CANCELLED, c->method, c->status, 0, NULL, 0, NULL, 0);
}

void edge_answer_maybe_end(struct edge_call *c) {
    if (c->flags & CALL_REMOTE_CLOSED && !(c->flags & CALL_FINISHED) && !c->unanswered) end_and_tell(c, 0, "", 0);
}

void edge_answer_call(struct edge_call *c, uint16_t status, const uint8_t *payload, uint32_t length) {
    if (c->flags & CALL_FINISHED || !c->unanswered) return;
    if (status) {
        end_and_tell(c, status, (const char *)payload, length);
        return;
    }
    if (!--c->unanswered) edge_call_unlist(c, &c->connection->edge->piped, CALL_PIPED);
    edge_answer_message(c, payload, length, NULL, NULL, 0);
    edge_answer_maybe_end(c);
}

static void submit_trailers(struct edge_call *c) {
    char digits[8], encoded[3 * EDGE_TEXT_BYTES_MAX];
    nghttp2_nv tail[] = {NAME("grpc-status", digits, number(digits, c->status)),
                         NAME("grpc-message", encoded, percent_encode(encoded, c->text, c->text_length))};
    nghttp2_submit_trailer(c->connection->session, c->stream, tail, c->text_length ? 2 : 1);
}

/* nghttp2 asks how much of at most `length` bytes there is to send; it fetches them with send_data in edge_http2.c. */
ssize_t edge_answer_read(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)session, (void)stream, (void)buffer, (void)user;
    struct edge_call *c = source->ptr;
    bool rest = c->queue.bytes <= length;
    if (!c->queue.bytes && !(c->flags & CALL_FINISHED)) {
        c->flags |= CALL_DEFERRED;
        if (c->flags & CALL_BLOCKED) go_on(c);
        return NGHTTP2_ERR_DEFERRED;
    }
    if (c->queue.bytes) *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (!rest) return (ssize_t)length;
    if (c->flags & CALL_FINISHED) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (!(c->flags & CALL_PLAIN)) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            submit_trailers(c);
        }
    }
    return (ssize_t)c->queue.bytes;
}

/* ---- other ends */

/* "content type\nname: value\n..." up to `end`. Returns how many; what is no header is left out. */
static size_t more_headers(nghttp2_nv *to, const uint8_t *at, const uint8_t *end) {
    size_t count = 0;
    for (bool first = true; at < end && count <= EDGE_HEADERS_MAX; first = false) {
        const uint8_t *line = memchr(at, '\n', (size_t)(end - at)), *colon;
        if (!line) line = end;
        if (first) {
            to[count++] = (nghttp2_nv)NAME("content-type", at, (size_t)(line - at));
        } else if ((colon = memchr(at, ':', (size_t)(line - at))) && colon > at && colon + 2 <= line) {
            to[count++] = (nghttp2_nv){(uint8_t *)at, (uint8_t *)colon + 2, (size_t)(colon - at),
                                       (size_t)(line - colon - 2), NGHTTP2_NV_FLAG_NONE};
        }
        at = line + 1;
    }
    return count;
}

void edge_answer_http(struct edge_call *c, uint16_t status, const uint8_t *payload, size_t length, bool more) {
    struct edge *e = c->connection->edge;
    const uint8_t *nul = memchr(payload, 0, length);
    if (!(c->flags & CALL_PLAIN) || c->flags & (CALL_FINISHED | CALL_ANSWERED)) return;
    if (!nul || status < 200 || status > 599) { /* who wrote this meant no such answer */
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
        return;
    }
    size_t body = length - (size_t)(nul - payload) - 1, count = 0;
    char digits[8], size[24];
    if (!more) finish(c, 0);
    nghttp2_nv head[EDGE_HEADERS_MAX + 3] = {NAME(":status", digits, number(digits, status))};
    count = 1 + more_headers(head + 1, payload, nul);
    if (!more) head[count++] = (nghttp2_nv)NAME("content-length", size, number(size, (unsigned)body));
    nghttp2_data_provider provider = {{.ptr = c}, edge_answer_read};
    uint32_t cost = body ? edge_queue_add(e, &c->queue, NULL, nul + 1, (uint32_t)body, NULL, true, NULL, 0) : 0;
    if (body && !cost) {
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
        return;
    }
    if (body) hold(c, (int64_t)body);
    c->flags |= CALL_ANSWERED;
    if (nghttp2_submit_response(c->connection->session, c->stream, head, count, body || more ? &provider : NULL))
        edge_answer_reset(c, NGHTTP2_INTERNAL_ERROR);
    edge_ready(c->connection);
    if (body) measure(c, cost);
}

void edge_answer_reset(struct edge_call *c, uint32_t code) {
    if (!(c->flags & CALL_FINISHED)) finish(c, 1);
    c->flags |= CALL_DEAF;
    nghttp2_submit_rst_stream(c->connection->session, NGHTTP2_FLAG_NONE, c->stream, code);
    edge_ready(c->connection);
}

/* The edge itself says no: an error to the client, and EDGE_CANCELLED to who knows the call. With `http` other than 200
 * it is no gRPC that came. */
void edge_answer_refuse(struct edge_call *c, uint16_t http, uint16_t status, const char *format, ...) {
    char text[EDGE_TEXT_BYTES_MAX];
    va_list more;
    va_start(more, format);
    int length = vsnprintf(text, sizeof text, format, more);
    va_end(more);
    if (length >= (int)sizeof text) length = (int)sizeof text - 1;
    struct edge *e = c->connection->edge;
    bool told = c->flags & CALL_TOLD && !(c->flags & CALL_FINISHED);
    c->flags |= CALL_DEAF;
    if (c->flags & CALL_FINISHED) return;
    if (http == 200 && !(c->flags & CALL_PLAIN)) {
        edge_answer_end(c, status, text, (size_t)length);
    } else {
        finish(c, status);
        submit_trailers_only(c, http, status, text, (size_t)length);
    }
    if (told) edge_event(e, edge_call_id(c), EDGE_CANCELLED, c->method, status, 0, NULL, 0, NULL, 0);
}
