#include "plain.h"

#include <stdbool.h>
#include <string.h>

enum {
    RECORD_BYTES = 16,
    METHOD_PUT = 3,
    METHOD_TXN = 5,
    TARGET_VALUE = 3,
    REPEAT_BITS = 2048,
    OP_NUMBERS = 5,
    COMPARE_NUMBERS = 6
};

/* What is left of a message, and where the batch it lies in begins. */
struct span {
    const uint8_t *batch, *at, *end;
};

struct part {
    uint64_t at, end;
};

struct op {
    uint64_t kind;
    struct part key, value;
};

struct compare {
    uint64_t target, result;
    struct part key;
    uint64_t first, second;
};

struct list {
    uint32_t count;
    struct op ops[PLAIN_LIST_MAX];
};

static uint64_t little(const uint8_t *from, int bytes) {
    uint64_t n = 0;
    for (int i = bytes - 1; i >= 0; i--) n = n << 8 | from[i];
    return n;
}

/* A varint of at most 63 bits; what is longer is unusual. */
static bool varint(struct span *s, uint64_t *n) {
    uint64_t found = 0;
    for (int shift = 0; shift < 63; shift += 7) {
        if (s->at == s->end) return false;
        uint8_t byte = *s->at++;
        found |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *n = found;
            return true;
        }
    }
    return false;
}

/* The bytes of a length-delimited field. */
static bool bytes(struct span *s, struct span *inside) {
    uint64_t length;
    if (!varint(s, &length) || length > (uint64_t)(s->end - s->at)) return false;
    *inside = (struct span){s->batch, s->at, s->at + length};
    s->at += length;
    return true;
}

static bool part(struct span *s, struct part *p) {
    struct span inside;
    if (!bytes(s, &inside)) return false;
    *p = (struct part){(uint64_t)(inside.at - s->batch), (uint64_t)(inside.end - s->batch)};
    return true;
}

/* A field's number and wire type in one, as they are encoded in one byte; 0, which no field has, for any longer one. */
static unsigned tag(struct span *s) {
    uint8_t byte = *s->at++;
    return byte < 0x80 ? byte : 0;
}

/* Takes a field that may be there once. */
static bool once(unsigned *seen, unsigned field) {
    if (*seen & 1u << field) return false;
    *seen |= 1u << field;
    return true;
}

/* PutRequest, if `put`; else a RangeRequest or DeleteRangeRequest that names a single key. */
static bool single(struct span s, uint64_t kind, struct op *op) {
    unsigned seen = 0;
    uint64_t serializable;
    *op = (struct op){.kind = kind};
    while (s.at < s.end) {
        switch (tag(&s)) {
        case 1 << 3 | 2:
            if (!once(&seen, 1) || !part(&s, &op->key)) return false;
            break;
        case 2 << 3 | 2:
            if (kind != PLAIN_PUT || !once(&seen, 2) || !part(&s, &op->value)) return false;
            break;
        case 7 << 3 | 0:
            if (kind != PLAIN_GET || !once(&seen, 7) || !varint(&s, &serializable)) return false;
            break;
        default:
            return false;
        }
    }
    return op->key.at < op->key.end;
}

static bool request_op(struct span s, struct op *op) {
    struct span inside;
    if (s.at == s.end) return false;
    unsigned field = tag(&s);
    if ((field & 7) != 2 || !bytes(&s, &inside) || s.at != s.end) return false;
    switch (field >> 3) {
    case 1: return single(inside, PLAIN_GET, op);
    case 2: return single(inside, PLAIN_PUT, op);
    case 3: return single(inside, PLAIN_DELETE, op);
    default: return false;
    }
}

static bool compare(struct span s, struct compare *c) {
    unsigned seen = 0, given = 0;
    struct part value = {0, 0};
    uint64_t number = 0;
    *c = (struct compare){0};
    while (s.at < s.end) {
        unsigned field = tag(&s);
        switch (field) {
        case 1 << 3 | 0:
            if (!once(&seen, 1) || !varint(&s, &c->result)) return false;
            break;
        case 2 << 3 | 0:
            if (!once(&seen, 2) || !varint(&s, &c->target)) return false;
            break;
        case 3 << 3 | 2:
            if (!once(&seen, 3) || !part(&s, &c->key)) return false;
            break;
        case 4 << 3 | 0: /* version, create_revision, mod_revision: one of them */
        case 5 << 3 | 0:
        case 6 << 3 | 0:
            if (given || !varint(&s, &number)) return false;
            given = field >> 3;
            break;
        case 7 << 3 | 2:
            if (given || !part(&s, &value)) return false;
            given = 7;
            break;
        default:
            return false;
        }
    }
    if (c->result > 3 || c->target > TARGET_VALUE || c->key.at == c->key.end) return false;
    if (given && given != c->target + 4) return false;
    c->first = c->target == TARGET_VALUE ? value.at : number;
    c->second = c->target == TARGET_VALUE ? value.end : 0;
    return true;
}

static bool same(const uint8_t *batch, struct part a, struct part b) {
    return a.end - a.at == b.end - b.at && !memcmp(batch + a.at, batch + b.at, a.end - a.at);
}

