/* The writer thread: checksums, writes, syncs; segments and spares. Without the lock unless said. See wal_inside.h. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "wal_inside.h"

enum {
    BUFFER_KEEP_BYTES = 16 << 20,    /* a batch's buffer is given back if it has grown beyond this */
    SPARES_KEEP = 2,                 /* recycled files beyond this many spares are removed */
    RETRY_SECONDS = 1                /* how often a full disk is asked again */
};

uint8_t wal_zeros[WAL_ZERO_BYTES];

void wal_name_segment(char name[WAL_NAME_BYTES], uint64_t sequence) {
    snprintf(name, WAL_NAME_BYTES, "%016llx.wal", (unsigned long long)sequence);
}

static void name_spare(char name[WAL_NAME_BYTES], uint64_t number) {
    snprintf(name, WAL_NAME_BYTES, "%016llx.spare", (unsigned long long)number);
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void ring(struct wal *w) {
    uint64_t one = 1;
    ssize_t put = write(w->event, &one, sizeof one); /* EAGAIN: it rings already, 2^64 times */
    (void)put;
}

static int sync_data(struct wal *w) {
    if (w->written == w->synced) return 0;
    uint64_t began = nanoseconds();
    int error = wal_io_sync(&w->file);
    if (error) return error;
    uint64_t took = nanoseconds() - began, microseconds = took / 1000;
    w->tally.syncs++;
    w->tally.sync_nanoseconds += took;
    int bucket = microseconds ? 64 - __builtin_clzll(microseconds) : 0;
    w->tally.sync_buckets[bucket < 31 ? bucket : 31]++;
    w->synced = w->written;
    return 0;
}

/* Give every record of a run its base and its checksums and write the run behind what is written. */
static int write_run(struct wal *w, uint8_t *run, size_t length) {
    uint32_t chain = w->chain;
    for (size_t at = 0; at < length;) {
        uint8_t *record = run + at;
        uint32_t total = (uint32_t)wal_total(wal_get32(record + AT_LENGTH));
        uint32_t seed = wal_record_seed(w->seed, w->written + (uint32_t)at);
        wal_put32(record + AT_BASE, w->synced);
        wal_put32(record + AT_PAYLOAD, crc32c(seed, record + WAL_RECORD_BYTES, total - WAL_RECORD_BYTES));
        uint32_t check = crc32c(seed, record + AT_PAYLOAD, WAL_RECORD_BYTES - AT_PAYLOAD);
        wal_put32(record + AT_CHECK, check);
        chain = wal_chain(chain, check);
        at += total;
    }
    int error = wal_io_write(&w->file, run, length, w->written);
    if (error) return error;
    w->chain = chain;
    w->written += (uint32_t)length;
    w->tally.bytes += length;
    return 0;
}

static void encode_header(uint8_t bytes[WAL_HEADER_BYTES], const struct wal_header *header) {
    memset(bytes, 0, WAL_HEADER_BYTES);
    memcpy(bytes + AT_MAGIC, WAL_MAGIC, 8);
    wal_put32(bytes + AT_VERSION, WAL_VERSION);
    wal_put32(bytes + AT_CAPACITY, header->capacity);
    wal_put64(bytes + AT_CLUSTER, header->cluster_id);
    wal_put64(bytes + AT_MEMBER, header->member_id);
    wal_put64(bytes + AT_LOG, header->log_id);
    wal_put64(bytes + AT_SEQUENCE, header->sequence);
    wal_put64(bytes + AT_OLDEST, header->oldest);
    wal_put64(bytes + AT_PREV_INDEX, header->prev_index);
    wal_put64(bytes + AT_PREV_TERM, header->prev_term);
    wal_put64(bytes + AT_HARD_TERM, header->hard.term);
    wal_put64(bytes + AT_HARD_VOTE, header->hard.vote);
    wal_put64(bytes + AT_HARD_COMMIT, header->hard.commit);
    wal_put32(bytes + AT_PREV_END, header->prev_end);
    wal_put32(bytes + AT_PREV_CHAIN, header->prev_chain);
    wal_put32(bytes + AT_HEADER_CRC, crc32c(0, bytes, AT_HEADER_CRC));
}

/* Go over to the next segment: a ready spare gets its header and then its name.
 *
 *   sync the old segment | header into the spare | sync | rename | sync the directory | records
 *
 * A crash before the rename lasts leaves a spare, whatever is in it, and the old segment as the last one. After it,
 * the new segment is complete in itself and vouches for all of the old one. No record is written under the new
 * sequence before its name is on disk, so a sequence is never used for two contents. */
int wal_next_segment(struct wal *w, struct wal_header *header) {
    char spare[WAL_NAME_BYTES], name[WAL_NAME_BYTES];
    uint8_t bytes[WAL_HEADER_BYTES];
    struct wal_file file;
    name_spare(spare, w->spares[0]);
    wal_name_segment(name, header->sequence);
    int error = sync_data(w);
    if (!error) error = wal_io_open(w->dir, spare, 0, &file);
    if (error) return error;
    header->prev_end = w->written;
    header->prev_chain = w->chain;
    encode_header(bytes, header);
    error = wal_io_write(&file, bytes, sizeof bytes, 0);
    if (!error) error = wal_io_sync(&file);
    if (!error) error = wal_io_rename(w->dir, spare, name);
    if (!error) error = wal_io_sync_dir(w->dir);
    if (error) {
        wal_io_close(&file);
        return error;
    }
    memcpy(file.name, name, sizeof name);
    wal_io_close(&w->file);
    w->file = file;
    w->sequence = header->sequence;
    w->seed = wal_segment_seed(w->log_id, w->sequence);
    w->written = w->synced = WAL_HEADER_BYTES;
    w->chain = 0;
    w->tally.segments++;
    w->tally.syncs++;
    pthread_mutex_lock(&w->lock);
    w->ready--;
    w->claimed--;
    memmove(w->spares, w->spares + 1, w->ready * sizeof w->spares[0]);
    pthread_mutex_unlock(&w->lock);
    return 0;
}

/* Write and sync all that has gathered. One sync, unless segments end in it: each must be on disk before the next. */
static int write_batch(struct wal *w, struct wal_batch *batch) {
    size_t at = 0;
    for (uint32_t i = 0; i <= batch->switch_count; i++) {
        int last = i == batch->switch_count;
        size_t until = last ? batch->used : batch->switches[i].at;
        int error = write_run(w, batch->bytes + at, until - at);
        if (!error) error = last ? sync_data(w) : wal_next_segment(w, &batch->switches[i].header);
        if (error) return error;
        at = until;
    }
    w->marked = 0;
    w->tally.groups++;
    return 0;
}

/* Say on disk that all so far is on disk. Not synced: if a power loss takes it, nothing was promised; if only the
 * process dies, it is there, and from then on damage to the last group can't be taken for a torn one. */
static int write_mark(struct wal *w) {
    uint8_t mark[WAL_MARK_RESERVE] = {0};
    mark[AT_TYPE] = WAL_MARK;
    w->marked = 1;
    w->tally.marks++;
    return write_run(w, mark, sizeof mark);
}

static void add_spare(struct wal *w, uint64_t number) {
    pthread_mutex_lock(&w->lock);
    w->spares[w->ready++] = number;
    w->no_space = 0;
    pthread_cond_broadcast(&w->progress);
    pthread_mutex_unlock(&w->lock);
}

/* One step towards the next spare. Zeros are really written: syncing into space that is merely allocated makes the
 * file system write its own records as well, which nearly doubles the time. A file is called a spare only when all of
 * it is allocated and synced. Returns 0, or an errno: if it wal_is_no_space() nothing has changed. */
int wal_prepare_step(struct wal *w) {
    int error = 0;
    if (w->draft.fd < 0) {
        w->drafted = 0;
        error = wal_io_open(w->dir, WAL_DRAFT_NAME, 1, &w->draft);
        if (error) return error;
        error = wal_io_allocate(&w->draft, w->capacity);
    }
    uint32_t left = w->capacity - w->drafted, step = left < WAL_ZERO_BYTES ? left : WAL_ZERO_BYTES;
    if (!error) error = wal_io_write(&w->draft, wal_zeros, step, w->drafted);
    if (!error) error = wal_io_sync(&w->draft);
    w->drafted += step;
    w->prepare_debt -= step < w->prepare_debt ? step : w->prepare_debt;
    if (!error && w->drafted < w->capacity) return 0;
    char name[WAL_NAME_BYTES];
    name_spare(name, w->next_spare);
    if (!error) error = wal_io_rename(w->dir, WAL_DRAFT_NAME, name);
    wal_io_close(&w->draft);
    if (error) {
        int removed = wal_io_remove(w->dir, WAL_DRAFT_NAME);
        return wal_is_no_space(error) && removed ? removed : error;
    }
    w->tally.prepared++;
    add_spare(w, w->next_spare++);
    return 0;
}

/* May this segment's file be used again as it is? It may have been made with another size, or have holes. */
static int is_whole(const struct wal *w, const char *name) {
    struct stat st;
    if (fstatat(w->dir, name, &st, 0) != 0) return 0;
    return st.st_size == (off_t)w->capacity && st.st_blocks * 512 >= st.st_size;
}

/* Segments before `until` go, oldest first. That they may is on disk already, so whatever a crash leaves of them, in
 * whatever state, the next opening knows to be left over: the directory need not be synced, and a file may be used
 * again before its old name is gone for good. */
static int recycle(struct wal *w, uint64_t until) {
    int error = 0;
    for (; !error && w->first < until; w->first++) {
        char name[WAL_NAME_BYTES], spare[WAL_NAME_BYTES];
        wal_name_segment(name, w->first);
        name_spare(spare, w->next_spare);
        pthread_mutex_lock(&w->lock);
        int keep = wal_unclaimed(w) < SPARES_KEEP && w->ready < WAL_SPARES_MAX;
        pthread_mutex_unlock(&w->lock);
        if (keep && is_whole(w, name)) {
            error = wal_io_rename(w->dir, name, spare);
            if (!error) add_spare(w, w->next_spare++);
            w->tally.recycled++;
        } else {
            error = wal_io_remove(w->dir, name);
            w->tally.removed++;
        }
    }
    return error;
}

/* ---- the thread ---- */

/* A group goes first, except that while a spare is wanted, two bytes of it are prepared for each byte written: so it is
 * ready before the segment is full, however busy the log is. A mark must be on its way before anything slow begins. */
enum wal_job wal_next_job(const struct wal *w) {
    int may_prepare = wal_unclaimed(w) < w->want && w->ready < WAL_SPARES_MAX && (!w->no_space || w->retry);
    if (w->failed) return JOB_STOP;
    if (w->gather->used) return may_prepare && w->prepare_debt >= WAL_ZERO_BYTES ? JOB_PREPARE : JOB_WRITE;
    if (!w->marked && w->fill + WAL_MARK_RESERVE <= w->fill_capacity - WAL_RELEASE_RESERVE) return JOB_MARK;
    if (w->recycle_to) return JOB_RECYCLE;
    if (w->stopping) return JOB_STOP;
    return may_prepare ? JOB_PREPARE : JOB_NOTHING;
}

/* With the lock held: sleep until there may be something to do. */
static void wait_for_work(struct wal *w) {
    w->idle = 1;
    pthread_cond_broadcast(&w->progress);
    if (w->no_space) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += RETRY_SECONDS;
        if (pthread_cond_timedwait(&w->work, &w->lock, &until) == ETIMEDOUT) w->retry = 1;
    } else {
        pthread_cond_wait(&w->work, &w->lock);
    }
    w->idle = 0;
}

