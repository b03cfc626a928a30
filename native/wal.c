/* Opening and closing a log, and reading off what is known about it. See wal_inside.h. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wal_inside.h"

uint64_t wal_room(struct wal *w) {
    pthread_mutex_lock(&w->lock);
    uint32_t limit = w->fill_capacity - WAL_RESERVE;
    uint64_t room = limit > w->fill ? limit - w->fill : 0;
    uint64_t spare = w->capacity - WAL_HEADER_BYTES - WAL_RESERVE;
    if (wal_unclaimed(w) && spare > room) room = spare;
    if (w->failed) room = 0;
    pthread_mutex_unlock(&w->lock);
    return room;
}

uint64_t wal_newest(struct wal *w) {
    pthread_mutex_lock(&w->lock);
    uint64_t sequence = w->fill_sequence;
    pthread_mutex_unlock(&w->lock);
    return sequence;
}

int wal_fileno(const struct wal *w) { return w->event; }

uint64_t wal_durable(const struct wal *w) { return atomic_load_explicit(&w->durable, memory_order_acquire); }

void wal_clear(struct wal *w) {
    uint64_t count;
    ssize_t got = read(w->event, &count, sizeof count); /* EAGAIN: it was clear already */
    (void)got;
}

int wal_failed(const struct wal *w) { return w->failed; }

void wal_stats(struct wal *w, struct wal_stats *stats) {
    pthread_mutex_lock(&w->lock);
    *stats = w->shown;
    stats->appends = w->appends;
    pthread_mutex_unlock(&w->lock);
}

int wal_settle(struct wal *w) {
    pthread_mutex_lock(&w->lock);
    while (!(w->idle && (w->failed || wal_next_job(w) == JOB_NOTHING))) pthread_cond_wait(&w->progress, &w->lock);
    int error = w->failed;
    pthread_mutex_unlock(&w->lock);
    return error;
}

/* Write [from, to) of the file again as it is. After a failed sync the kernel may call pages clean that the disk never
 * got, and would sync nothing: so what no later record vouches for is made dirty once more. Same bytes in the same
 * places, so a crash in between changes nothing. */
static int write_again(const struct wal_file *file, uint32_t from, uint32_t to) {
    uint8_t *bytes = malloc(WAL_ZERO_BYTES);
    int error = bytes ? 0 : ENOMEM;
    while (!error && from < to) {
        size_t part = to - from < WAL_ZERO_BYTES ? to - from : WAL_ZERO_BYTES;
        ssize_t got = pread(file->fd, bytes, part, from);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            error = got < 0 ? errno : EIO;
            break;
        }
        error = wal_io_write(file, bytes, (size_t)got, from);
        from += (uint32_t)got;
    }
    free(bytes);
    return error;
}

/* Go on in the last segment. What lies behind its end and could still pass as its records is wiped first, durably:
 * new records may be shorter, and the old ones must not follow them.
 *
 * A crash in the middle of the wiping is harmless: it touches nothing before the end; of the wiped bytes any sectors
 * may be zero and any not; none of them becomes a record by that, and the records that are left have bases at or
 * before the end, as all of the torn group had. So the next opening finds the same end, and wipes again. */
static int take_up(struct wal *w, const struct wal_start *start) {
    char name[WAL_NAME_BYTES];
    wal_name_segment(name, start->sequence);
    int error = wal_io_open(w->dir, name, 0, &w->file);
    struct stat st;
    if (!error && fstat(w->file.fd, &st) != 0) error = errno;
    if (!error && st.st_size < (off_t)start->last_capacity) error = wal_io_allocate(&w->file, start->last_capacity);
    for (uint32_t at = start->end; !error && at < start->dirty;) {
        uint32_t part = start->dirty - at < WAL_ZERO_BYTES ? start->dirty - at : WAL_ZERO_BYTES;
        error = wal_io_write(&w->file, wal_zeros, part, at);
        at += part;
    }
    if (!error) error = write_again(&w->file, start->base, start->end);
    if (!error) error = wal_io_sync(&w->file);
    if (!error) error = wal_io_sync_dir(w->dir);
    w->fill_sequence = w->sequence = start->sequence;
    w->first = w->oldest = start->oldest;
    w->fill = w->written = w->synced = start->end;
    w->fill_capacity = start->last_capacity;
    w->chain = start->chain;
    w->seed = wal_segment_seed(w->log_id, w->sequence);
    /* Only a mark is this short. Without one the group at the end gets its mark now: it has just been synced. */
    w->marked = start->end == WAL_HEADER_BYTES || start->end - start->base == WAL_MARK_RESERVE;
    return error;
}

/* The first segment of a new log. */
static int begin(struct wal *w) {
    int error = 0;
    while (!error && !w->ready) error = wal_prepare_step(w);
    if (error) return error;
    w->oldest = w->first = 1;
    w->fill_sequence = 0;
    wal_claim_spare(w);
    error = wal_next_segment(w, &w->gather->switches[0].header);
    w->gather->switch_count = 0;
    w->marked = 1;
    return error;
}

static int start_thread(struct wal *w) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the main thread */
    int error = pthread_create(&w->thread, NULL, wal_writer_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error) pthread_setname_np(w->thread, "kvorum-wal");
    return error;
}

static void free_wal(struct wal *w) {
    wal_io_close(&w->file);
    wal_io_close(&w->draft);
    if (w->event >= 0) close(w->event);
    if (w->gather) free(w->gather->bytes);
    if (w->writing) free(w->writing->bytes);
    free(w->gather);
    free(w->writing);
    pthread_cond_destroy(&w->progress);
    pthread_cond_destroy(&w->work);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

static struct wal *new_wal(int dir, const struct wal_start *start, int *error) {
    struct wal *w = calloc(1, sizeof *w);
    *error = ENOMEM;
    if (!w) return NULL;
    w->dir = dir;
    w->cluster_id = start->cluster_id;
    w->member_id = start->member_id;
    w->log_id = start->log_id;
    w->capacity = start->capacity;
    w->last_index = start->last_index;
    w->last_term = start->last_term;
    w->hard = start->hard;
    w->want = 1;
    w->file.fd = w->draft.fd = -1;
    w->next_spare = start->next_spare;
    w->ready = start->spare_count < WAL_SPARES_MAX ? start->spare_count : WAL_SPARES_MAX;
    if (w->ready) memcpy(w->spares, start->spares, w->ready * sizeof w->spares[0]);
    w->gather = calloc(1, sizeof *w->gather);
    w->writing = calloc(1, sizeof *w->writing);
    w->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    *error = w->event < 0 ? errno : w->gather && w->writing ? 0 : ENOMEM;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->work, &monotonic);
    pthread_cond_init(&w->progress, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return w;
}

struct wal *wal_open(int dir, const struct wal_start *start, int *error) {
    struct wal *w = new_wal(dir, start, error);
    if (!*error && (start->capacity < WAL_SEGMENT_BYTES_MIN || start->capacity > WAL_SEGMENT_BYTES_MAX ||
                    start->capacity % 8 != 0))
        *error = EINVAL;
    if (!*error) {
        *error = wal_io_remove(dir, WAL_DRAFT_NAME); /* what a crash left half prepared */
        if (*error == ENOENT) *error = 0;
    }
    if (!*error) *error = start->sequence ? take_up(w, start) : begin(w);
    if (!*error) *error = start_thread(w);
    if (!*error) return w;
    if (w) free_wal(w);
    return NULL;
}

int wal_close(struct wal *w) {
    pthread_mutex_lock(&w->lock);
    w->stopping = 1;
    pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    int error = w->failed;
    free_wal(w);
    return error;
}