static uint32_t hash(const uint8_t *batch, struct part p) {
    uint32_t h = 2166136261u; /* FNV-1a */
    for (uint64_t i = p.at; i < p.end; i++) h = (h ^ batch[i]) * 16777619u;
    return h ^ h >> 16;
}

/* Is a key put twice, or put and deleted? Only what a bitmap of hashes can't tell apart is compared. */
static bool repeats(const uint8_t *batch, const struct list *l) {
    uint64_t map[REPEAT_BITS / 64] = {0};
    for (uint32_t i = 0; i < l->count; i++) {
        const struct op *op = &l->ops[i];
        if (op->kind == PLAIN_GET) continue;
        uint32_t bit = hash(batch, op->key) % REPEAT_BITS;
        uint64_t mask = (uint64_t)1 << bit % 64;
        if (map[bit / 64] & mask)
            for (uint32_t j = 0; j < i; j++)
                if (l->ops[j].kind != PLAIN_GET && (op->kind == PLAIN_PUT || l->ops[j].kind == PLAIN_PUT) &&
                    same(batch, op->key, l->ops[j].key))
                    return true;
        map[bit / 64] |= mask;
    }
    return false;
}

static bool writes(const struct list *l) {
    for (uint32_t i = 0; i < l->count; i++)
        if (l->ops[i].kind != PLAIN_GET) return true;
    return false;
}

static uint64_t *put_list(uint64_t *out, const struct list *l) {
    for (uint32_t i = 0; i < l->count; i++) {
        const struct op *op = &l->ops[i];
        *out++ = op->kind;
        *out++ = op->key.at;
        *out++ = op->key.end;
        *out++ = op->value.at;
        *out++ = op->value.end;
    }
    return out;
}

/* Writes a TxnRequest at out[at], if it is plain. Returns where it ends there; 0 if it isn't, -2 if room is short. */
static int64_t txn(struct span s, uint64_t id, uint32_t ops_max, uint64_t *out, size_t at, size_t room) {
    struct compare compares[PLAIN_LIST_MAX];
    struct list success, failure;
    uint32_t count = 0, most = ops_max < PLAIN_LIST_MAX ? ops_max : PLAIN_LIST_MAX;
    success.count = failure.count = 0;
    while (s.at < s.end) {
        struct span inside;
        unsigned field = tag(&s);
        if ((field & 7) != 2 || !bytes(&s, &inside)) return 0;
        struct list *l = field >> 3 == 2 ? &success : &failure;
        switch (field >> 3) {
        case 1:
            if (count == most || !compare(inside, &compares[count])) return 0;
            count++;
            break;
        case 2:
        case 3:
            if (l->count == most || !request_op(inside, &l->ops[l->count])) return 0;
            l->count++;
            break;
        default:
            return 0;
        }
    }
    if (!writes(&success) && !writes(&failure)) return 0;
    if (repeats(s.batch, &success) || repeats(s.batch, &failure)) return 0;
    size_t end = at + 6 + COMPARE_NUMBERS * (size_t)count + OP_NUMBERS * (size_t)(success.count + failure.count);
    if (end > room) return -2;
    uint64_t *o = out + at;
    *o++ = PLAIN_TXN;
    *o++ = id;
    *o++ = end;
    *o++ = count;
    for (uint32_t i = 0; i < count; i++) {
        const struct compare *c = &compares[i];
        *o++ = c->target;
        *o++ = c->result;
        *o++ = c->key.at;
        *o++ = c->key.end;
        *o++ = c->first;
        *o++ = c->second;
    }
    *o++ = success.count;
    *o++ = failure.count;
    o = put_list(put_list(o, &success), &failure);
    return (int64_t)end;
}

int64_t plain_scan(const uint8_t *batch, size_t size, uint64_t payload_max, uint32_t ops_max, uint64_t *out, size_t room,
                   uint64_t *others) {
    size_t from = 0, n = 0;
    *others = 0;
    while (from < size) {
        if (size - from < RECORD_BYTES) return -1;
        uint64_t length = little(batch + from, 4), id = little(batch + from + 8, 8);
        unsigned method = batch[from + 4], kind = batch[from + 5];
        uint64_t head = little(batch + from + 4, 4);
        from += RECORD_BYTES;
        if (length > size - from) return -1;
        struct span payload = {batch, batch + from, batch + from + length};
        struct op put;
        from += length;
        bool usual = kind == 0 && length <= payload_max;
        if (usual && method == METHOD_PUT && single(payload, PLAIN_PUT, &put)) {
            if (room - n < 6) return -2;
            const uint64_t numbers[] = {PLAIN_PUT, id, put.key.at, put.key.end, put.value.at, put.value.end};
            memcpy(out + n, numbers, sizeof numbers);
            n += 6;
            continue;
        }
        if (usual && method == METHOD_TXN) {
            int64_t end = txn(payload, id, ops_max, out, n, room);
            if (end < 0) return end;
            if (end > 0) {
                n = (size_t)end;
                continue;
            }
        }
        if (room - n < 5) return -2;
        const uint64_t numbers[] = {PLAIN_OTHER, id, head, from - length, from};
        memcpy(out + n, numbers, sizeof numbers);
        n += 5;
        *others += 1;
    }
    return (int64_t)n;
}
