// Counts what a process does to the files below one folder, and fails or kills it at the n-th operation.
// For LD_PRELOAD; scripts/fault_processes.py builds it and arms it through fault_arm. Linux, any libc with dlsym.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL_AFTER, KILL_TORN, FULL };  // FULL: from the n-th on, every operation that needs space

static char folder[PATH_MAX];
static int mode, armed;
static long nth;
static atomic_long done;
static long clock_back_s;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void fault_arm(const char *path, int how, long n) {
    snprintf(folder, sizeof folder, "%s", path);
    mode = how, nth = n, atomic_store(&done, 0), armed = 1;
}
long fault_count(void) { return atomic_load(&done); }
void fault_clock(long seconds_back) { clock_back_s = seconds_back; }

static int below(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int watched_fd(int fd) {
    if (!armed) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static int watched(int at, const char *path) {
    if (!armed || path == NULL) return 0;
    if (path[0] == '/') return below(path);
    if (at != AT_FDCWD) return watched_fd(at);
    char whole[PATH_MAX * 2], here[PATH_MAX];
    if (getcwd(here, sizeof here) == NULL) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return below(whole);
}

// The number of an operation, or 0 where it is none of ours.
static long number(int ours) { return ours ? atomic_fetch_add(&done, 1) + 1 : 0; }
static int is_full(long n) { return n && mode == FULL && n >= nth; }
static void after(long n) {
    if (n && n == nth && (mode == KILL_AFTER || mode == KILL_TORN)) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

#define WRITER(signature, call, half, ours)                       \
    ssize_t signature {                                           \
        long n = number(ours);                                    \
        if (is_full(n)) { errno = ENOSPC; return -1; }            \
        ssize_t result = n && n == nth && mode == KILL_TORN ? half : call; \
        after(n);                                                 \
        return result;                                            \
    }
WRITER(write(int fd, const void *data, size_t size), REAL(write)(fd, data, size), REAL(write)(fd, data, size / 2),
       watched_fd(fd))
WRITER(pwrite64(int fd, const void *data, size_t size, off64_t at), REAL(pwrite64)(fd, data, size, at),
       REAL(pwrite64)(fd, data, size / 2, at), watched_fd(fd))
WRITER(writev(int fd, const struct iovec *parts, int count), REAL(writev)(fd, parts, count),
       REAL(writev)(fd, parts, count / 2), watched_fd(fd))
WRITER(sendfile64(int to, int from, off64_t *at, size_t size), REAL(sendfile64)(to, from, at, size),
       REAL(sendfile64)(to, from, at, size / 2), watched_fd(to))

#define CHANGE(signature, call, ours, needs_space)                        \
    int signature {                                                       \
        long n = number(ours);                                            \
        if (needs_space && is_full(n)) { errno = ENOSPC; return -1; }     \
        int result = call;                                                \
        after(n);                                                         \
        return result;                                                    \
    }
CHANGE(ftruncate64(int fd, off64_t size), REAL(ftruncate64)(fd, size), watched_fd(fd), 1)
CHANGE(fsync(int fd), REAL(fsync)(fd), watched_fd(fd), 0)
CHANGE(mkdir(const char *path, mode_t rights), REAL(mkdir)(path, rights), watched(AT_FDCWD, path), 1)
CHANGE(rmdir(const char *path), REAL(rmdir)(path), watched(AT_FDCWD, path), 0)
CHANGE(unlink(const char *path), REAL(unlink)(path), watched(AT_FDCWD, path), 0)
CHANGE(unlinkat(int at, const char *path, int flags), REAL(unlinkat)(at, path, flags), watched(at, path), 0)
CHANGE(rename(const char *from, const char *to), REAL(rename)(from, to), watched(AT_FDCWD, to), 0)

#define OPENER(name, parameters, at, ...)                                            \
    int name parameters {                                                            \
        mode_t rights = 0;                                                           \
        if (flags & (O_CREAT | O_TMPFILE)) {                                         \
            va_list more; va_start(more, flags); rights = va_arg(more, mode_t); va_end(more); \
        }                                                                            \
        long n = number((flags & (O_WRONLY | O_RDWR)) && watched(at, path));         \
        if ((flags & O_CREAT) && is_full(n) && access(path, F_OK)) { errno = ENOSPC; return -1; } \
        int fd = REAL(name)(__VA_ARGS__, flags, rights);                             \
        after(n);                                                                    \
        return fd;                                                                   \
    }
OPENER(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPENER(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPENER(openat, (int at, const char *path, int flags, ...), at, at, path)
OPENER(openat64, (int at, const char *path, int flags, ...), at, at, path)

int statvfs64(const char *path, struct statvfs64 *found) {
    int result = REAL(statvfs64)(path, found);
    if (armed && mode == FULL && atomic_load(&done) >= nth && watched(AT_FDCWD, path)) found->f_bavail = 0;
    return result;
}

int statvfs(const char *path, struct statvfs *found) { return statvfs64(path, (struct statvfs64 *)found); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && result == 0) now->tv_sec -= clock_back_s;
    return result;
}
