/* HTTP/2: one nghttp2 session per connection. Here is what the session tells us, and what a peer may not do to it.
 *
 * nghttp2 parses frames and headers, keeps windows and states, and ends a session that breaks HTTP/2's rules; those of
 * HTTP for headers are judged here. What obeys them all and still does harm is stopped, with GOAWAY ENHANCE_YOUR_CALM:
 *   frames that carry nothing (PING, SETTINGS, PRIORITY, empty DATA)            a budget, `noise`
 *   calls begun and reset at once (CVE-2023-44487)                              a budget, `resets`
 *   header blocks without end (CONTINUATION, CVE-2024-28182)                    a count, continuations_max
 *   headers without end in a few bytes (HPACK)                                  header_list_max, in edge_grpc.c
 *   pings to keep alive what needs no keeping (etcd: sooner than every 5 s)     strikes, "too_many_pings"
 * Frames of unknown types are skipped by nghttp2, at no more cost than reading them.
 * The library has limits of its own for some of these; they differ between versions, so none is relied on. */
#include "edge_inside.h"

#include <string.h>

enum { SETTINGS_COST = 10, INVALID_COST = 10 };

static struct edge_call *call_of(struct edge_connection *k, int32_t stream) {
    return nghttp2_session_get_stream_user_data(k->session, stream);
}

void edge_http2_goaway(struct edge_connection *k, uint32_t code, const char *text, int reason) {
    if (k->closing || k->gone) return;
    edge_connection_close(k, reason);
    nghttp2_submit_goaway(k->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(k->session), code,
                          (const uint8_t *)text, strlen(text));
}

static int flood(struct edge_connection *k, const char *what) {
    k->edge->stats.floods++;
    edge_http2_goaway(k, NGHTTP2_ENHANCE_YOUR_CALM, what, EDGE_TOO_MUCH);
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int spend(struct edge_connection *k, uint32_t cost) {
    const struct edge_config *config = &k->edge->config;
    if (edge_spend(k->edge, &k->noise, config->noise_burst, config->noise_rate, cost)) return 0;
    return flood(k, "too many frames that carry nothing");
}

/* ---- what the session tells */

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *frame, void *user) {
    (void)session;
    struct edge_connection *k = user;
    bool ack = frame->flags & NGHTTP2_FLAG_ACK;
    switch (frame->type) {
    case NGHTTP2_CONTINUATION:
        if (++k->continuations > k->edge->config.continuations_max) return flood(k, "too many CONTINUATION frames");
        return 0;
    case NGHTTP2_HEADERS:
        k->continuations = 0;
        return 0;
    case NGHTTP2_DATA:
        return frame->length || frame->flags & NGHTTP2_FLAG_END_STREAM ? 0 : spend(k, 1);
    case NGHTTP2_SETTINGS:
        return ack ? 0 : spend(k, SETTINGS_COST);
    case NGHTTP2_PING:
        return ack ? 0 : spend(k, 1);
    case NGHTTP2_RST_STREAM:
    case NGHTTP2_WINDOW_UPDATE:
        return 0;
    default:
        return spend(k, 1);
    }
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user) {
    (void)session, (void)frame, (void)error;
    return spend(user, INVALID_COST);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct edge_connection *k = user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    struct edge_call *c = edge_call_new(k, frame->hd.stream_id);
    if (!c) return NGHTTP2_ERR_CALLBACK_FAILURE;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, c);
    return 0;
}

/* The rules of HTTP for a request's headers (RFC 9113, 8.2 and 8.3). nghttp2 isn't asked to watch over them, because it
 * would refuse etcd's clients up to 3.4: to an endpoint that is given as a URL they send all of it as :authority. That
 * field we don't look at, and nothing is passed on as HTTP, so what a wrong one could do ends here. content-length isn't
 * looked at either. As nghttp2 does it, a field that can't be is left out, and what could be meant to deceive refused. */
enum verdict { FINE, LEFT_OUT, MALFORMED };

static bool named(const uint8_t *name, size_t length, const char *wanted) {
    return length == strlen(wanted) && !memcmp(name, wanted, length);
}

static enum verdict judge_pseudo(struct edge_call *c, const uint8_t *name, size_t name_length, const uint8_t *value,
                                 size_t length) {
    uint8_t which = 0;
    bool sound = nghttp2_check_header_value_rfc9113(value, length);
    if (named(name, name_length, ":method")) which = SEEN_METHOD, sound = nghttp2_check_method(value, length);
    else if (named(name, name_length, ":path")) which = SEEN_PATH, sound = length && nghttp2_check_path(value, length);
    else if (named(name, name_length, ":scheme")) which = SEEN_SCHEME;
    else if (named(name, name_length, ":authority")) which = SEEN_AUTHORITY;
    if (!which || !sound || c->seen & (which | SEEN_REGULAR)) return MALFORMED;
    c->seen |= which;
    return FINE;
}

