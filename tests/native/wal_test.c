/* The log from C, to be built with sanitizers: what threads, memory and arithmetic do while it works, fails, is damaged.
 *
 * What comes back is compared with what was handed over, kept in `shadow`. Run as: wal_test DIRECTORY [SEED]. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../native/crc32c.h"
#include "../../native/wal.h"

#define CHECK(what) ((what) ? (void)0 : fail(#what, __LINE__))

enum { CAPACITY = 8192, ENTRIES_MAX = 4000, DATA_MAX = 900 };

static void fail(const char *what, int line) {
    fprintf(stderr, "wal_test.c:%d: %s\n", line, what);
    abort();
}

static uint64_t dice_state;

static uint32_t dice(uint32_t sides) { /* splitmix64 */
    uint64_t z = dice_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ z >> 31) % sides);
}

/* ---- what the log should hold */

static struct {
    uint64_t term;
    uint32_t length, seed;
} shadow[ENTRIES_MAX + 1];
static uint64_t shadow_last;
static struct wal_hard shadow_hard;

static void fill(uint8_t *data, uint32_t length, uint32_t seed) {
    for (uint32_t i = 0; i < length; i++) data[i] = (uint8_t)(seed * 31 + i * 7);
}

/* ---- opening as the journal does, in short */

static char directory[256];
static int dir = -1;

static void name_of(char *path, uint64_t sequence) {
    snprintf(path, 300, "%s/%016llx.wal", directory, (unsigned long long)sequence);
}

static uint8_t *load(uint64_t sequence, size_t *size) {
    char path[300];
    name_of(path, sequence);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return NULL;
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    *size = (size_t)st.st_size;
    uint8_t *bytes = malloc(*size ? *size : 1); /* exactly as large, so that one byte too far is seen */
    CHECK(read(fd, bytes, *size) == (ssize_t)*size);
    close(fd);
    return bytes;
}

static struct wal *reopen(uint64_t newest, int *error) {
    struct wal_start start = {
        .cluster_id = 1, .member_id = 2, .log_id = 0xFEEDFACECAFEBEEF, .capacity = CAPACITY, .next_spare = 1000};
    if (newest) {
        size_t size;
        uint8_t *bytes = load(newest, &size);
        CHECK(bytes);
        struct wal_header header;
        struct wal_scan scan;
        CHECK(wal_header_read(bytes, size, &header) == WAL_HEADER_OK);
        int verdict = wal_scan_segment(bytes, size, &header, 0, &scan);
        CHECK(verdict == WAL_CLEAN || verdict == WAL_TORN);
        start.sequence = newest;
        start.last_capacity = header.capacity;
        start.end = scan.end;
        start.dirty = scan.dirty;
        start.base = scan.base;
        start.chain = scan.chain;
        start.oldest = scan.oldest;
        start.last_index = scan.last_index;
        start.last_term = scan.last_term;
        start.hard = scan.hard;
        start.next_spare = 1000 * newest;
        wal_scan_free(&scan);
        free(bytes);
    }
    return wal_open(dir, &start, error);
}

static uint64_t newest(void) {
    uint64_t found = 0;
    char path[300];
    for (uint64_t sequence = 1; sequence < 2000; sequence++) {
        name_of(path, sequence);
        if (access(path, F_OK) == 0) found = sequence;
    }
    return found;
}

static uint64_t oldest(void) {
    char path[300];
    for (uint64_t sequence = 1; sequence < 2000; sequence++) {
        name_of(path, sequence);
        if (access(path, F_OK) == 0) return sequence;
    }
    return 0;
}

/* All segments agree with each other, and what is left of the log is what was handed over. */
static void check_all(void) {
    uint64_t last = 0, term = 0;
    struct wal_hard hard = {0};
    struct wal_scan before = {0};
    uint8_t data[DATA_MAX], wanted[DATA_MAX];
    uint64_t first = oldest(), until = newest();
    static uint64_t places[ENTRIES_MAX + 1];
    for (uint64_t sequence = first; sequence <= until; sequence++) {
        size_t size, next_size;
        uint8_t *bytes = load(sequence, &size), *next = sequence < until ? load(sequence + 1, &next_size) : NULL;
        struct wal_header header, after = {0};
        struct wal_scan scan;
        CHECK(bytes && wal_header_read(bytes, size, &header) == WAL_HEADER_OK);
        if (next) CHECK(wal_header_read(next, next_size, &after) == WAL_HEADER_OK);
        CHECK(wal_scan_segment(bytes, size, &header, after.prev_end, &scan) == WAL_CLEAN);
        if (sequence > first) {
            CHECK(header.prev_end == before.end && header.prev_chain == before.chain);
            CHECK(header.prev_index == before.last_index && header.prev_term == before.last_term);
        }
        uint32_t at = 0;
        for (uint32_t i = 0; i < scan.run_count; i++)
            for (uint32_t k = 0; k < scan.runs[i].count; k++)
                places[scan.runs[i].first + k] = sequence << 32 | scan.places[at++];
        CHECK(at == scan.place_count);
        last = scan.last_index;
        term = scan.last_term;
        hard = scan.hard;
        before = scan;
        wal_scan_free(&scan);
        free(bytes);
        free(next);
    }
    CHECK(last == shadow_last && term == shadow[last].term);
    CHECK(memcmp(&hard, &shadow_hard, sizeof hard) == 0);
    uint64_t loaded = 0;
    size_t size = 0;
    uint8_t *bytes = NULL;
    for (uint64_t index = 1; index <= last; index++) {
        if (places[index] >> 32 < first) continue;
        if (loaded != places[index] >> 32) {
            free(bytes);
            loaded = places[index] >> 32;
            bytes = load(loaded, &size);
            CHECK(bytes);
        }
        uint32_t offset = (uint32_t)places[index];
        struct wal_record record;
        CHECK(wal_record_read(bytes + offset, size - offset, 0xFEEDFACECAFEBEEF, loaded, offset, &record) == 0);
        CHECK(record.type == WAL_ENTRY && record.length == WAL_ENTRY_BYTES + shadow[index].length);
        memcpy(data, record.payload + WAL_ENTRY_BYTES, shadow[index].length);
        fill(wanted, shadow[index].length, shadow[index].seed);
        CHECK(memcmp(data, wanted, shadow[index].length) == 0);
    }
    free(bytes);
}

