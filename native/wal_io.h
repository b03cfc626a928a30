/* Every change the log makes to the disk, one function each, so that a test can see, fail or cut short any of them.
 *
 * All return 0 or an errno. EINTR is tried again, a short write is carried on. Nothing else is ever repeated. */
#ifndef KVORUM_WAL_IO_H
#define KVORUM_WAL_IO_H

#include "wal.h"

enum { WAL_NAME_BYTES = 32 };

struct wal_file {
    int fd;                       /* -1: none */
    char name[WAL_NAME_BYTES];    /* inside the log's directory */
};

/* Make a new file (`create`), which must not exist, or open one that does. */
int wal_io_open(int dir, const char *name, int create, struct wal_file *file);

/* Give the file `size` bytes that are its own. ENOSPC and EDQUOT leave a file to be removed. Where the file system has
 * no such call it does nothing, and the writing of zeros that follows does it instead. */
int wal_io_allocate(const struct wal_file *file, uint64_t size);

int wal_io_write(const struct wal_file *file, const void *data, uint64_t length, uint64_t offset);
int wal_io_sync(const struct wal_file *file);
int wal_io_rename(int dir, const char *from, const char *to);
int wal_io_remove(int dir, const char *name);
int wal_io_sync_dir(int dir);

/* Closes without looking at the result: what matters has been synced. */
void wal_io_close(struct wal_file *file);

#endif