static enum verdict judge(struct edge_call *c, const uint8_t *name, size_t name_length, const uint8_t *value,
                          size_t length) {
    static const char *const of_connections[] = {"connection", "keep-alive", "proxy-connection", "transfer-encoding",
                                                 "upgrade"};
    if (name_length && name[0] == ':') return judge_pseudo(c, name, name_length, value, length);
    c->seen |= SEEN_REGULAR;
    for (size_t i = 0; i < name_length; i++)
        if (name[i] >= 'A' && name[i] <= 'Z') return MALFORMED;
    for (size_t i = 0; i < sizeof of_connections / sizeof of_connections[0]; i++)
        if (named(name, name_length, of_connections[i])) return MALFORMED;
    if (named(name, name_length, "te") && !named(value, length, "trailers")) return MALFORMED;
    if (!nghttp2_check_header_name(name, name_length) || !nghttp2_check_header_value_rfc9113(value, length)) return LEFT_OUT;
    return FINE;
}

static int reset(struct edge_connection *k, struct edge_call *c) {
    if (!(c->seen & SEEN_RESET)) nghttp2_submit_rst_stream(k->session, NGHTTP2_FLAG_NONE, c->stream, NGHTTP2_PROTOCOL_ERROR);
    c->seen |= SEEN_RESET;
    return spend(k, INVALID_COST);
}

/* Of this call nobody else hears. */
static int malformed(struct edge_connection *k, struct edge_call *c) {
    c->flags |= CALL_BEGUN | CALL_DEAF;
    return reset(k, c);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
    (void)session, (void)flags;
    struct edge_connection *k = user;
    struct edge_call *c = call_of(k, frame->hd.stream_id);
    if (!c || c->flags & CALL_BEGUN) return 0;
    enum verdict verdict = judge(c, name, name_length, value, value_length);
    if (verdict == MALFORMED) return malformed(k, c);
    if (verdict == FINE) edge_call_header(c, name, name_length, value, value_length);
    return 0;
}

/* As grpc-go counts: a ping is welcome once after we sent something, and else at most every ping_min_ms. */
static int on_ping(struct edge_connection *k) {
    const struct edge *e = k->edge;
    uint64_t before = k->ping_at;
    k->ping_at = e->now;
    if (k->ping_reset) {
        k->ping_reset = false;
        k->strikes = 0;
    } else if (before && e->now - before < e->config.ping_min_ms && ++k->strikes > e->config.ping_strikes_max) {
        return flood(k, "too_many_pings");
    }
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)session;
    struct edge_connection *k = user;
    const struct edge_config *config = &k->edge->config;
    struct edge_call *c = NULL;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        c = call_of(k, frame->hd.stream_id);
        if (!c) break;
        if (!(c->flags & CALL_BEGUN)) {
            if ((c->seen & SEEN_NEEDED) != SEEN_NEEDED) return malformed(k, c);
            edge_call_begun(c);
        } else if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) {
            return reset(k, c); /* trailers end a stream */
        }
        break;
    case NGHTTP2_DATA:
        c = call_of(k, frame->hd.stream_id);
        break;
    case NGHTTP2_PING:
        if (!(frame->hd.flags & NGHTTP2_FLAG_ACK)) return on_ping(k);
        break;
    case NGHTTP2_GOAWAY:
        k->peer_left = true;
        break;
    case NGHTTP2_RST_STREAM:
        c = call_of(k, frame->hd.stream_id);
        if (!c || c->flags & CALL_FINISHED) return 0;
        k->edge->stats.resets++;
        if (edge_spend(k->edge, &k->resets, config->reset_burst, config->reset_rate, 1)) return 0;
        return flood(k, "too many calls reset");
    }
    if (c && frame->hd.flags & NGHTTP2_FLAG_END_STREAM) edge_call_half_closed(c);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t size,
                   void *user) {
    (void)flags;
    struct edge_call *c = call_of(user, stream);
    if (c) edge_call_data(c, data, size);
    else nghttp2_session_consume_connection(session, size);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error_code, void *user) {
    (void)session;
    struct edge_call *c = call_of(user, stream);
    if (c) edge_call_drop(c, error_code);
    return 0;
}

/* Whoever has our answer and goes on sending is told that nobody listens (RFC 9113, 8.1). And a client may break rules
 * call by call so that it is we who reset them (CVE-2025-8671): that counts as if it did. */
