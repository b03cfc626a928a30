/* The calling thread: a batch is measured, gets its places, is copied. See wal_inside.h. */
#include <stdlib.h>

#include "wal_inside.h"

void wal_claim_spare(struct wal *w) {
    struct wal_batch *batch = w->gather;
    if (w->oldest_deferred) {
        w->oldest = batch->oldest = w->oldest_deferred;
        w->oldest_deferred = 0;
    }
    w->claimed++;
    w->fill_sequence++;
    w->fill = WAL_HEADER_BYTES;
    w->fill_capacity = w->capacity;
    batch->switches[batch->switch_count++] = (struct wal_switch){
        .at = batch->used,
        .header = {.cluster_id = w->cluster_id,
                   .member_id = w->member_id,
                   .log_id = w->log_id,
                   .sequence = w->fill_sequence,
                   .oldest = w->oldest,
                   .prev_index = w->last_index,
                   .prev_term = w->last_term,
                   .hard = w->hard,
                   .capacity = w->capacity},
    };
}

/* Give a record its place in the log and in the batch, which has the memory for it. Returns where its payload goes;
 * checksums and base are left for the writer. */
static uint8_t *place(struct wal *w, uint8_t type, uint32_t length, uint32_t kept_free) {
    uint32_t total = (uint32_t)wal_total(length);
    if (w->fill + total > w->fill_capacity - kept_free) wal_claim_spare(w);
    struct wal_batch *batch = w->gather;
    uint8_t *at = batch->bytes + batch->used;
    memset(at, 0, WAL_RECORD_BYTES);
    memset(at + total - 8, 0, 8); /* the padding, and perhaps bytes that are about to be written over */
    wal_put32(at + AT_LENGTH, length);
    at[AT_TYPE] = type;
    batch->used += total;
    w->fill += total;
    return at + WAL_RECORD_BYTES;
}

/* Make room for `bytes` more in the batch. Returns 0 or ENOMEM. */
static int reserve(struct wal_batch *batch, uint64_t bytes) {
    if (batch->room - batch->used >= bytes) return 0;
    size_t wanted = batch->room ? batch->room : 1 << 16;
    while (wanted - batch->used < bytes) wanted *= 2;
    uint8_t *moved = realloc(batch->bytes, wanted);
    if (!moved) return ENOMEM;
    batch->bytes = moved;
    batch->room = wanted;
    return 0;
}

/* What is to be appended, as wal_append() was given it. */
struct offer {
    const struct wal_hard *hard;
    int cut;
    uint64_t prev_term;
    struct wal_entry *entries;
    uint32_t count;
};

/* How many bytes the offer takes and how many spares beyond the current segment. Returns 0 or EMSGSIZE. */
static int measure(const struct wal *w, const struct offer *offer, uint64_t *bytes, uint32_t *spares) {
    uint64_t fill = w->fill, limit = w->fill_capacity - WAL_RESERVE;
    *bytes = *spares = 0;
    for (int64_t i = -2; i < (int64_t)offer->count; i++) {
        if ((i == -2 && !offer->hard) || (i == -1 && !offer->cut)) continue;
        uint64_t total = wal_total(i == -2 ? 24 : i == -1 ? 16 : WAL_ENTRY_BYTES + (uint64_t)offer->entries[i].length);
        if (fill + total > limit) {
            fill = WAL_HEADER_BYTES;
            limit = w->capacity - WAL_RESERVE;
            if (fill + total > limit || ++*spares > WAL_SPARES_MAX) return EMSGSIZE;
        }
        fill += total;
        *bytes += total;
    }
    return 0;
}

static int check_offer(const struct wal *w, const struct offer *offer) {
    if (!offer->count) return 0;
    uint64_t index = offer->entries[0].index;
    uint64_t term = offer->cut ? offer->prev_term : w->last_term;
    if (index == 0 || index - 1 > w->last_index || term > w->last_term) return EINVAL;
    for (uint32_t i = 0; i < offer->count; i++) {
        if (offer->entries[i].index != index + i || offer->entries[i].term < term || !offer->entries[i].term)
            return EINVAL;
        term = offer->entries[i].term;
    }
    return 0;
}

