/* The write-ahead log: what a member has promised, on disk before it is spoken of. The bytes are drawn in WAL.md.
 *
 *      wal_append()                     writer thread                       disk
 *   raft --copy--> [ gathering ] --swap--> [ writing ] --pwrite, fdatasync--> segment n, segment n+1, ...
 *     ^                                                          |
 *     +------------- eventfd, wal_durable() ----------- position +        ready spares <- prepared ahead, or recycled
 *
 * One caller appends, one thread writes. Whatever gathers while a sync is under way is written and synced together the
 * next time, so that a slow disk makes larger groups, not more syncs.
 *
 * What makes it safe
 * - The position rises only after fdatasync has returned 0 for every byte before it. After any failed write or sync
 *   it never rises again: nobody knows what the page cache still holds, and a later success would prove nothing.
 * - Nothing is accepted without a place: wal_append() takes records only if the current segment and the spares that
 *   are already allocated hold them, so a full disk says no before, never after.
 * - Every record names the point up to which its segment was on disk when it was written (`base`). So the reader can
 *   tell a group that a power loss tore (nothing behind it was written later: cut it) from damage to what had been
 *   synced (something behind it was: refuse). After each group the idle writer adds a mark for just that purpose.
 * - A segment gets its name only when its header is on disk and all before it is too, and the header says where and
 *   how the one before ends. So a missing, shortened, swapped or damaged segment never goes unnoticed.
 * - Checksums begin with (log id, sequence, offset). Within one log no two sequences share a beginning, so what an
 *   earlier life left in a recycled file fails with certainty; and the log id is random and secret, so no client can
 *   hide a record in a value. */
#ifndef KVORUM_WAL_H
#define KVORUM_WAL_H

#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum wal_sizes {
    WAL_VERSION = 1,
    WAL_HEADER_BYTES = 512,           /* the segment header has the first sector to itself */
    WAL_RECORD_BYTES = 20,            /* before each payload */
    WAL_ENTRY_BYTES = 17,             /* term, index, kind: before each entry's data */
    WAL_SEGMENT_BYTES_MIN = 4096,
    WAL_SEGMENT_BYTES_MAX = 1 << 30,
    WAL_RELEASE_RESERVE = 32,         /* kept free at a segment's end for one release: what frees space needs none */
    WAL_MARK_RESERVE = 24,            /* and before it for one mark */
    WAL_SPARES_MAX = 64
};

enum wal_type {
    WAL_ENTRY = 1,                    /* term, index, kind, data: the log grows by one */
    WAL_HARD_STATE = 2,               /* term, vote, commit */
    WAL_MEMBERSHIP = 3,               /* number kept, not written yet */
    WAL_SNAPSHOT = 4,                 /* number kept, not written yet */
    WAL_CUT = 5,                      /* index, term: entries above that index no longer count */
    WAL_MARK = 6,                     /* empty: says by its base that all before it is on disk */
    WAL_RELEASE = 7                   /* sequence: segments before that one are no longer needed */
};

struct wal_hard {
    uint64_t term, vote, commit;
};

struct wal_entry {
    uint64_t term, index;             /* the caller's */
    const uint8_t *data;
    uint32_t length;
    uint8_t kind;
    uint32_t offset;                  /* the answer: where the record lies */
    uint64_t sequence;
};

/* A segment's header. prev_* is the state of the log just before this segment; capacity is the size of the file. */
struct wal_header {
    uint64_t cluster_id, member_id, log_id, sequence, oldest;
    uint64_t prev_index, prev_term;
    struct wal_hard hard;
    uint32_t capacity, prev_end, prev_chain;
};

/* ---- reading: pure functions over bytes ---- */

enum wal_header_verdict {
    WAL_HEADER_OK = 0,
    WAL_HEADER_SHORT = 1,             /* fewer than WAL_HEADER_BYTES */
    WAL_HEADER_FOREIGN = 2,           /* no segment: the magic is missing */
    WAL_HEADER_DAMAGED = 3,           /* the checksum or a number is wrong */
    WAL_HEADER_NEWER = 4              /* sound, but of a format version that is not ours */
};

int wal_header_read(const uint8_t *bytes, size_t size, struct wal_header *header);

enum wal_record_verdict {
    WAL_RECORD_OK = 0,
    WAL_RECORD_NONE = 1,              /* no record of this segment begins here */
    WAL_RECORD_BROKEN = 2             /* one does, but its payload is not what was written */
};

struct wal_record {
    uint32_t offset, total;           /* place and size in the segment, padding included */
    uint32_t length, base;
    uint32_t check;                   /* the header's checksum, by which the chain runs */
    uint8_t type;
    const uint8_t *payload;           /* inside the bytes that were read */
};

/* Read the record that begins at `bytes`, which is `offset` bytes into its segment and `size` bytes before what may be
 * read ends. `record` is filled unless the verdict is WAL_RECORD_NONE. */
int wal_record_read(const uint8_t *bytes, size_t size, uint64_t log_id, uint64_t sequence, uint32_t offset,
                    struct wal_record *record);

enum wal_verdict {
    WAL_CLEAN = 0,                    /* the records end at `end` */
    WAL_TORN = 1,                     /* at `end` lies what was never synced, or nothing shows that it was: cut there */
    WAL_DAMAGED = 2,                  /* at `end` lies something unreadable that had been synced */
    WAL_DISORDER = 3,                 /* the record at `end` is sound but does not fit the ones before */
    WAL_NEWER = 4                     /* the record at `end` is sound but of a type that is not ours */
};

/* `count` entries of one term with consecutive indexes. Above first - 1, whose term is prev_term, nothing that came
 * before counts any more; with count 0 that is all it says. */
