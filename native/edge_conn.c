/* Connections: sockets, what protocol they speak, reading, and their end. Writing is edge_write.c.
 *
 *   accepted --(TLS)--> handshake ---> sniff --+-- the HTTP/2 preface --> a session
 *                           |            |     +-- anything else ------> HTTP/1: bytes pass through
 *                           +-- handshake_ms --> closed
 *
 *   close, when all is written: FIN, then wait for the peer's, or EDGE_LINGER_MS: a socket closed with unread bytes in
 *   it is reset, and the peer may never read our last words. */
#define _GNU_SOURCE /* accept4 */
#include "edge_inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t preface[24] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* ---- by id */

static struct edge_connection **slot(const struct edge *e, uint32_t id) {
    return &e->table[id & (e->table_size - 1)];
}

struct edge_connection *edge_connection_find(const struct edge *e, uint32_t id) {
    struct edge_connection *k = *slot(e, id);
    while (k && k->id != id) k = k->hash_next;
    return k && !k->gone && !k->closing ? k : NULL;
}

static bool taken(const struct edge *e, uint32_t id) {
    const struct edge_connection *k = *slot(e, id);
    while (k && k->id != id) k = k->hash_next;
    return k;
}

static bool table_grow(struct edge *e) {
    uint32_t size = 2 * e->table_size;
    struct edge_connection **table = edge_alloc(e, size * sizeof *table);
    if (!table) return false;
    memset(table, 0, size * sizeof *table);
    edge_release(e, e->table);
    e->table = table;
    e->table_size = size;
    for (struct edge_connection *k = e->connections; k; k = k->next) {
        k->hash_next = *slot(e, k->id);
        *slot(e, k->id) = k;
    }
    return true;
}

/* ---- the beginning */

int edge_connect(struct edge *e, int socket, bool tls) {
    int on = 1, idle = 30;
    struct edge_connection *k = NULL;
    if (e->stats.connections < e->table_size || table_grow(e)) k = edge_alloc(e, sizeof *k);
    if (!k) {
        close(socket);
        return -1;
    }
    memset(k, 0, sizeof *k);
    /* These fail for sockets that aren't TCP's, which is fine. A peer that vanished is noticed after five minutes. */
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle);
    k->source.kind = EDGE_CONNECTION;
    k->edge = e;
    k->socket = socket;
    k->mode = tls ? MODE_HANDSHAKE : MODE_SNIFF;
    k->timer.of = EDGE_TIMER_CONNECTION;
    k->heard = e->now;
    k->queue.owned = &k->owned;
    k->interest = EPOLLIN;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = k};
    if ((tls && !edge_tls_begin(k)) || edge_timer_set(e, &k->timer, e->now + e->config.handshake_ms) ||
        epoll_ctl(e->epoll, EPOLL_CTL_ADD, socket, &event)) {
        edge_tls_end(k);
        edge_timer_stop(e, &k->timer);
        edge_release(e, k);
        close(socket);
        return -1;
    }
    do e->last_id++;
    while (!e->last_id || taken(e, e->last_id));
    k->id = e->last_id;
    k->hash_next = *slot(e, k->id);
    *slot(e, k->id) = k;
    k->next = e->connections;
    if (k->next) k->next->prev = k;
    e->connections = k;
    e->stats.connections++;
    e->stats.accepted++;
    return 0;
}

void edge_accept(struct edge *e, struct edge_listener *l) {
    for (int i = 0; i < EDGE_ACCEPTS_MAX; i++) {
        int socket = accept4(l->socket, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (socket < 0 && (errno == EMFILE || errno == ENFILE)) {
            /* Nobody would ever be refused, and epoll would call for ever: take one with the spare descriptor. */
            close(e->spare);
            socket = accept4(l->socket, NULL, NULL, SOCK_CLOEXEC);
            if (socket >= 0) close(socket);
            e->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
            e->stats.refused++;
            return;
        }
        if (socket < 0 && (errno == EINTR || errno == ECONNABORTED)) continue;
        if (socket < 0) return;
        if (e->stats.connections >= e->config.connections_max || e->stats.memory > e->config.memory_max) {
            close(socket);
            e->stats.refused++;
        } else if (edge_connect(e, socket, l->tls)) {
            e->stats.refused++;
        }
    }
}

/* Say that it is there: who it is, what it speaks. */
static void tell_opened(struct edge_connection *k, int protocol) {
    char text[INET6_ADDRSTRLEN + 16] = "", host[INET6_ADDRSTRLEN] = "", name[256];
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
        struct sockaddr_storage room;
    } peer;
    socklen_t size = sizeof peer;
    if (!getpeername(k->socket, &peer.any, &size)) {
        if (peer.any.sa_family == AF_INET && inet_ntop(AF_INET, &peer.four.sin_addr, host, sizeof host))
            snprintf(text, sizeof text, "%s:%u", host, ntohs(peer.four.sin_port));
        else if (peer.any.sa_family == AF_INET6 && inet_ntop(AF_INET6, &peer.six.sin6_addr, host, sizeof host))
            snprintf(text, sizeof text, "[%s]:%u", host, ntohs(peer.six.sin6_port));
    }
    k->told = true;
    edge_event(k->edge, edge_connection_id(k), EDGE_OPENED, k->tls != NULL, (uint16_t)protocol, 0, text, strlen(text), name,
               edge_tls_name(k, name, sizeof name));
}