/* Wait until the segment and the spares hold all of the offer and the batch has the memory, or say why not. */
static int make_room(struct wal *w, const struct offer *offer) {
    for (;;) {
        uint64_t bytes;
        uint32_t spares;
        if (w->failed) return w->failed;
        int error = measure(w, offer, &bytes, &spares);
        if (error) return error;
        if (spares <= wal_unclaimed(w)) {
            w->want = 1;
            return reserve(w->gather, bytes);
        }
        w->want = spares;
        if (w->no_space) w->retry = 1;
        pthread_cond_signal(&w->work);
        if (w->no_space) return w->no_space;
        pthread_cond_wait(&w->progress, &w->lock);
    }
}

static void accept_offer(struct wal *w, const struct offer *offer) {
    if (offer->hard) {
        uint8_t *to = place(w, WAL_HARD_STATE, 24, WAL_RESERVE);
        w->hard = *offer->hard;
        wal_put64(to, w->hard.term);
        wal_put64(to + 8, w->hard.vote);
        wal_put64(to + 16, w->hard.commit);
    }
    if (offer->cut) {
        uint8_t *to = place(w, WAL_CUT, 16, WAL_RESERVE);
        w->last_index = offer->entries[0].index - 1;
        w->last_term = offer->prev_term;
        wal_put64(to, w->last_index);
        wal_put64(to + 8, w->last_term);
    }
    for (uint32_t i = 0; i < offer->count; i++) {
        struct wal_entry *entry = &offer->entries[i];
        uint8_t *to = place(w, WAL_ENTRY, WAL_ENTRY_BYTES + entry->length, WAL_RESERVE);
        wal_put64(to, entry->term);
        wal_put64(to + 8, entry->index);
        to[16] = entry->kind;
        if (entry->length) memcpy(to + WAL_ENTRY_BYTES, entry->data, entry->length);
        entry->sequence = w->fill_sequence;
        entry->offset = w->fill - (uint32_t)wal_total(WAL_ENTRY_BYTES + entry->length);
        w->last_index = entry->index;
        w->last_term = entry->term;
    }
    w->gather->position = ++w->position;
    w->appends++;
}

int wal_append(struct wal *w, const struct wal_hard *hard, uint64_t prev_term, struct wal_entry *entries,
               uint32_t count, uint64_t *position) {
    pthread_mutex_lock(&w->lock);
    struct offer offer = {
        .hard = hard,
        .cut = count && entries[0].index <= w->last_index,
        .prev_term = prev_term,
        .entries = entries,
        .count = count,
    };
    int error = w->failed;
    if (!error) error = check_offer(w, &offer);
    if (!error && (hard || count)) error = make_room(w, &offer);
    if (!error && (hard || count)) {
        accept_offer(w, &offer);
        pthread_cond_signal(&w->work);
    }
    *position = w->position;
    pthread_mutex_unlock(&w->lock);
    return error;
}

int wal_release(struct wal *w, uint64_t sequence) {
    pthread_mutex_lock(&w->lock);
    int error = w->failed;
    uint64_t known = w->oldest_deferred ? w->oldest_deferred : w->oldest;
    if (sequence > w->fill_sequence) sequence = w->fill_sequence;
    if (!error && sequence > known) {
        if (w->fill + wal_total(8) > w->fill_capacity) {
            w->oldest_deferred = sequence; /* the next header will say it */
        } else if (!(error = reserve(w->gather, wal_total(8)))) {
            wal_put64(place(w, WAL_RELEASE, 8, 0), sequence);
            w->oldest = w->gather->oldest = sequence;
            w->oldest_deferred = 0;
            pthread_cond_signal(&w->work);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return error;
}
