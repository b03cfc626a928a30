/* Reading a segment: pure functions over bytes, no file, no state. This is what meets a damaged disk, so it trusts
 * nothing: every length is checked against what is there before it is used, and it is fuzzed (fuzz_wal.c). */
#include <errno.h>
#include <stdlib.h>

#include "wal_format.h"

int wal_header_read(const uint8_t *bytes, size_t size, struct wal_header *header) {
    if (size < WAL_HEADER_BYTES) return WAL_HEADER_SHORT;
    if (memcmp(bytes + AT_MAGIC, WAL_MAGIC, 8) != 0) return WAL_HEADER_FOREIGN;
    if (crc32c(0, bytes, AT_HEADER_CRC) != wal_get32(bytes + AT_HEADER_CRC)) return WAL_HEADER_DAMAGED;
    if (wal_get32(bytes + AT_VERSION) != WAL_VERSION) return WAL_HEADER_NEWER;
    *header = (struct wal_header){
        .cluster_id = wal_get64(bytes + AT_CLUSTER),
        .member_id = wal_get64(bytes + AT_MEMBER),
        .log_id = wal_get64(bytes + AT_LOG),
        .sequence = wal_get64(bytes + AT_SEQUENCE),
        .oldest = wal_get64(bytes + AT_OLDEST),
        .prev_index = wal_get64(bytes + AT_PREV_INDEX),
        .prev_term = wal_get64(bytes + AT_PREV_TERM),
        .hard = {.term = wal_get64(bytes + AT_HARD_TERM),
                 .vote = wal_get64(bytes + AT_HARD_VOTE),
                 .commit = wal_get64(bytes + AT_HARD_COMMIT)},
        .capacity = wal_get32(bytes + AT_CAPACITY),
        .prev_end = wal_get32(bytes + AT_PREV_END),
        .prev_chain = wal_get32(bytes + AT_PREV_CHAIN),
    };
    if (header->capacity < WAL_SEGMENT_BYTES_MIN || header->capacity > WAL_SEGMENT_BYTES_MAX ||
        header->capacity % 8 != 0 || header->sequence == 0 || header->oldest == 0 ||
        header->oldest > header->sequence)
        return WAL_HEADER_DAMAGED;
    return WAL_HEADER_OK;
}

/* Most places in a segment can be told apart from a record without a checksum. */
static int plausible(const uint8_t *at, uint32_t offset) {
    uint32_t base = wal_get32(at + AT_BASE);
    return at[AT_TYPE] != 0 && at[AT_ZERO] == 0 && at[AT_ZERO + 1] == 0 && at[AT_ZERO + 2] == 0 &&
           base >= WAL_HEADER_BYTES && base <= offset && base % 8 == 0;
}

static int read_record(const uint8_t *at, size_t size, uint32_t segment_seed, uint32_t offset,
                       struct wal_record *record) {
    if (size < WAL_RECORD_BYTES || !plausible(at, offset)) return WAL_RECORD_NONE;
    uint32_t seed = wal_record_seed(segment_seed, offset);
    uint32_t check = wal_get32(at + AT_CHECK);
    if (crc32c(seed, at + AT_PAYLOAD, WAL_RECORD_BYTES - AT_PAYLOAD) != check) return WAL_RECORD_NONE;
    uint32_t length = wal_get32(at + AT_LENGTH);
    uint64_t total = wal_total(length);
    *record = (struct wal_record){
        .offset = offset,
        .total = total > WAL_SEGMENT_BYTES_MAX ? WAL_SEGMENT_BYTES_MAX : (uint32_t)total,
        .length = length,
        .base = wal_get32(at + AT_BASE),
        .check = check,
        .type = at[AT_TYPE],
        .payload = at + WAL_RECORD_BYTES,
    };
    if (total > size) return WAL_RECORD_BROKEN;
    if (crc32c(seed, record->payload, (size_t)total - WAL_RECORD_BYTES) != wal_get32(at + AT_PAYLOAD))
        return WAL_RECORD_BROKEN;
    return WAL_RECORD_OK;
}

int wal_record_read(const uint8_t *bytes, size_t size, uint64_t log_id, uint64_t sequence, uint32_t offset,
                    struct wal_record *record) {
    return read_record(bytes, size, wal_segment_seed(log_id, sequence), offset, record);
}

/* Make sure that a vector of `*room` items, of which `count` are used, holds one more. Returns 0 or -1. */
static int grow(void **items, uint32_t *room, uint32_t count, size_t item_bytes) {
    if (count < *room) return 0;
    uint32_t wanted = *room ? *room * 2 : 64;
    void *moved = realloc(*items, wanted * item_bytes);
    if (!moved) return -1;
    *items = moved;
    *room = wanted;
    return 0;
}

static struct wal_run *add_run(struct wal_scan *scan, uint64_t first, uint64_t prev_term) {
    void *items = scan->runs;
    if (grow(&items, &scan->run_room, scan->run_count, sizeof *scan->runs)) return NULL;
    scan->runs = items;
    struct wal_run *run = &scan->runs[scan->run_count++];
    *run = (struct wal_run){.first = first, .prev_term = prev_term};
    return run;
}