static void clean(void) {
    char command[300];
    if (dir >= 0) close(dir);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    CHECK(system(command) == 0 && mkdir(directory, 0700) == 0);
    dir = open(directory, O_RDONLY | O_DIRECTORY);
    CHECK(dir >= 0);
    shadow_last = 0;
    shadow_hard = (struct wal_hard){0};
}

/* ---- stories */

/* One random append. Returns what wal_append() did; the shadow follows if it was accepted. */
static int append_one(struct wal *w, uint64_t floor, uint64_t *position) {
    static uint8_t data[8][DATA_MAX];
    struct wal_entry entries[8] = {0};
    uint32_t count = dice(9), seeds[8];
    uint64_t first = shadow_last + 1, term = shadow_last ? shadow[shadow_last].term : 1;
    struct wal_hard hard = {term, dice(3), shadow_last};
    if (shadow_last > floor && dice(8) == 0) {
        first = floor + 1 + dice((uint32_t)(shadow_last - floor));
        term++;
    }
    for (uint32_t i = 0; i < count; i++) {
        seeds[i] = dice(1u << 30);
        uint32_t length = dice(4) ? dice(60) : dice(DATA_MAX);
        fill(data[i], length, seeds[i]);
        entries[i] = (struct wal_entry){.term = term, .index = first + i, .data = data[i], .length = length};
    }
    int with_hard = !count || dice(2);
    uint64_t prev_term = first > 1 ? shadow[first - 1].term : 0;
    int error = wal_append(w, with_hard ? &hard : NULL, prev_term, entries, count, position);
    memset(data, 0xEE, sizeof data); /* the log has its own copy */
    if (error) return error;
    if (with_hard) shadow_hard = hard;
    for (uint32_t i = 0; i < count; i++) {
        shadow[first + i].term = term;
        shadow[first + i].length = entries[i].length;
        shadow[first + i].seed = seeds[i];
        shadow_last = first + i;
    }
    return 0;
}

static int wait_for(struct wal *w, uint64_t position) {
    for (;;) {
        wal_clear(w);
        if (wal_failed(w)) return wal_failed(w);
        if (wal_durable(w) >= position) return 0;
        struct pollfd fd = {.fd = wal_fileno(w), .events = POLLIN};
        CHECK(poll(&fd, 1, 30000) == 1);
    }
}

static void story_life(void) {
    clean();
    int error;
    uint64_t floor = 0, position;
    for (int life = 0; life < 6; life++) {
        struct wal *w = reopen(newest(), &error);
        CHECK(w);
        uint64_t before = 0;
        for (int i = 0; i < 60 && shadow_last < ENTRIES_MAX - 10; i++) {
            CHECK(append_one(w, floor, &position) == 0);
            CHECK(wal_durable(w) >= before && wal_durable(w) <= position);
            before = wal_durable(w);
            if (dice(4) == 0) CHECK(wait_for(w, position) == 0);
            if (dice(20) == 0 && newest() > 3) {
                floor = shadow_last;
                CHECK(wal_release(w, newest() - 1) == 0);
            }
            CHECK(wal_room(w) < 2 * CAPACITY);
        }
        if (dice(2)) CHECK(wal_settle(w) == 0);
        struct wal_stats stats;
        wal_stats(w, &stats);
        CHECK(stats.groups <= stats.appends + stats.segments + 40);
        CHECK(wal_close(w) == 0);
        check_all();
    }
}

static int strike_kind, strike_at, strike_errno, strike_count, grudging;

