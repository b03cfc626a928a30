/* A disk that does as a test says: LD_PRELOAD it into a process, and write into the file that TEST_DISK names
 *
 *   block PART       syncs of files whose path contains PART don't return while the file says so
 *   fail PART N      the N-th sync of such a file from the start of the process on fails with EIO, once: who tries
 *                    again is told that all is well, as by a kernel that has marked the lost pages clean
 *
 * No such file, or an empty one: an ordinary disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long syncs;

/* What the test says about the file: its action and, for fail, N. */
static int asked(int fd, char *action, long *nth) {
    char text[512] = {0}, link[64], path[4096] = {0}, part[256];
    const char *name = getenv("TEST_DISK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    *nth = 0;
    if (size <= 0 || sscanf(text, "%15s %255s %ld", action, part, nth) < 2) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0) return 0;
    return strstr(path, part) != NULL;
}

static int synced(int fd, const char *name) {
    char action[16];
    long nth;
    while (asked(fd, action, &nth) && strcmp(action, "block") == 0) usleep(5000);
    if (asked(fd, action, &nth) && strcmp(action, "fail") == 0) {
        pthread_mutex_lock(&lock);
        long count = ++syncs;
        pthread_mutex_unlock(&lock);
        if (count == nth) {
            errno = EIO;
            return -1;
        }
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }
