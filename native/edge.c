/* The edge's page for its caller (edge.h): making one, listening, polling, delivering. */
#include "edge_inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { TABLE_SIZE = 256, POLLED_MAX = 256, POLLS_MAX = 16, BACKLOG = 4096 };

/* ---- making and ending one */

static bool sound(const struct edge_config *c) {
    const uint64_t positive[] = {
        c->connections_max, c->streams_max, c->message_max, c->header_list_max, c->continuations_max,
        c->stream_window, c->connection_window, c->inbound_connection_max, c->inbound_max, c->outbound_high,
        c->outbound_connection_high, c->outbound_connection_max, c->memory_max, c->reset_burst, c->reset_rate,
        c->noise_burst, c->noise_rate, c->ping_min_ms, c->ping_strikes_max, c->handshake_ms, c->keepalive_timeout_ms,
        c->assembly_ms, c->batch_bytes, c->batch_records};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (!positive[i]) return false;
    return c->stream_window <= INT32_MAX && c->connection_window <= INT32_MAX && c->message_max <= INT32_MAX &&
           c->ping_strikes_max < UINT8_MAX && c->inbound_max >= c->message_max &&
           c->inbound_connection_max >= c->message_max;
}

static bool set_up(struct edge *e, const struct edge_method *methods, size_t count) {
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    e->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (e->epoll < 0 || e->clock < 0 || e->spare < 0) return false;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &e->clock_source};
    e->clock_source.kind = EDGE_CLOCK;
    if (epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->clock, &event)) return false;
    e->table_size = TABLE_SIZE;
    e->table = edge_alloc(e, TABLE_SIZE * sizeof *e->table);
    e->read_buffer = edge_alloc(e, EDGE_READ_BYTES);
    e->scratch = edge_alloc(e, EDGE_SCRATCH_BYTES + 4 * EDGE_FRAME_BYTES_MAX);
    if (!e->table || !e->read_buffer || !e->scratch || edge_http2_setup(e)) {
        errno = ENOMEM;
        return false;
    }
    memset(e->table, 0, TABLE_SIZE * sizeof *e->table);
    for (size_t i = 0; i < count; i++)
        if (!edge_method_add(e, &methods[i])) return false;
    return true;
}

struct edge *edge_new(const struct edge_config *config, const struct edge_method *methods, size_t count) {
    if (!sound(config) || count > EDGE_METHODS_MAX / 2) {
        errno = EINVAL;
        return NULL;
    }
    struct edge *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->config = *config;
    e->epoll = e->clock = e->spare = -1;
    e->now = edge_milliseconds();
    memcpy(e->versions[0].text, "unknown", e->versions[0].length = 7);
    memcpy(e->versions[1].text, "other", e->versions[1].length = 5);
    e->version_count = 2;
    edge_memory(e);
    if (!set_up(e, methods, count)) {
        int error = errno;
        edge_free(e);
        errno = error;
        return NULL;
    }
    return e;
}

static void stop_listening(struct edge *e) {
    while (e->listener_count) close(e->listeners[--e->listener_count].socket);
}

void edge_free(struct edge *e) {
    stop_listening(e);
    for (struct edge_connection *k = e->connections; k; k = k->next) edge_lose(k, EDGE_BY_US);
    if (e->table) edge_reap(e);
    for (size_t i = 0; i < EDGE_METHODS_MAX; i++) edge_release(e, e->methods[i].path);
    edge_release(e, e->table);
    edge_release(e, e->heap);
    edge_release(e, e->calls.bytes);
    edge_release(e, e->bytes.bytes);
    edge_release(e, e->events);
    edge_release(e, e->read_buffer);
    edge_release(e, e->scratch);
    nghttp2_session_callbacks_del(e->callbacks);
    nghttp2_option_del(e->option);
    edge_tls_free(e);
    edge_gzip_free(e);
    if (e->epoll >= 0) close(e->epoll);
    if (e->clock >= 0) close(e->clock);
    if (e->spare >= 0) close(e->spare);
    free(e);
}

/* ---- listening */

