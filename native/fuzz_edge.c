/* libFuzzer target: any bytes of a client, and the edge neither errs nor leaks, and what it tells is in order.
 *
 * The first byte chooses: 1 the HTTP/2 preface is sent first, 2 the client never reads, 4 answers are large, 8 nothing
 * is answered, 16 the bytes come in small pieces, 32 the edge is drained in between. Run by tests/native/fuzz.py. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "edge.h"

#define CHECK(what) ((what) ? (void)0 : broken(#what))

enum { LARGE = 300000, STREAMS_MAX = 64 };

static const struct edge_method methods[] = {
    {"/test.Echo/Echo", 1, EDGE_PIPE},   {"/test.Echo/Tell", 2, EDGE_UNARY},  {"/test.Echo/Chat", 3, EDGE_STREAM},
    {"/test.Echo/Pour", 4, EDGE_UNARY},  {"/test.Echo/Held", 5, EDGE_STREAM | EDGE_GRANTED},
    {"/test.Echo/Ask", 8, EDGE_STREAM | EDGE_CALLS},
    {"/test.Echo/Topic", 7, EDGE_STREAM},
};

static const struct edge_config config = {
    .connections_max = 10, .streams_max = 20, .message_max = 20000, .header_list_max = 2000, .continuations_max = 4,
    .stream_window = 65536, .connection_window = 1 << 20, .inbound_connection_max = 40000, .inbound_max = 100000,
    .outbound_high = 50000, .outbound_connection_high = 100000, .outbound_connection_max = 1000000,
    .memory_max = 4000000, .reset_burst = 30, .reset_rate = 1, .noise_burst = 100, .noise_rate = 1,
    .ping_min_ms = 5000, .ping_strikes_max = 2, .handshake_ms = 60000, .keepalive_ms = 60000,
    .keepalive_timeout_ms = 20000, .assembly_ms = 60000, .batch_bytes = 1 << 20, .batch_records = 100};

static void broken(const char *what) {
    fprintf(stderr, "fuzz_edge: not so: %s\n", what);
    abort();
}

static uint8_t large[LARGE];
static uint8_t choices;

static uint64_t little(const uint8_t *from, int bytes) {
    uint64_t n = 0;
    for (int i = bytes - 1; i >= 0; i--) n = n << 8 | from[i];
    return n;
}

static void answer(struct edge *e, int kind, int status, uint64_t call, const void *payload, size_t length) {
    uint8_t *record = malloc(16 + length);
    for (int i = 0; i < 4; i++) record[i] = (uint8_t)(length >> 8 * i);
    record[4] = 0;
    record[5] = (uint8_t)kind;
    record[6] = (uint8_t)status;
    record[7] = 0;
    for (int i = 0; i < 8; i++) record[8 + i] = (uint8_t)(call >> 8 * i);
    if (length) memcpy(record + 16, payload, length);
    CHECK(edge_deliver(e, record, 16 + length) >= 0);
    free(record);
}

static void answer_calls(struct edge *e, const struct edge_batch *b) {
    size_t at = 0;
    uint32_t count = 0;
    uint8_t *calls = malloc(b->calls_size + 1); /* the batch is valid only until something is delivered */
    size_t size = b->calls_size;
    if (size) memcpy(calls, b->calls, size);
    while (at < size) {
        CHECK(size - at >= 16);
        uint64_t length = little(calls + at, 4), call = little(calls + at + 8, 8);
        CHECK(length <= size - at - 16 && length <= config.message_max);
        CHECK((calls[at + 4] == 1 || calls[at + 4] == 8) && calls[at + 5] == 0); /* of PIPE, of CALLS */
        if (choices & 4) answer(e, EDGE_REPLY, 0, call, large, LARGE);
        else if (!(choices & 8)) answer(e, EDGE_REPLY, length % 20, call, calls + at + 16, length);
        at += 16 + length;
        count++;
    }
    CHECK(count == b->call_count);
    free(calls);
}

