/* Messages that are compressed with gzip, the one way that etcd takes. They are answered uncompressed.
 *
 * What a message grows to is bounded as if it had been sent so: message_max, and what is held for its connection and in
 * all. How large it will be it says itself, in its last four bytes, which saves growing; whoever lies there is found
 * out. A few members one behind the other are one message, as gzip has it. */
#include "edge_inside.h"

#include <string.h>

enum { GRPC_INTERNAL = 13, GRPC_RESOURCE_EXHAUSTED = 8, WITH_GZIP_HEAD = 16 + 15 };

static z_stream *inflater(struct edge *e) {
    if (e->inflater.state) return inflateReset(&e->inflater) == Z_OK ? &e->inflater : NULL;
    return inflateInit2(&e->inflater, WITH_GZIP_HEAD) == Z_OK ? &e->inflater : NULL;
}

void edge_gzip_free(struct edge *e) {
    if (e->inflater.state) inflateEnd(&e->inflater);
}

static uint32_t claimed(const uint8_t *packed, uint32_t size) {
    if (size < 4) return 0;
    const uint8_t *last = packed + size - 4;
    return last[0] | (uint32_t)last[1] << 8 | (uint32_t)last[2] << 16 | (uint32_t)last[3] << 24;
}

/* As Go's packages say it. */
static const char *reason(const z_stream *z, uint32_t size, int result) {
    if (!size) return "EOF";
    if (result != Z_DATA_ERROR || !z->msg) return "unexpected EOF";
    if (!strcmp(z->msg, "incorrect header check")) return "gzip: invalid header";
    if (!strcmp(z->msg, "incorrect data check") || !strcmp(z->msg, "incorrect length check"))
        return "gzip: invalid checksum";
    return "flate: corrupt input";
}

static bool larger(struct edge_call *c, uint32_t size) {
    uint32_t most = c->connection->edge->config.message_max;
    edge_answer_refuse(c, 200, GRPC_RESOURCE_EXHAUSTED, "grpc: received message larger than max (%u vs. %u)", size,
                       most);
    return false;
}

static bool unpack(struct edge_call *c, const uint8_t *packed, uint32_t size) {
    struct edge *e = c->connection->edge;
    uint32_t most = e->config.message_max, wanted = claimed(packed, size);
    if (wanted > most) return larger(c, wanted);
    z_stream *z = inflater(e);
    if (!z) {
        edge_answer_refuse(c, 200, GRPC_RESOURCE_EXHAUSTED, "etcdserver: too many requests");
        return false;
    }
    z->next_in = (uint8_t *)packed;
    z->avail_in = size;
    int result = Z_OK;
    if (!edge_call_grow(c, wanted ? wanted : 1, most + 1)) return false;
    while (c->have <= most) {
        if (c->have == c->room && !edge_call_grow(c, 1, most + 1)) return false;
        z->next_out = c->message + c->have;
        z->avail_out = c->room - c->have;
        result = inflate(z, Z_NO_FLUSH);
        c->have = c->room - z->avail_out;
        if (result == Z_STREAM_END && z->avail_in) result = inflateReset(z);
        if (result != Z_OK) break;
    }
    if (c->have > most) return larger(c, c->have);
    if (result == Z_STREAM_END) return true;
    edge_answer_refuse(c, 200, GRPC_INTERNAL, "grpc: failed to decompress the received message %s",
                       reason(z, size, result));
    return false;
}

bool edge_gzip_unpack(struct edge_call *c) {
    uint8_t *packed = c->message;
    uint32_t size = c->have, room = c->room;
    c->message = NULL;
    c->have = c->room = 0;
    bool unpacked = unpack(c, packed, size);
    edge_release(c->connection->edge, packed);
    edge_call_hold(c, -(int64_t)room);
    return unpacked;
}