static int open_listener(const char *address, int port, int reuse_port) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    bool is_four = inet_pton(AF_INET, address, &four.sin_addr) == 1;
    if (!is_four && inet_pton(AF_INET6, address, &six.sin6_addr) != 1) {
        errno = EINVAL;
        return -1;
    }
    int on = 1, s = socket(is_four ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s < 0) return -1;
    const struct sockaddr *name = is_four ? (const struct sockaddr *)&four : (const struct sockaddr *)&six;
    if (!setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) &&
        (!reuse_port || !setsockopt(s, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on)) &&
        (is_four || !setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on)) &&
        !bind(s, name, is_four ? sizeof four : sizeof six) && !listen(s, BACKLOG))
        return s;
    int error = errno;
    close(s);
    errno = error;
    return -1;
}

static int port_of(int socket) {
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    } name;
    socklen_t size = sizeof name;
    if (getsockname(socket, &name.any, &size)) return -1;
    return ntohs(name.any.sa_family == AF_INET ? name.four.sin_port : name.six.sin6_port);
}

static bool may_listen(const struct edge *e, int tls) {
    return e->listener_count < EDGE_LISTENERS_MAX && !e->draining && (!tls || e->tls.context);
}

int edge_listen_on(struct edge *e, int socket, int tls) {
    struct edge_listener *l = &e->listeners[e->listener_count];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = l};
    int error = EINVAL;
    if (may_listen(e, tls)) {
        *l = (struct edge_listener){{EDGE_LISTENER}, socket, tls};
        if (!epoll_ctl(e->epoll, EPOLL_CTL_ADD, socket, &event)) {
            e->listener_count++;
            return 0;
        }
        error = errno;
    }
    close(socket);
    errno = error;
    return -1;
}

int edge_listen(struct edge *e, const char *address, int port, int reuse_port, int tls) {
    if (!may_listen(e, tls) || port < 0 || port > 65535) {
        errno = EINVAL;
        return -1;
    }
    int s = open_listener(address, port, reuse_port);
    return s < 0 || edge_listen_on(e, s, tls) ? -1 : port_of(s);
}

int edge_adopt(struct edge *e, int socket, int tls) {
    e->now = edge_milliseconds();
    int flags = fcntl(socket, F_GETFL);
    if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK) || fcntl(socket, F_SETFD, FD_CLOEXEC)) {
        close(socket);
        return -1;
    }
    int result = edge_connect(e, socket, tls);
    edge_clock_set(e, false);
    return result;
}

int edge_fileno(const struct edge *e) {
    return e->epoll;
}

/* ---- one turn */

static void ring(struct edge *e) {
    uint64_t count;
    if (read(e->clock, &count, sizeof count) == sizeof count) e->armed = 0;
}

static void serve(struct edge *e, const struct epoll_event *event) {
    struct edge_source *source = event->data.ptr;
    switch (source->kind) {
    case EDGE_LISTENER:
        edge_accept(e, (struct edge_listener *)source);
        break;
    case EDGE_CONNECTION:
        edge_connection_io((struct edge_connection *)source, event->events);
        break;
    case EDGE_CLOCK:
        ring(e);
        break;
    }
}

#define OWNER(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

static void run_timers(struct edge *e) {
    struct edge_timer *t;
    while ((t = edge_timer_due(e))) {
        if (t->of == EDGE_TIMER_CALL) edge_call_timer(OWNER(t, struct edge_call, timer));
        else edge_connection_timer(OWNER(t, struct edge_connection, timer));
    }
}

/* What was caused leaves now, and who is lost is buried: after this no callback and no list knows him. */
static void conclude(struct edge *e) {
    edge_flush(e);
    edge_reap(e);
}

int edge_poll(struct edge *e, int timeout_ms, struct edge_batch *batch) {
    struct epoll_event polled[POLLED_MAX];
    bool gathered = e->event_count || e->call_count;
    int n = POLLED_MAX;
    for (int i = 0; i < POLLS_MAX && n == POLLED_MAX && !edge_batch_full(e); i++) {
        n = epoll_wait(e->epoll, polled, POLLED_MAX, gathered || i ? 0 : timeout_ms);
        if (n < 0) return -1;
        e->now = edge_milliseconds();
        for (int j = 0; j < n; j++) serve(e, &polled[j]);
        conclude(e);
    }
    e->now = edge_milliseconds();
    run_timers(e);
    conclude(e);
    edge_clock_set(e, false);
    if (e->failed) {
        errno = ENOMEM;
        return -1;
    }
    *batch = (struct edge_batch){.calls = e->calls.bytes,
                                 .calls_size = e->calls.size,
                                 .events = e->events,
                                 .event_count = e->event_count,
                                 .bytes = e->bytes.bytes,
                                 .bytes_size = e->bytes.size,
                                 .call_count = e->call_count};
    return 0;
}

