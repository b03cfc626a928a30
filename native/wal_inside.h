/* Inside the log: what the three files that make it share. wal.h says what it is for and why it is safe; here is who may
 * touch what.
 *
 *   under `lock`        the batch that gathers and the place where its next record will lie (fill_*), the counts of
 *                       spares, the requests to the writer (stopping, retry, recycle_to), the tallies others may read
 *   the writer's alone  the batch being written, the open files, the names of the spares, written / synced / chain
 *
 *   wal_append.c        the calling thread: gives out places and copies, all under the lock
 *   wal_writer.c        the writer thread: checksums, writes, syncs, segments, spares
 *   wal.c               opening and closing, when there is no thread yet or any more, and reading off what is known
 *
 * The appending side gives out places before anything is on disk: it knows the segment sizes and how many spares are
 * ready, so it can say no while no is still possible. Checksums and bases are the writer's work, since only it knows
 * what had been synced when a record is written; the raft process pays for one copy and no more. */
#ifndef KVORUM_WAL_INSIDE_H
#define KVORUM_WAL_INSIDE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "wal_format.h"
#include "wal_io.h"

enum {
    WAL_RESERVE = WAL_MARK_RESERVE + WAL_RELEASE_RESERVE, /* what entries leave free at a segment's end */
    WAL_ZERO_BYTES = 1 << 20    /* spares are filled in steps of this size, groups are written in between */
};

#define WAL_DRAFT_NAME "spare.tmp"

extern uint8_t wal_zeros[WAL_ZERO_BYTES]; /* never written to */

/* From byte `at` of a batch on, records go to a new segment. The writer fills in how the one before ended. */
struct wal_switch {
    size_t at;
    struct wal_header header;
};

struct wal_batch {
    uint8_t *bytes;
    size_t used, room;
    struct wal_switch switches[WAL_SPARES_MAX];
    uint32_t switch_count;
    uint64_t position;    /* reached when all of this is on disk */
    uint64_t oldest;      /* then segments before this one may go; 0: nothing new */
};

struct wal {
    /* fixed from the start */
    int dir, event;
    uint64_t cluster_id, member_id, log_id;
    uint32_t capacity;
    pthread_t thread;

    atomic_uint_fast64_t durable;
    atomic_int failed;

    pthread_mutex_t lock;
    pthread_cond_t work;        /* the writer waits here */
    pthread_cond_t progress;    /* callers wait here: for a spare, for the writer to be idle */
    struct wal_batch *gather;
    uint64_t fill_sequence;
    uint32_t fill, fill_capacity;
    uint64_t position, last_index, last_term, oldest, oldest_deferred;
    struct wal_hard hard;
    uint32_t ready, claimed;    /* spare files; of those, already given out as places */
    uint32_t want;              /* how many unclaimed ones there should be */
    int no_space;               /* the errno with which preparing the next spare ended, until it succeeds */
    int retry, stopping, idle;
    uint64_t recycle_to;
    uint64_t appends;
    struct wal_stats shown;

    /* the writer's */
    struct wal_batch *writing;
    struct wal_file file, draft;
    uint64_t sequence, first;       /* the segment being written, the oldest one still named as a segment */
    uint32_t seed, written, synced, chain;
    int marked;                     /* nothing synced is without a later record that says so */
    uint64_t spares[WAL_SPARES_MAX], next_spare;
    uint32_t drafted;
    uint64_t prepare_debt;          /* bytes of the next spare that are due, by what has been written */
    struct wal_stats tally;
};

/* With the lock held. Spares are claimed when records get places in them, and used up when these are written. */
static inline uint32_t wal_unclaimed(const struct wal *w) { return w->ready - w->claimed; }

/* With the lock held: from here on records go to the next spare, under the next sequence. */
void wal_claim_spare(struct wal *w);

static inline int wal_is_no_space(int error) { return error == ENOSPC || error == EDQUOT; }

void wal_name_segment(char name[WAL_NAME_BYTES], uint64_t sequence);

/* Go over to the next segment, see wal_writer.c. Returns 0 or an errno. */
int wal_next_segment(struct wal *w, struct wal_header *header);

/* One step towards the next spare, see wal_writer.c. Returns 0 or an errno. */
int wal_prepare_step(struct wal *w);

/* What is there to do? With the lock held. */
enum wal_job { JOB_NOTHING, JOB_WRITE, JOB_RECYCLE, JOB_PREPARE, JOB_MARK, JOB_STOP };
enum wal_job wal_next_job(const struct wal *w);

void *wal_writer_main(void *wal);

#endif