struct wal_run {
    uint64_t first, prev_term, term;
    uint32_t count;
};

/* What a segment says, its records folded over its header. */
struct wal_scan {
    struct wal_hard hard;
    uint64_t last_index, last_term, oldest;
    uint32_t end;                     /* where the records end */
    uint32_t witness;                 /* with WAL_DAMAGED in the last segment: a record that was written later */
    uint32_t dirty;                   /* up to here lie records of this very segment behind `end`; 0 if none */
    uint32_t base;                    /* the newest record's base: before it all is known to be on disk */
    uint32_t chain;                   /* checksum over the checksums of all records */
    uint32_t records;
    uint32_t *places;                 /* offsets of the entries, run after run */
    uint32_t place_count, place_room;
    struct wal_run *runs;
    uint32_t run_count, run_room;
};

/* Read a segment whose header is `header` and whose first `size` bytes are at `bytes`. `limit` is where it must end
 * (the next header's prev_end), or 0 for the last segment, in which what follows the end is searched for witnesses.
 * Returns a wal_verdict, or -1 if memory ran out. wal_scan_free() is due in every case. */
int wal_scan_segment(const uint8_t *bytes, size_t size, const struct wal_header *header, uint32_t limit,
                     struct wal_scan *scan);
void wal_scan_free(struct wal_scan *scan);

/* ---- writing ---- */

struct wal;

/* Where to go on, as the reader found it. */
struct wal_start {
    uint64_t cluster_id, member_id, log_id;
    uint32_t capacity;                /* size of the segments to come */
    uint64_t sequence;                /* the last segment; 0: there is none, begin a log */
    uint32_t last_capacity, end, dirty, base, chain;
    uint64_t oldest, last_index, last_term;
    struct wal_hard hard;
    const uint64_t *spares;           /* numbers of ready spare files */
    uint32_t spare_count;
    uint64_t next_spare;              /* above all numbers of spare files there are */
};

struct wal_stats {
    uint64_t appends, groups, syncs, bytes;   /* groups: writes of gathered appends; syncs: all fdatasync calls */
    uint64_t marks, segments, prepared, recycled, removed;
    uint64_t sync_nanoseconds;                /* in the groups' fdatasync calls */
    uint64_t sync_buckets[32];                /* and how many took less than 2^i microseconds, and not less than half */
};

/* Go on writing in the directory open as `dir`, which the caller has locked and keeps open until after wal_close().
 * Ends the last segment's torn tail, makes what was read durable, starts the thread. NULL with *error set otherwise;
 * then nothing is running and the directory may be opened again. */
struct wal *wal_open(int dir, const struct wal_start *start, int *error);

/* Hand over one batch: the hard state if not NULL, then the entries. They become durable in this order, and are one
 * piece to the writer. Indexes must be consecutive and begin at or below the last one + 1; if below, the log is cut
 * there first, prev_term being the term of the entry before. The data is copied. Returns 0 with *position set to what
 * wal_durable() reaches when all of it is on disk, or, with nothing accepted:
 *   ENOSPC, EDQUOT  no room, and the disk gave none for another segment. Tried again every second and at each call.
 *   EMSGSIZE        an entry is larger than a segment, or the batch needs more than WAL_SPARES_MAX of them.
 *   EINVAL          the indexes or terms do not follow.
 *   ENOMEM          no memory.
 *   the errno of wal_failed()
 * Waits only if the segment and all spares are used up while the next spare is still being prepared. */
int wal_append(struct wal *w, const struct wal_hard *hard, uint64_t prev_term, struct wal_entry *entries,
               uint32_t count, uint64_t *position);

/* Segments before `sequence` are no longer needed: says so in the log, and when that is durable, makes spares of them
 * or removes them. Never the current one. Returns 0 or the errno of wal_failed(), or ENOMEM. */
int wal_release(struct wal *w, uint64_t sequence);

/* The segment in which the newest record has its place. */
uint64_t wal_newest(struct wal *w);

/* Readable when the position has risen or the log has failed. */
int wal_fileno(const struct wal *w);

/* The position up to which all is on disk. wal_clear() is to be called before, so that no rise goes unseen. */
uint64_t wal_durable(const struct wal *w);
void wal_clear(struct wal *w);

/* 0, or the errno of the first failed write or sync. It is final. */
int wal_failed(const struct wal *w);

/* Bytes of records, overheads included, that can certainly still be appended: what the current segment has left, or,
 * if more, what a spare holds. */
uint64_t wal_room(struct wal *w);

void wal_stats(struct wal *w, struct wal_stats *stats);

/* Wait until the thread has nothing left to do. Returns wal_failed(). */
int wal_settle(struct wal *w);

/* Write what has gathered, sync, stop the thread, free everything. Returns wal_failed() as it was at the end. */
int wal_close(struct wal *w);

/* ---- for tests ---- */

enum wal_op_kind {
    WAL_OP_CREATE = 1,
    WAL_OP_ALLOCATE = 2,
    WAL_OP_WRITE = 3,
    WAL_OP_SYNC = 4,
    WAL_OP_RENAME = 5,
    WAL_OP_REMOVE = 6,
    WAL_OP_SYNC_DIR = 7
};

struct wal_op {
    int kind;
    const char *name, *to;            /* `to` with WAL_OP_RENAME */
    uint64_t offset, length;
    const uint8_t *data;
};

/* Called before each change to the disk, by the thread that makes it. 0: go on. n > 0: fail with that errno, doing
 * nothing. n < 0, with WAL_OP_WRITE: write only -n bytes this time. Set it while no log is open; NULL to end. */
typedef int (*wal_hook)(const struct wal_op *op);
void wal_set_hook(wal_hook hook);

/* cdef: end */

#endif