/* Room that a rare large batch has needed is not kept for ever. */
static void empty(struct edge *e, struct edge_bytes *b) {
    b->size = 0;
    if (b->room <= 1 << 20) return;
    edge_release(e, b->bytes);
    *b = (struct edge_bytes){0};
}

void edge_clear(struct edge *e) {
    e->event_count = 0;
    e->call_count = 0;
    empty(e, &e->calls);
    empty(e, &e->bytes);
}

/* ---- answers */

static struct edge_call *find_call(struct edge *e, uint64_t id) {
    struct edge_connection *k = edge_connection_find(e, (uint32_t)(id >> 32));
    if (!k || !k->session || !(uint32_t)id) return NULL;
    return nghttp2_session_get_stream_user_data(k->session, (int32_t)(uint32_t)id);
}

static uint64_t little(const uint8_t *from, int bytes) {
    uint64_t n = 0;
    for (int i = bytes - 1; i >= 0; i--) n = n << 8 | from[i];
    return n;
}

static bool carry_out_call(struct edge *e, uint8_t kind, uint16_t status, uint64_t id, const uint8_t *payload,
                           uint32_t length) {
    struct edge_call *c = find_call(e, id);
    if (!c) return false;
    switch (kind) {
    case EDGE_REPLY:
        if (c->shape & EDGE_CALLS) {
            edge_answer_call(c, status, payload, length);
            return true;
        }
        if (!status) edge_answer_message(c, payload, length, NULL, NULL, 0);
        edge_answer_end(c, status, (const char *)payload, status ? length : 0);
        return true;
    case EDGE_SEND:
        edge_answer_message(c, payload, length, NULL, NULL, 0);
        return true;
    case EDGE_END:
        edge_answer_end(c, status, (const char *)payload, length);
        return true;
    case EDGE_HEADERS:
        edge_answer_headers(c);
        return true;
    case EDGE_RESET:
        edge_answer_reset(c, status);
        return true;
    case EDGE_RESPONSE:
    case EDGE_RESPONSE_BEGUN:
        edge_answer_http(c, status, payload, length, kind == EDGE_RESPONSE_BEGUN);
        return true;
    default:
        edge_call_grant(c);
        return true;
    }
}

static bool carry_out_connection(struct edge *e, uint8_t kind, uint64_t id, const uint8_t *payload, uint32_t length) {
    struct edge_connection *k = edge_connection_find(e, (uint32_t)(id >> 32));
    if (!k || (k->mode != MODE_HTTP1 && kind != EDGE_CLOSE)) return false;
    switch (kind) {
    case EDGE_WRITE:
        edge_connection_write(k, payload, length);
        return true;
    case EDGE_CLOSE:
        if (k->session) edge_http2_goaway(k, NGHTTP2_NO_ERROR, "", EDGE_BY_US);
        else edge_connection_close(k, EDGE_BY_US);
        return true;
    default:
        k->paused = kind == EDGE_PAUSE;
        edge_interest(k);
        return true;
    }
}

/* After answers: what they caused leaves, and what is to be told is told by the next poll, which a poller must see. */
static void depart(struct edge *e) {
    conclude(e);
    edge_clock_set(e, e->event_count || e->call_count);
}