/* ---- reading */

static void keep_alive(struct edge_connection *k) {
    struct edge *e = k->edge;
    if (!e->config.keepalive_ms) edge_timer_stop(e, &k->timer);
    else if (edge_timer_set(e, &k->timer, e->now + e->config.keepalive_ms)) e->failed = true;
}

static void pass_on(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    edge_event(k->edge, edge_connection_id(k), EDGE_BYTES, 0, 0, 0, bytes, size, NULL, 0);
}

static void sniff(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    struct edge *e = k->edge;
    size_t from = k->sniffed, n = 0;
    while (from + n < sizeof preface && n < size && bytes[n] == preface[from + n]) n++;
    k->sniffed = (uint8_t)(from + n);
    if (k->sniffed == sizeof preface) {
        k->mode = MODE_HTTP2;
        keep_alive(k);
        tell_opened(k, EDGE_HTTP2);
        edge_http2_begin(k);
        if (!k->gone) edge_http2_input(k, preface, sizeof preface);
        if (!k->gone && !k->closing && size > n) edge_http2_input(k, bytes + n, size - n);
    } else if (n < size) {
        if (k->tls_h2) {
            edge_lose(k, EDGE_BAD_PROTOCOL);
            return;
        }
        k->mode = MODE_HTTP1;
        edge_timer_stop(e, &k->timer);
        tell_opened(k, EDGE_HTTP1);
        if (k->sniffed) pass_on(k, preface, k->sniffed);
        pass_on(k, bytes + n, size - n);
    }
}

static void input(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    if (k->closing) return; /* lingering: only its end is of interest */
    if (k->mode == MODE_HTTP2) edge_http2_input(k, bytes, size);
    else if (k->mode == MODE_HTTP1) pass_on(k, bytes, size);
    else sniff(k, bytes, size);
}

static void end_of_input(struct edge_connection *k) {
    if (k->mode == MODE_HTTP1 && !k->closing) {
        k->ended = true;
        edge_event(k->edge, edge_connection_id(k), EDGE_HALF_CLOSED, 0, 0, 0, NULL, 0, NULL, 0);
        return;
    }
    edge_lose(k, k->closing ? k->reason : EDGE_BY_PEER);
}

static bool readable(const struct edge_connection *k) {
    if (k->ended || (k->paused && !k->closing)) return false;
    if (k->mode == MODE_HTTP1) return !k->blocked;
    return !(k->mode == MODE_HTTP2 && k->out && edge_http2_choked(k));
}

static void read_some(struct edge_connection *k) {
    struct edge *e = k->edge;
    int most = k->tls ? 4 * EDGE_READS_MAX : EDGE_READS_MAX; /* TLS gives one record at a time, of at most 16 KiB */
    for (int i = 0; i < most && !k->gone && readable(k) && !edge_batch_full(e); i++) {
        int64_t n = k->tls ? edge_tls_read(k, e->read_buffer, EDGE_READ_BYTES)
                           : recv(k->socket, e->read_buffer, EDGE_READ_BYTES, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) edge_lose(k, k->closing ? k->reason : EDGE_BY_PEER);
        if (n == 0) end_of_input(k);
        if (n <= 0) return;
        e->stats.bytes_in += (uint64_t)n;
        k->heard = e->now;
        if (k->asked) {
            k->asked = 0;
            keep_alive(k);
        }
        input(k, e->read_buffer, (size_t)n);
        if (!k->tls && n < EDGE_READ_BYTES) return;
    }
}

