#define _GNU_SOURCE
#include "wal_io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static wal_hook hook;

void wal_set_hook(wal_hook set) { hook = set; }

static int ask(int kind, const char *name, const char *to, uint64_t offset, uint64_t length, const void *data) {
    if (!hook) return 0;
    struct wal_op op = {.kind = kind, .name = name, .to = to, .offset = offset, .length = length, .data = data};
    return hook(&op);
}

int wal_io_open(int dir, const char *name, int create, struct wal_file *file) {
    int error, flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0);
    do {
        error = create ? ask(WAL_OP_CREATE, name, NULL, 0, 0, NULL) : 0;
        file->fd = error ? -1 : openat(dir, name, flags, 0600);
        if (!error && file->fd < 0) error = errno;
    } while (error == EINTR);
    if (!error) snprintf(file->name, sizeof file->name, "%s", name);
    return error;
}

int wal_io_allocate(const struct wal_file *file, uint64_t size) {
    int error;
    do {
        error = ask(WAL_OP_ALLOCATE, file->name, NULL, 0, size, NULL);
        if (!error && fallocate(file->fd, 0, 0, (off_t)size) != 0) error = errno;
    } while (error == EINTR);
    return error == EOPNOTSUPP || error == ENOSYS ? 0 : error;
}

int wal_io_write(const struct wal_file *file, const void *data, uint64_t length, uint64_t offset) {
    const uint8_t *at = data;
    while (length) {
        int answer = ask(WAL_OP_WRITE, file->name, NULL, offset, length, at);
        if (answer == EINTR) continue;
        if (answer > 0) return answer;
        uint64_t part = answer < 0 && (uint64_t)-answer < length ? (uint64_t)-answer : length;
        ssize_t written = pwrite(file->fd, at, part, (off_t)offset);
        if (written < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if (written == 0) return EIO; /* POSIX allows it and gives no reason: not to be tried for ever */
        at += written;
        offset += (uint64_t)written;
        length -= (uint64_t)written;
    }
    return 0;
}

int wal_io_sync(const struct wal_file *file) {
    int error;
    do {
        error = ask(WAL_OP_SYNC, file->name, NULL, 0, 0, NULL);
        if (!error && fdatasync(file->fd) != 0) error = errno;
    } while (error == EINTR);
    return error;
}

int wal_io_rename(int dir, const char *from, const char *to) {
    int error = ask(WAL_OP_RENAME, from, to, 0, 0, NULL);
    if (!error && renameat(dir, from, dir, to) != 0) error = errno;
    return error;
}

int wal_io_remove(int dir, const char *name) {
    int error = ask(WAL_OP_REMOVE, name, NULL, 0, 0, NULL);
    if (!error && unlinkat(dir, name, 0) != 0) error = errno;
    return error;
}

int wal_io_sync_dir(int dir) {
    int error;
    do {
        error = ask(WAL_OP_SYNC_DIR, ".", NULL, 0, 0, NULL);
        if (!error && fsync(dir) != 0) error = errno;
    } while (error == EINTR);
    return error;
}

void wal_io_close(struct wal_file *file) {
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
}