int64_t edge_deliver(struct edge *e, const uint8_t *batch, size_t size) {
    int64_t found = 0;
    size_t at = 0;
    bool wrong = false;
    e->now = edge_milliseconds();
    while (at < size && !wrong) {
        const uint8_t *record = batch + at, *payload = record + EDGE_RECORD_BYTES;
        uint64_t length = size - at < EDGE_RECORD_BYTES ? 0 : little(record, 4);
        if (size - at < EDGE_RECORD_BYTES || length > size - at - EDGE_RECORD_BYTES) {
            wrong = true;
            break;
        }
        uint16_t status = (uint16_t)little(record + 6, 2);
        uint64_t id = little(record + 8, 8);
        at += EDGE_RECORD_BYTES + length;
        switch (record[5]) {
        case EDGE_REPLY:
        case EDGE_SEND:
        case EDGE_END:
        case EDGE_HEADERS:
        case EDGE_RESET:
        case EDGE_GRANT:
        case EDGE_RESPONSE:
        case EDGE_RESPONSE_BEGUN:
            found += carry_out_call(e, record[5], status, id, payload, (uint32_t)length);
            break;
        case EDGE_WRITE:
        case EDGE_CLOSE:
        case EDGE_PAUSE:
        case EDGE_RESUME:
            found += carry_out_connection(e, record[5], id, payload, (uint32_t)length);
            break;
        default:
            wrong = true;
        }
    }
    depart(e);
    if (!wrong) return found;
    errno = EINVAL;
    return -1;
}

int64_t edge_fan_out(struct edge *e, const uint8_t *payload, size_t size, const uint64_t *calls, const uint32_t *ends,
                     size_t count, const uint8_t *suffixes, size_t suffixes_size) {
    uint32_t from = 0;
    bool wrong = size > INT32_MAX;
    for (size_t i = 0; i < count && !wrong; from = ends[i++])
        wrong = ends[i] < from || ends[i] - from > EDGE_SUFFIX_MAX || ends[i] > suffixes_size;
    if (wrong) {
        errno = EINVAL;
        return -1;
    }
    struct edge_shared *shared = edge_shared_new(e, payload, size);
    if (!shared) {
        errno = ENOMEM;
        return -1;
    }
    int64_t found = 0;
    from = 0;
    e->now = edge_milliseconds();
    for (size_t i = 0; i < count; from = ends[i++]) {
        struct edge_call *c = find_call(e, calls[i]);
        if (!c) continue;
        found++;
        edge_answer_message(c, NULL, 0, shared, suffixes + from, (uint8_t)(ends[i] - from));
    }
    edge_shared_let(e, shared);
    depart(e);
    return found;
}

int64_t edge_fail(struct edge *e, int method, int status, const char *text) {
    int64_t count = 0;
    size_t length = strlen(text);
    e->now = edge_milliseconds();
    for (struct edge_call *c = e->piped, *next; c; c = next) {
        next = c->also_next;
        if (method && c->method != method) continue;
        if (c->shape & EDGE_CALLS) edge_answer_call(c, (uint16_t)status, (const uint8_t *)text, (uint32_t)length);
        else edge_answer_end(c, (uint16_t)status, text, length);
        count++;
    }
    depart(e);
    return count;
}

uint64_t edge_drain(struct edge *e, int grace_ms) {
    e->now = edge_milliseconds();
    if (!e->draining) {
        e->draining = true;
        e->drain_at = e->now + (uint64_t)(grace_ms > 0 ? grace_ms : 0);
        stop_listening(e);
        for (struct edge_connection *k = e->connections; k; k = k->next) edge_connection_drain(k);
        depart(e);
    }
    return e->stats.connections;
}

/* ---- what is known */

void edge_stats(const struct edge *e, struct edge_stats *stats) {
    *stats = e->stats;
}

int edge_version_stats(const struct edge *e, int version, char text[32], uint32_t *length, uint64_t started[256]) {
    if (version < 0 || (uint32_t)version >= e->version_count) return -1;
    *length = e->versions[version].length;
    memcpy(text, e->versions[version].text, EDGE_VERSION_BYTES_MAX);
    memcpy(started, e->versions[version].started, sizeof e->versions[version].started);
    return 0;
}

int edge_method_stats(const struct edge *e, int method, uint64_t *started, uint64_t ended[17]) {
    if (method < 0 || method > 255 || !e->tallies[method].known) return -1;
    *started = e->tallies[method].started;
    memcpy(ended, e->tallies[method].ended, sizeof e->tallies[method].ended);
    return 0;
}
