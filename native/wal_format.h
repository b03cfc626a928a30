/* Where the bytes of a segment lie, for the two that know: the reader and the writer. WAL.md draws them. */
#ifndef KVORUM_WAL_FORMAT_H
#define KVORUM_WAL_FORMAT_H

#include <string.h>

#include "crc32c.h"
#include "wal.h"

#define WAL_MAGIC "kvorumWL"

enum wal_header_field {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_CAPACITY = 12,
    AT_CLUSTER = 16,
    AT_MEMBER = 24,
    AT_LOG = 32,
    AT_SEQUENCE = 40,
    AT_OLDEST = 48,
    AT_PREV_INDEX = 56,
    AT_PREV_TERM = 64,
    AT_HARD_TERM = 72,
    AT_HARD_VOTE = 80,
    AT_HARD_COMMIT = 88,
    AT_PREV_END = 96,
    AT_PREV_CHAIN = 100,
    AT_HEADER_CRC = WAL_HEADER_BYTES - 4 /* stays there in every version to come */
};

enum wal_record_field {
    AT_CHECK = 0,    /* over (log id, sequence, offset) and the 16 bytes after this one */
    AT_PAYLOAD = 4,  /* checksum over (log id, sequence, offset), payload and padding */
    AT_LENGTH = 8,
    AT_TYPE = 12,
    AT_ZERO = 13,
    AT_BASE = 16
};

static inline uint32_t wal_get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static inline uint64_t wal_get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static inline void wal_put32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }

static inline void wal_put64(uint8_t *at, uint64_t value) { memcpy(at, &value, 8); }

/* Bytes that a record takes, padded so that the next one begins at a multiple of 8. */
static inline uint64_t wal_total(uint64_t length) { return (WAL_RECORD_BYTES + length + 7) & ~(uint64_t)7; }

/* Where checksums begin. A CRC finds every difference that spans at most 32 bits: two sequences below 2^32 of one log
 * never share a seed, and different seeds never lead to the same checksum of the same bytes. */
static inline uint32_t wal_segment_seed(uint64_t log_id, uint64_t sequence) {
    uint64_t words[2] = {log_id, sequence};
    return crc32c(0, words, sizeof words);
}

static inline uint32_t wal_record_seed(uint32_t segment_seed, uint32_t offset) {
    return crc32c(segment_seed, &offset, sizeof offset);
}

static inline uint32_t wal_chain(uint32_t chain, uint32_t check) { return crc32c(chain, &check, sizeof check); }

#endif