/* With the lock held: swap the batches and give the other one's memory back if it had grown out of hand. */
static void take_gathered(struct wal *w) {
    struct wal_batch *taken = w->gather, *empty = w->writing;
    if (empty->room > BUFFER_KEEP_BYTES) {
        free(empty->bytes);
        empty->bytes = NULL;
        empty->room = 0;
    }
    empty->used = empty->switch_count = 0;
    empty->oldest = 0;
    empty->position = taken->position;
    w->gather = empty;
    w->writing = taken;
}

/* Called with the lock held and returns with it held. */
static int do_job(struct wal *w, enum wal_job job) {
    uint64_t until = w->recycle_to;
    if (job == JOB_WRITE) take_gathered(w);
    if (job == JOB_MARK) w->fill += WAL_MARK_RESERVE;
    if (job == JOB_PREPARE) w->retry = 0;
    if (job == JOB_RECYCLE) w->recycle_to = 0;
    pthread_mutex_unlock(&w->lock);
    int error = job == JOB_WRITE     ? write_batch(w, w->writing)
                : job == JOB_PREPARE ? wal_prepare_step(w)
                : job == JOB_RECYCLE ? recycle(w, until)
                                     : write_mark(w);
    if (job == JOB_WRITE && !error) {
        atomic_store_explicit(&w->durable, w->writing->position, memory_order_release);
        ring(w);
    }
    pthread_mutex_lock(&w->lock);
    if (job == JOB_WRITE) {
        w->prepare_debt = wal_unclaimed(w) < w->want ? w->prepare_debt + 2 * w->writing->used : 0;
        if (w->writing->oldest) w->recycle_to = w->writing->oldest;
    }
    if (job == JOB_PREPARE && (!error || wal_is_no_space(error))) {
        w->no_space = error;
        error = 0;
        if (w->no_space) pthread_cond_broadcast(&w->progress);
    }
    if (job == JOB_RECYCLE && w->no_space) w->retry = 1;
    w->shown = w->tally;
    return error;
}

void *wal_writer_main(void *arg) {
    struct wal *w = arg;
    enum wal_job job;
    int error = 0;
    pthread_mutex_lock(&w->lock);
    while ((job = wal_next_job(w)) != JOB_STOP) {
        if (job == JOB_NOTHING) {
            wait_for_work(w);
            continue;
        }
        error = do_job(w, job);
        if (error) w->failed = error;
    }
    pthread_mutex_unlock(&w->lock);
    if (!error) error = sync_data(w); /* the last mark */
    pthread_mutex_lock(&w->lock);
    if (error) w->failed = error;
    w->shown = w->tally;
    w->idle = 1;
    pthread_cond_broadcast(&w->progress);
    pthread_mutex_unlock(&w->lock);
    ring(w);
    return NULL;
}