static int strike(const struct wal_op *op) {
    int turn = __atomic_add_fetch(&strike_count, 1, __ATOMIC_RELAXED);
    if (grudging) {
        if (turn % 3 == 0 && op->kind != WAL_OP_RENAME && op->kind != WAL_OP_REMOVE) return EINTR;
        return op->kind == WAL_OP_WRITE ? -(int)(1 + op->length / 3) : 0;
    }
    if (op->kind == strike_kind && --strike_at == 0) return strike_errno;
    return 0;
}

static void story_failures(void) {
    for (strike_kind = WAL_OP_CREATE; strike_kind <= WAL_OP_SYNC_DIR; strike_kind++) {
        for (int n = 1; n <= 12; n++) {
            clean();
            strike_at = n;
            strike_errno = n % 2 ? EIO : EROFS;
            wal_set_hook(strike);
            int error = 0, failed = 0;
            uint64_t position = 0, durable = 0;
            struct wal *w = reopen(0, &error);
            if (!w) CHECK(error == strike_errno);
            for (int i = 0; w && !failed && i < 80; i++) {
                failed = append_one(w, 0, &position);
                if (!failed) failed = wait_for(w, position);
                if (!failed) durable = position;
            }
            if (w && failed) {
                uint64_t reached = wal_durable(w); /* perhaps more than we came to ask for */
                CHECK(failed == strike_errno && reached >= durable && reached <= position && wal_room(w) == 0);
                struct wal_hard hard = {9, 9, 9};
                CHECK(wal_append(w, &hard, 0, NULL, 0, &position) == strike_errno);
                CHECK(wal_release(w, 2) == strike_errno);
                CHECK(wal_settle(w) == strike_errno);
                CHECK(wal_durable(w) == reached);
            }
            if (w) CHECK((wal_close(w) != 0) == (failed != 0) || strike_at <= 0);
            wal_set_hook(NULL);
        }
    }
}

static void story_grudging_disk(void) {
    clean();
    grudging = 1;
    wal_set_hook(strike);
    int error;
    uint64_t position = 0;
    struct wal *w = reopen(0, &error);
    CHECK(w);
    for (int i = 0; i < 100; i++) CHECK(append_one(w, 0, &position) == 0);
    CHECK(wal_close(w) == 0);
    wal_set_hook(NULL);
    grudging = 0;
    check_all();
}

/* Every cut and every flipped bit of a segment, read from memory that ends where the bytes end. */
static void story_damage(void) {
    clean();
    int error;
    uint64_t position = 0;
    struct wal *w = reopen(0, &error);
    CHECK(w);
    while (newest() < 2 || dice(6)) CHECK(append_one(w, 0, &position) == 0 && wait_for(w, position) == 0);
    CHECK(wal_close(w) == 0);
    size_t size;
    uint8_t *bytes = load(1, &size);
    struct wal_header header;
    struct wal_scan scan;
    CHECK(wal_header_read(bytes, size, &header) == WAL_HEADER_OK);
    CHECK(wal_scan_segment(bytes, size, &header, 0, &scan) == WAL_CLEAN);
    uint32_t end = scan.end;
    wal_scan_free(&scan);
    for (uint32_t length = 0; length < end; length += 3) {
        uint8_t *cut = malloc(length ? length : 1);
        memcpy(cut, bytes, length);
        struct wal_header again;
        CHECK((wal_header_read(cut, length, &again) == WAL_HEADER_OK) == (length >= WAL_HEADER_BYTES));
        if (length >= WAL_HEADER_BYTES) {
            CHECK(wal_scan_segment(cut, length, &header, 0, &scan) <= WAL_TORN && scan.end <= length);
            wal_scan_free(&scan);
        }
        free(cut);
    }
    for (uint32_t bit = WAL_HEADER_BYTES * 8; bit < end * 8; bit += 5) {
        bytes[bit >> 3] ^= (uint8_t)(1 << (bit & 7));
        CHECK(wal_scan_segment(bytes, size, &header, end, &scan) == WAL_DAMAGED && scan.end <= bit >> 3);
        wal_scan_free(&scan);
        bytes[bit >> 3] ^= (uint8_t)(1 << (bit & 7));
    }
    free(bytes);
}

static void story_checksum(void) {
    uint8_t data[300];
    fill(data, sizeof data, 5);
    CHECK(crc32c(0, "123456789", 9) == 0xE3069283u && crc32c_table(0, "123456789", 9) == 0xE3069283u);
    for (uint32_t from = 0; from < 9; from++)
        for (uint32_t to = from; to < sizeof data; to++)
            CHECK(crc32c(from, data + from, to - from) == crc32c_table(from, data + from, to - from));
}

int main(int count, char **args) {
    CHECK(count > 1 && strlen(args[1]) < 200);
    snprintf(directory, sizeof directory, "%s/log", args[1]);
    dice_state = count > 2 ? (uint64_t)atoll(args[2]) : 1;
    story_checksum();
    story_life();
    story_grudging_disk();
    story_damage();
    story_failures();
    close(dir);
    puts("ok");
    return 0;
}