static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct edge_connection *k = user;
    const struct edge_config *config = &k->edge->config;
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR &&
        !edge_spend(k->edge, &k->resets, config->reset_burst, config->reset_rate, 1))
        flood(k, "too many calls reset");
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    k->ping_reset = true;
    if (!(frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) return 0;
    struct edge_call *c = call_of(k, frame->hd.stream_id);
    if (c && !(c->flags & CALL_REMOTE_CLOSED))
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

/* The bytes that edge_answer_read() promised, behind their frame's header, into the scratch buffer. */
static int send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
                     nghttp2_data_source *source, void *user) {
    (void)session, (void)frame;
    struct edge_connection *k = user;
    struct edge *e = k->edge;
    struct edge_call *c = source->ptr;
    if (e->scratch_used >= EDGE_SCRATCH_BYTES) return NGHTTP2_ERR_WOULDBLOCK;
    memcpy(e->scratch + e->scratch_used, head, 9);
    edge_queue_copy(e, &c->queue, e->scratch + e->scratch_used + 9, length);
    e->scratch_used += 9 + length;
    k->outbound -= length;
    e->stats.outbound -= length;
    return 0;
}

/* ---- a session's life */

int edge_http2_setup(struct edge *e) {
    nghttp2_session_callbacks *to;
    if (nghttp2_session_callbacks_new(&e->callbacks) || nghttp2_option_new(&e->option)) return -1;
    to = e->callbacks;
    nghttp2_session_callbacks_set_on_begin_frame_callback(to, on_begin_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(to, on_invalid_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(to, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(to, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(to, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(to, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(to, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(to, on_frame_sent);
    nghttp2_session_callbacks_set_send_data_callback(to, send_data);
    nghttp2_option_set_no_http_messaging(e->option, 1); /* judge() says why */
    nghttp2_option_set_no_auto_window_update(e->option, 1);
    nghttp2_option_set_no_closed_streams(e->option, 1);
    /* Our own budgets are to be met first, since ours say what is wrong. */
    nghttp2_option_set_stream_reset_rate_limit(e->option, 2 * (uint64_t)e->config.reset_burst + 1000,
                                               2 * (uint64_t)e->config.reset_rate);
    nghttp2_option_set_max_continuations(e->option, e->config.continuations_max + 1);
    return 0;
}

void edge_http2_begin(struct edge_connection *k) {
    struct edge *e = k->edge;
    const struct edge_config *config = &e->config;
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, config->streams_max},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, config->stream_window},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, config->header_list_max},
    };
    k->resets = (struct edge_budget){config->reset_burst, e->now};
    k->noise = (struct edge_budget){config->noise_burst, e->now};
    if (nghttp2_session_server_new3(&k->session, e->callbacks, k, e->option, &e->memory) ||
        nghttp2_submit_settings(k->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof settings[0]) ||
        nghttp2_session_set_local_window_size(k->session, NGHTTP2_FLAG_NONE, 0, (int32_t)config->connection_window)) {
        edge_lose(k, EDGE_BY_US);
        return;
    }
    edge_ready(k);
}

void edge_http2_input(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    ssize_t n = nghttp2_session_mem_recv(k->session, bytes, size);
    if (n < 0) {
        /* It is as good as closed. What there is to say about it (GOAWAY) was said by flood(), or is now. */
        edge_http2_goaway(k, n == NGHTTP2_ERR_FLOODED ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR, "",
                          n == NGHTTP2_ERR_FLOODED ? EDGE_TOO_MUCH : EDGE_BAD_PROTOCOL);
        return;
    }
    if (nghttp2_session_want_write(k->session) || !nghttp2_session_want_read(k->session)) edge_ready(k);
}

void edge_http2_fill(struct edge_connection *k) {
    struct edge *e = k->edge;
    while (e->scratch_used < EDGE_SCRATCH_BYTES) {
        const uint8_t *bytes;
        ssize_t n = nghttp2_session_mem_send(k->session, &bytes);
        if (n < 0) edge_lose(k, EDGE_BY_US);
        if (n <= 0) break;
        memcpy(e->scratch + e->scratch_used, bytes, (size_t)n);
        e->scratch_used += (size_t)n;
    }
}

bool edge_http2_over(const struct edge_connection *k) {
    return !nghttp2_session_want_read(k->session) && !nghttp2_session_want_write(k->session);
}

bool edge_http2_choked(const struct edge_connection *k) {
    return nghttp2_session_get_outbound_queue_size(k->session) > (size_t)k->edge->config.streams_max + 1000;
}

void edge_http2_ping(struct edge_connection *k) {
    nghttp2_submit_ping(k->session, NGHTTP2_FLAG_NONE, NULL);
    edge_ready(k);
}

/* Twice: first no new calls are wished for, then, when that has been heard, none are taken. */
void edge_http2_shutdown(struct edge_connection *k, bool last) {
    if (!last) nghttp2_submit_shutdown_notice(k->session);
    else
        nghttp2_submit_goaway(k->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(k->session),
                              NGHTTP2_NO_ERROR, NULL, 0);
    edge_ready(k);
}

void edge_http2_drop(struct edge_connection *k) {
    while (k->calls) edge_call_drop(k->calls, NGHTTP2_NO_ERROR);
    nghttp2_session_del(k->session);
    k->session = NULL;
}
