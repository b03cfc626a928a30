/* libFuzzer target: a batch of any bytes is taken apart without a fault, and what is said about it lies in it.
 *
 * The first byte limits the operations of a transaction, the second the room that is offered. Run by
 * tests/native/fuzz.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plain.h"

#define CHECK(what) ((what) ? (void)0 : broken(#what))

static void broken(const char *what) {
    fprintf(stderr, "fuzz_plain: not so: %s\n", what);
    abort();
}

static void check_part(const uint64_t *part, size_t size) {
    CHECK(part[0] <= part[1] && part[1] <= size);
}

static size_t check_txn(const uint64_t *out, size_t n, size_t at, size_t size, uint32_t ops_max) {
    uint64_t next = out[at + 2], count = out[at + 3];
    CHECK(next <= n && count <= ops_max && count <= PLAIN_LIST_MAX);
    at += 4;
    for (uint64_t i = 0; i < count; i++, at += 6) {
        CHECK(out[at] <= 3 && out[at + 1] <= 3);
        check_part(out + at + 2, size);
        CHECK(out[at + 2] < out[at + 3]);
        if (out[at] == 3) check_part(out + at + 4, size);
        else CHECK(out[at + 4] >> 63 == 0);
    }
    uint64_t ops = out[at] + out[at + 1];
    CHECK(out[at] <= ops_max && out[at + 1] <= ops_max && ops > 0);
    at += 2;
    for (uint64_t i = 0; i < ops; i++, at += 5) {
        CHECK(out[at] >= PLAIN_GET && out[at] <= PLAIN_DELETE);
        check_part(out + at + 1, size);
        CHECK(out[at + 1] < out[at + 2]);
        check_part(out + at + 3, size);
    }
    CHECK(at == next);
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t given) {
    if (given < 2) return 0;
    uint32_t ops_max = data[0];
    size_t size = given - 2, enough = 2 * size + 16, room = data[1] % 4 ? enough : data[1];
    uint8_t *batch = malloc(size ? size : 1); /* of its own, so that a byte too far is noticed */
    uint64_t *out = malloc((room ? room : 1) * sizeof *out), others;
    memcpy(batch, data + 2, size);
    int64_t found = plain_scan(batch, size, size, ops_max, out, room, &others);
    CHECK(found >= -2 && (found != -2 || room < enough) && found <= (int64_t)room);
    size_t n = found > 0 ? (size_t)found : 0, at = 0, seen = 0;
    while (at < n) {
        switch (out[at]) {
        case PLAIN_OTHER:
            check_part(out + at + 3, size);
            seen++;
            at += 5;
            break;
        case PLAIN_PUT:
            check_part(out + at + 2, size);
            CHECK(out[at + 2] < out[at + 3]);
            check_part(out + at + 4, size);
            at += 6;
            break;
        default:
            CHECK(out[at] == PLAIN_TXN);
            at = check_txn(out, n, at, size, ops_max);
        }
    }
    CHECK(at == n && (found < 0 || seen == others));
    free(batch);
    free(out);
    return 0;
}
