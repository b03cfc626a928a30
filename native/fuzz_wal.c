/* libFuzzer target: a segment of any bytes is read without a fault, and what is said about it is consistent.
 *
 * The first byte chooses how much of the input is made sound before it is read, since no mutation ever hits a checksum:
 *   bit 0   the header gets magic, version, sizes and checksum
 *   bit 1   the records get their checksums, as far as their lengths lead
 *   bit 2   bases become places inside the segment
 * Run by tests/native/fuzz.py. */
#include <stdio.h>
#include <stdlib.h>

#include "wal_format.h"

#define CHECK(what) ((what) ? (void)0 : broken(#what))

static void broken(const char *what) {
    fprintf(stderr, "fuzz_wal: not so: %s\n", what);
    abort();
}

static void seal_header(uint8_t *bytes, size_t size) {
    if (size < WAL_HEADER_BYTES) return;
    memcpy(bytes, WAL_MAGIC, 8);
    wal_put32(bytes + AT_VERSION, WAL_VERSION);
    wal_put32(bytes + AT_CAPACITY, wal_get32(bytes + AT_CAPACITY) % 2 ? WAL_SEGMENT_BYTES_MIN : 1 << 16);
    wal_put64(bytes + AT_SEQUENCE, 2 + bytes[AT_SEQUENCE]);
    wal_put64(bytes + AT_OLDEST, 1 + bytes[AT_OLDEST] % 2);
    wal_put32(bytes + AT_HEADER_CRC, crc32c(0, bytes, AT_HEADER_CRC));
}

static void seal_records(uint8_t *bytes, size_t size, const struct wal_header *header, int fix_bases) {
    uint32_t segment_seed = wal_segment_seed(header->log_id, header->sequence);
    for (size_t at = WAL_HEADER_BYTES; at + WAL_RECORD_BYTES <= size;) {
        uint8_t *record = bytes + at;
        uint32_t length = wal_get32(record + AT_LENGTH) % 512;
        wal_put32(record + AT_LENGTH, length);
        uint64_t total = wal_total(length);
        if (at + total > size) return;
        if (record[AT_TYPE] == 0xFF) { /* one way for the fuzzer to leave a record unsound, and go on behind it */
            at += total;
            continue;
        }
        record[AT_TYPE] = (uint8_t)(record[AT_TYPE] % 9);
        memset(record + AT_ZERO, 0, 3);
        uint32_t base = wal_get32(record + AT_BASE) % (uint32_t)(at - WAL_HEADER_BYTES + 8) / 8 * 8;
        if (fix_bases) wal_put32(record + AT_BASE, WAL_HEADER_BYTES + base);
        uint32_t seed = wal_record_seed(segment_seed, (uint32_t)at);
        wal_put32(record + AT_PAYLOAD, crc32c(seed, record + WAL_RECORD_BYTES, total - WAL_RECORD_BYTES));
        wal_put32(record + AT_CHECK, crc32c(seed, record + AT_PAYLOAD, WAL_RECORD_BYTES - AT_PAYLOAD));
        at += total;
    }
}

static void check_scan(const uint8_t *bytes, size_t size, const struct wal_header *header, uint32_t limit) {
    struct wal_scan scan;
    int verdict = wal_scan_segment(bytes, size, header, limit, &scan);
    CHECK(verdict >= WAL_CLEAN && verdict <= WAL_NEWER);
    CHECK(scan.end >= WAL_HEADER_BYTES && scan.end % 8 == 0);
    CHECK(scan.records == 0 || scan.end <= size);
    CHECK(scan.base >= WAL_HEADER_BYTES && scan.base <= scan.end);
    CHECK(scan.dirty == 0 || (scan.dirty > scan.end && scan.dirty <= size));
    CHECK(scan.witness == 0 || (verdict == WAL_DAMAGED && scan.witness > scan.end && scan.dirty > scan.witness));
    CHECK(scan.oldest >= header->oldest && scan.oldest <= header->sequence);
    if (limit) CHECK(scan.dirty == 0 && (verdict != WAL_CLEAN || scan.end == limit));
    if (limit >= WAL_HEADER_BYTES) CHECK(scan.end <= limit);

    uint32_t place = 0, above = 0;
    for (uint32_t i = 0; i < scan.run_count; i++) {
        uint64_t index = scan.runs[i].first;
        for (uint32_t k = 0; k < scan.runs[i].count; k++, index++) {
            uint32_t at = scan.places[place++];
            struct wal_record record;
            CHECK(at > above && at < scan.end);
            above = at;
            CHECK(wal_record_read(bytes + at, size - at, header->log_id, header->sequence, at, &record) == 0);
            CHECK(record.type == WAL_ENTRY && wal_get64(record.payload + 8) == index);
            CHECK(wal_get64(record.payload) == scan.runs[i].term);
        }
    }
    CHECK(place == scan.place_count);

    struct wal_scan again; /* what was read is sound by itself, and means the same */
    CHECK(wal_scan_segment(bytes, size, header, scan.end, &again) == (scan.end <= size ? WAL_CLEAN : WAL_DAMAGED));
    CHECK(again.chain == scan.chain && again.last_index == scan.last_index && again.last_term == scan.last_term);
    CHECK(again.place_count == scan.place_count && again.run_count == scan.run_count);
    wal_scan_free(&again);
    wal_scan_free(&scan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    uint8_t how = data[0];
    size--;
    uint8_t *bytes = malloc(size ? size : 1); /* ends where the input ends */
    memcpy(bytes, data + 1, size);
    struct wal_header header;
    if (how & 1) seal_header(bytes, size);
    if (wal_header_read(bytes, size, &header) == WAL_HEADER_OK) {
        CHECK(header.capacity >= WAL_SEGMENT_BYTES_MIN && header.sequence >= header.oldest && header.oldest > 0);
        if (how & 2) seal_records(bytes, size, &header, how & 4);
        check_scan(bytes, size, &header, 0);
        if (header.prev_end) check_scan(bytes, size, &header, header.prev_end);
    } else {
        CHECK(!(how & 1) || size < WAL_HEADER_BYTES);
    }
    free(bytes);
    return 0;
}