static void answer_event(struct edge *e, const struct edge_event *event, const uint8_t *payload) {
    uint64_t call = event->call;
    size_t length = event->length;
    uint32_t end = (uint32_t)(length % EDGE_SUFFIX_MAX);
    switch (event->kind) {
    case EDGE_CALL:
        answer(e, EDGE_SEND, 0, call, choices & 4 ? large : payload, choices & 4 ? LARGE : length);
        answer(e, EDGE_END, (int)(length % 17), call, payload, length);
        break;
    case EDGE_BEGUN:
        answer(e, EDGE_HEADERS, 0, call, NULL, 0);
        break;
    case EDGE_MESSAGE:
        if (event->method == 7) CHECK(edge_fan_out(e, payload, length, &call, &end, 1, payload, end) >= 0);
        else answer(e, EDGE_SEND, 0, call, payload, length);
        if (event->method == 5) answer(e, EDGE_GRANT, 0, call, NULL, 0);
        break;
    case EDGE_HALF_CLOSED:
        answer(e, (uint32_t)call ? EDGE_END : EDGE_CLOSE, 0, call, NULL, 0);
        break;
    case EDGE_UNKNOWN:
        answer(e, EDGE_REPLY, 12, call, payload, length);
        break;
    case EDGE_BYTES:
        answer(e, length % 3 ? EDGE_WRITE : EDGE_CLOSE, 0, call, payload, length);
        break;
    }
}

/* One turn: what is told is checked, and answered. */
static void turn(struct edge *e) {
    struct edge_batch b;
    CHECK(!edge_poll(e, 0, &b) || errno == EINTR);
    size_t count = b.event_count;
    struct edge_event *events = malloc(count * sizeof *events + 1);
    uint8_t *bytes = malloc(b.bytes_size + 1);
    if (count) memcpy(events, b.events, count * sizeof *events);
    if (b.bytes_size) memcpy(bytes, b.bytes, b.bytes_size);
    for (size_t i = 0; i < count; i++) {
        CHECK(events[i].kind >= EDGE_OPENED && events[i].kind <= EDGE_REQUEST && events[i].call >> 32);
        CHECK((uint64_t)events[i].at + events[i].length + events[i].extra <= b.bytes_size);
        CHECK(events[i].length <= 1 << 20);
    }
    answer_calls(e, &b);
    edge_clear(e);
    for (size_t i = 0; i < count && !(choices & 8); i++) answer_event(e, &events[i], bytes + events[i].at);
    free(events);
    free(bytes);
}

static void read_all(int s) {
    static uint8_t room[1 << 16];
    while (!(choices & 2) && recv(s, room, sizeof room, MSG_DONTWAIT) > 0) continue;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";
    if (!size) return 0;
    choices = data[0];
    struct edge *e = edge_new(&config, methods, sizeof methods / sizeof methods[0]);
    int pair[2];
    struct edge_stats before, after;
    CHECK(e && !socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    edge_stats(e, &before);
    CHECK(!edge_adopt(e, pair[1], 0));
    if (choices & 1) CHECK(send(pair[0], preface, sizeof preface, MSG_NOSIGNAL) == sizeof preface);
    size_t step = choices & 16 ? 1 + size / 16 : size;
    for (size_t at = 1; at < size; at += step) {
        size_t n = size - at < step ? size - at : step;
        if (send(pair[0], data + at, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
        turn(e);
        read_all(pair[0]);
        if (choices & 32) edge_drain(e, 60000);
    }
    for (int i = 0; i < 4; i++) {
        turn(e);
        read_all(pair[0]);
    }
    edge_fail(e, 0, 14, "");
    close(pair[0]);
    for (int i = 0; i < 8; i++) turn(e);
    edge_stats(e, &after);
    CHECK(after.connections == 0 && after.streams == 0 && after.inbound == 0 && after.outbound == 0);
    CHECK(after.memory < before.memory + 4000000);
    edge_free(e);
    return 0;
}