void edge_connection_io(struct edge_connection *k, uint32_t events) {
    if (k->gone) return;
    if (k->mode == MODE_HANDSHAKE) {
        int done = edge_tls_handshake(k);
        if (done < 0) {
            k->edge->stats.handshake_failures++;
            edge_lose(k, EDGE_BAD_PROTOCOL);
        }
        if (done > 0) k->mode = MODE_SNIFF;
    }
    if (k->mode != MODE_HANDSHAKE && !k->gone) {
        if (events & (EPOLLHUP | EPOLLERR) && !readable(k)) edge_lose(k, EDGE_BY_PEER);
        else if (events & ~(uint32_t)EPOLLOUT || k->tls_wants_write) read_some(k);
        if (k->out || events & EPOLLOUT) edge_ready(k);
    }
    edge_interest(k);
}

/* ---- what epoll watches for */

void edge_interest(struct edge_connection *k) {
    if (k->gone) return;
    uint32_t interest = (readable(k) ? EPOLLIN : 0u) | (k->out || k->more || k->tls_wants_write ? EPOLLOUT : 0u);
    if (interest == k->interest) return;
    k->interest = interest;
    struct epoll_event event = {.events = interest, .data.ptr = k};
    epoll_ctl(k->edge->epoll, EPOLL_CTL_MOD, k->socket, &event);
}

/* ---- the end */

void edge_connection_close(struct edge_connection *k, int reason) {
    if (k->closing || k->gone) return;
    k->closing = true;
    k->reason = (uint16_t)reason;
    if (edge_timer_set(k->edge, &k->timer, k->edge->now + EDGE_LINGER_MS)) k->edge->failed = true;
    edge_ready(k);
}

void edge_lose(struct edge_connection *k, int reason) {
    if (k->gone) return;
    k->gone = true;
    k->reason = (uint16_t)reason;
    k->gone_next = k->edge->gone;
    k->edge->gone = k;
}

void edge_reap(struct edge *e) {
    e->relieved = false;
    while (e->gone) {
        struct edge_connection *k = e->gone, **at = slot(e, k->id);
        e->gone = k->gone_next;
        while (*at != k) at = &(*at)->hash_next;
        *at = k->hash_next;
        if (k->next) k->next->prev = k->prev;
        if (k->prev) k->prev->next = k->next;
        else e->connections = k->next;
        if (k->session) edge_http2_drop(k);
        e->stats.outbound -= k->queue.bytes;
        edge_queue_drop(e, &k->queue);
        edge_release(e, k->out);
        edge_tls_end(k);
        edge_timer_stop(e, &k->timer);
        close(k->socket); /* epoll forgets it by itself */
        if (k->told) edge_event(e, edge_connection_id(k), EDGE_CLOSED, 0, k->reason, 0, NULL, 0, NULL, 0);
        edge_release(e, k);
        e->stats.connections--;
    }
}

/* ---- time passes */

/* Nothing was heard for keepalive_ms: ask; or since it was asked: give up. Else look again when that could be so. */
static void ask(struct edge_connection *k) {
    struct edge *e = k->edge;
    uint64_t next = k->heard + e->config.keepalive_ms;
    if (k->asked) {
        e->stats.timeouts++;
        edge_lose(k, EDGE_TOO_LATE);
        return;
    }
    if (next <= e->now) {
        k->asked = e->now;
        edge_http2_ping(k);
        next = e->now + e->config.keepalive_timeout_ms;
    }
    if (edge_timer_set(e, &k->timer, next)) e->failed = true;
}

void edge_connection_timer(struct edge_connection *k) {
    struct edge *e = k->edge;
    if (k->gone) return;
    if (k->closing) {
        edge_lose(k, k->reason);
    } else if (k->mode < MODE_HTTP2 || (e->draining && e->now >= e->drain_at)) {
        e->stats.timeouts++;
        edge_lose(k, EDGE_TOO_LATE);
    } else if (e->draining) {
        k->shut = true;
        if (k->session) edge_http2_shutdown(k, true);
        if (edge_timer_set(e, &k->timer, e->drain_at)) e->failed = true;
    } else if (k->session) {
        ask(k);
    }
}

void edge_connection_drain(struct edge_connection *k) {
    struct edge *e = k->edge;
    if (k->gone || k->closing) return;
    if (k->mode < MODE_HTTP2) {
        edge_lose(k, EDGE_BY_US);
        return;
    }
    uint64_t at = e->drain_at;
    if (k->session) {
        edge_http2_shutdown(k, false);
        if (e->now + EDGE_NOTICE_MS < at) at = e->now + EDGE_NOTICE_MS;
    }
    if (edge_timer_set(e, &k->timer, at)) e->failed = true;
}