static int fold_entry(struct wal_scan *scan, const struct wal_record *record) {
    if (record->length < WAL_ENTRY_BYTES) return WAL_DISORDER;
    uint64_t term = wal_get64(record->payload), index = wal_get64(record->payload + 8);
    if (index == 0 || index - 1 != scan->last_index || term < scan->last_term || term == 0) return WAL_DISORDER;
    struct wal_run *run = scan->run_count ? &scan->runs[scan->run_count - 1] : NULL;
    if (!run || (run->count && run->term != term)) run = add_run(scan, index, scan->last_term);
    void *items = scan->places;
    if (!run || grow(&items, &scan->place_room, scan->place_count, sizeof *scan->places)) return -1;
    scan->places = items;
    scan->places[scan->place_count++] = record->offset;
    run->term = term;
    run->count++;
    scan->last_index = index;
    scan->last_term = term;
    return WAL_CLEAN;
}

/* Let one sound record change what is known. Returns a wal_verdict, WAL_CLEAN if it fits, or -1 without memory. */
static int fold(struct wal_scan *scan, const struct wal_header *header, const struct wal_record *record) {
    const uint8_t *payload = record->payload;
    switch (record->type) {
    case WAL_ENTRY:
        return fold_entry(scan, record);
    case WAL_HARD_STATE:
        if (record->length != 24) return WAL_DISORDER;
        scan->hard = (struct wal_hard){wal_get64(payload), wal_get64(payload + 8), wal_get64(payload + 16)};
        return WAL_CLEAN;
    case WAL_CUT:
        if (record->length != 16 || wal_get64(payload) > scan->last_index || wal_get64(payload + 8) > scan->last_term)
            return WAL_DISORDER;
        scan->last_index = wal_get64(payload);
        scan->last_term = wal_get64(payload + 8);
        return add_run(scan, scan->last_index + 1, scan->last_term) ? WAL_CLEAN : -1;
    case WAL_MARK:
        return record->length == 0 ? WAL_CLEAN : WAL_DISORDER;
    case WAL_RELEASE:
        if (record->length != 8 || wal_get64(payload) < scan->oldest || wal_get64(payload) > header->sequence)
            return WAL_DISORDER;
        scan->oldest = wal_get64(payload);
        return WAL_CLEAN;
    default:
        return WAL_NEWER;
    }
}

/* Search what lies at and behind scan->end, up to `stop`, for records of this segment.
 *
 *     ... sound | end: unreadable ... | witness: sound, base > end | ...
 *
 * A witness was written after everything before its base had been synced, so what is unreadable was on disk once:
 * damage. Without one it may be a group that a power loss tore, of which any subset of sectors can have arrived. */
static int search_tail(const uint8_t *bytes, uint32_t stop, uint32_t seed, struct wal_scan *scan) {
    for (uint64_t at = scan->end; at + WAL_RECORD_BYTES <= stop; at += 8) {
        struct wal_record record;
        int verdict = read_record(bytes + at, stop - at, seed, (uint32_t)at, &record);
        if (verdict == WAL_RECORD_NONE) continue;
        uint64_t ends = at + record.total;
        if (ends > stop) ends = stop;
        if (ends > scan->dirty) scan->dirty = (uint32_t)ends;
        if (verdict == WAL_RECORD_OK && record.base > scan->end && !scan->witness) scan->witness = (uint32_t)at;
    }
    if (scan->witness) return WAL_DAMAGED;
    return scan->dirty ? WAL_TORN : WAL_CLEAN;
}

int wal_scan_segment(const uint8_t *bytes, size_t size, const struct wal_header *header, uint32_t limit,
                     struct wal_scan *scan) {
    uint32_t seed = wal_segment_seed(header->log_id, header->sequence);
    uint32_t stop = header->capacity < size ? header->capacity : (uint32_t)size;
    if (limit && limit < stop) stop = limit;
    *scan = (struct wal_scan){
        .hard = header->hard,
        .last_index = header->prev_index,
        .last_term = header->prev_term,
        .oldest = header->oldest,
        .end = WAL_HEADER_BYTES,
        .base = WAL_HEADER_BYTES,
    };
    while (scan->end < stop) {
        struct wal_record record;
        if (read_record(bytes + scan->end, stop - scan->end, seed, scan->end, &record) != WAL_RECORD_OK) break;
        int verdict = fold(scan, header, &record);
        if (verdict != WAL_CLEAN) return verdict;
        scan->base = record.base;
        scan->chain = wal_chain(scan->chain, record.check);
        scan->records++;
        scan->end += record.total;
    }
    if (limit) return scan->end == limit ? WAL_CLEAN : WAL_DAMAGED;
    return search_tail(bytes, stop, seed, scan);
}

void wal_scan_free(struct wal_scan *scan) {
    free(scan->places);
    free(scan->runs);
    scan->places = NULL;
    scan->runs = NULL;
    scan->place_count = scan->place_room = scan->run_count = scan->run_room = 0;
}
