/* Writing: the frames of whoever has something to say, gathered in one buffer, and what the socket doesn't take.
 *
 *   answers ---> edge_ready() ---> edge_flush(): the scratch buffer ---> socket
 *                                                      +---> `out`, until epoll says that there is room
 *
 * Also what it may cost. A connection pays for the memory of its answers, and for a payload that is shared once. */
#include "edge_inside.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

void edge_ready(struct edge_connection *k) {
    if (k->ready) return;
    k->ready = true;
    k->ready_next = k->edge->ready;
    k->edge->ready = k;
}

/* Write what can be written of the bytes. Returns how much that is, or -1 if the connection is lost. */
static int64_t write_some(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    int64_t n;
    do n = k->tls ? edge_tls_write(k, bytes, size) : send(k->socket, bytes, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n < 0) {
        edge_lose(k, k->closing ? k->reason : EDGE_BY_PEER);
        return -1;
    }
    k->edge->stats.bytes_out += (uint64_t)n;
    return n;
}

/* Returns true if nothing is left over from before. */
static bool write_rest(struct edge_connection *k) {
    while (k->out) {
        int64_t n = write_some(k, k->out + k->out_at, k->out_size - k->out_at);
        if (n <= 0) return false;
        k->out_at += (uint32_t)n;
        if (k->out_at < k->out_size) continue;
        edge_release(k->edge, k->out);
        k->out = NULL;
    }
    return true;
}

/* Write the scratch buffer; what isn't taken is kept. Returns true if all was. */
static bool write_scratch(struct edge_connection *k) {
    struct edge *e = k->edge;
    size_t at = 0;
    while (at < e->scratch_used) {
        int64_t n = write_some(k, e->scratch + at, e->scratch_used - at);
        if (n < 0) return false;
        if (n == 0) break;
        at += (size_t)n;
    }
    if (at == e->scratch_used) return true;
    k->out_size = (uint32_t)(e->scratch_used - at);
    k->out_at = 0;
    k->out = edge_alloc(e, k->out_size);
    if (k->out) memcpy(k->out, e->scratch + at, k->out_size);
    else edge_lose(k, EDGE_BY_US);
    return false;
}

static void fill(struct edge_connection *k) {
    struct edge *e = k->edge;
    e->scratch_used = 0;
    if (k->session) {
        edge_http2_fill(k);
    } else {
        e->scratch_used = k->queue.bytes < EDGE_SCRATCH_BYTES ? k->queue.bytes : EDGE_SCRATCH_BYTES;
        edge_queue_copy(e, &k->queue, e->scratch, e->scratch_used);
        k->outbound -= e->scratch_used;
        e->stats.outbound -= e->scratch_used;
    }
}

/* All that could be written is. If it was only waiting for that, it ends. */
static void settle(struct edge_connection *k) {
    struct edge *e = k->edge;
    if (k->shut && !k->call_count) edge_connection_close(k, EDGE_BY_US);
    else if (k->session && !k->closing && edge_http2_over(k))
        edge_connection_close(k, k->peer_left ? EDGE_BY_PEER : EDGE_BAD_PROTOCOL);
    if (!k->closing || k->lingering) return;
    if (k->ended) {
        edge_lose(k, k->reason);
        return;
    }
    k->lingering = true;
    if (k->tls) SSL_shutdown(k->tls);
    shutdown(k->socket, SHUT_WR);
    if (edge_timer_set(e, &k->timer, e->now + EDGE_LINGER_MS)) e->failed = true;
}

static void write_all(struct edge_connection *k) {
    struct edge *e = k->edge;
    k->more = false;
    for (int i = 0; !k->gone && write_rest(k); i++) {
        if (i == EDGE_WRITES_MAX) {
            k->more = true; /* epoll calls again at once, after the others */
            break;
        }
        fill(k);
        if (!e->scratch_used) settle(k);
        if (!e->scratch_used || k->gone || !write_scratch(k)) break;
    }
    if (k->gone) return;
    edge_answer_unblock(k);
    if (k->blocked && k->outbound <= e->config.outbound_high / 2) {
        k->blocked = false;
        edge_event(e, edge_connection_id(k), EDGE_WRITABLE, 0, 0, 0, NULL, 0, NULL, 0);
    }
    edge_interest(k);
}

void edge_flush(struct edge *e) {
    while (e->ready) {
        struct edge_connection *k = e->ready;
        e->ready = k->ready_next;
        if (!k->gone && k->mode != MODE_HANDSHAKE) write_all(k);
        k->ready = false; /* only now, lest it enters the list again while it writes */
    }
}

/* ---- what waiting costs */

static uint64_t holds(const struct edge_connection *k) {
    return k->owned + k->inbound + (uint64_t)k->call_count * EDGE_CALL_BYTES;
}

/* One at a time, since it takes until edge_reap() for the memory to be free. */
void edge_relieve(struct edge *e) {
    struct edge_connection *most = NULL;
    if (e->stats.memory <= e->config.memory_max || e->relieved) return;
    for (struct edge_connection *k = e->connections; k; k = k->next)
        if (!k->gone && (!most || holds(k) > holds(most))) most = k;
    if (!most) return;
    e->relieved = true;
    e->stats.floods++;
    edge_lose(most, EDGE_TOO_MUCH); /* who reads nothing would not read a GOAWAY either */
}

/* A single answer may be of any size; it is what comes on top that is too much. */
bool edge_overdrawn(struct edge_connection *k, uint64_t newest) {
    struct edge *e = k->edge;
    if (k->owned > newest && k->owned > e->config.outbound_connection_max) {
        e->stats.floods++;
        edge_lose(k, EDGE_TOO_MUCH);
    }
    edge_relieve(e);
    return k->gone;
}

void edge_connection_write(struct edge_connection *k, const uint8_t *bytes, uint32_t size) {
    struct edge *e = k->edge;
    if (!size) return;
    uint32_t cost = edge_queue_add(e, &k->queue, NULL, bytes, size, NULL, true, NULL, 0);
    if (!cost) {
        edge_lose(k, EDGE_BY_US);
        return;
    }
    k->outbound += size;
    e->stats.outbound += size;
    edge_ready(k);
    if (edge_overdrawn(k, cost) || k->blocked || k->outbound < e->config.outbound_high) return;
    k->blocked = true;
    edge_event(e, edge_connection_id(k), EDGE_BLOCKED, 0, 0, 0, NULL, 0, NULL, 0);
}
