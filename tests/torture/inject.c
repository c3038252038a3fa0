/* A failing disk and a killed process, by count: loaded into a process with LD_PRELOAD, this counts every call of libc
 * that may change a file or a folder under a chosen one, and at the N-th kills the process or returns an error.
 *
 * Armed by inject_arm() (in a process that was forked from one that has this loaded already), or from the start by the
 * environment variable INJECT="MODE AT ERRNO FOLDER". Counts and names are kept in memory that is shared with the parent.
 */
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
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode {
    OFF,
    COUNT,    /* only count */
    KILL,     /* SIGKILL in place of the N-th call */
    TEAR,     /* the same, but a write has first written half of what it should */
    FAIL,     /* the N-th call fails, and every later one */
    FAIL_ONCE,
    SHORT,    /* every write writes about half of what it should, and says so */
    NO_RENAMEAT2 /* as on a system without that call */
};

struct shared {
    atomic_long count;
    char name[32];        /* of the N-th call */
    atomic_long traced;   /* bytes of the trace */
    char trace[1 << 16];  /* a line for each call: its name and what it was made on; more than fits is left out */
};

static enum mode mode = OFF;
static long at;
static int error_number;
static char folder[PATH_MAX];
static size_t folder_length;
static struct shared *shared;

static void share(void) {
    if (!shared)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* To be called before the fork: afterwards the parent sees what the child counts. */
void inject_reset(void) {
    share();
    atomic_store(&shared->count, 0);
    memset(shared->name, 0, sizeof shared->name);
    atomic_store(&shared->traced, 0);
    memset(shared->trace, 0, sizeof shared->trace);
}

void inject_arm(int new_mode, long new_at, int new_error, const char *path) {
    share();
    at = new_at;
    error_number = new_error;
    strncpy(folder, path, sizeof folder - 1);
    folder_length = strlen(folder);
    mode = (enum mode)new_mode;
}

long inject_count(void) { return atomic_load(&shared->count); }

const char *inject_name(void) { return shared->name; }

const char *inject_trace(void) { return shared->trace; }

__attribute__((constructor)) static void from_environment(void) {
    const char *text = getenv("INJECT");
    int new_mode, new_error, used = 0;
    long new_at;
    share();
    if (text && sscanf(text, "%d %ld %d %n", &new_mode, &new_at, &new_error, &used) >= 3 && used)
        inject_arm(new_mode, new_at, new_error, text + used);
}

static _Thread_local char seen[2 * PATH_MAX]; /* the path that was looked at last */

static int inside(const char *path) {
    strncpy(seen, path, sizeof seen - 1);
    return strncmp(path, folder, folder_length) == 0 && (path[folder_length] == '/' || !path[folder_length]);
}

static int fd_inside(int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return inside(path);
}

static int path_inside(int where, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX], link[64];
    if (!path)
        return 0;
    if (path[0] == '/')
        return inside(path);
    if (where == AT_FDCWD) {
        if (!getcwd(base, sizeof base))
            return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", where);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0)
            return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return inside(whole);
}

static void kill_now(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* What becomes of a call: 0 it is made, 1 it fails with errno set, 2 it is a write to be torn. */
static int verdict(const char *name, int writes, int frees) {
    long number = atomic_fetch_add(&shared->count, 1);
    char line[2 * PATH_MAX + 64];
    long length = snprintf(line, sizeof line, "%s %s\n", name, seen), start = atomic_fetch_add(&shared->traced, length);
    if (start + length < (long)sizeof shared->trace)
        memcpy(shared->trace + start, line, (size_t)length);
    if (mode == COUNT || mode == SHORT || mode == NO_RENAMEAT2 || number < at)
        return 0;
    if (number == at)
        strncpy(shared->name, name, sizeof shared->name - 1);
    if (mode == TEAR && writes)
        return 2;
    if (mode == KILL || mode == TEAR)
        kill_now();
    if (mode == FAIL_ONCE && number > at)
        return 0;
    if (frees && error_number == ENOSPC)
        return 0; /* a full disk lets go of things */
    errno = error_number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A call that changes names: it fails or is made. */
#define GUARD(condition, name, frees)                                                                                  \
    if (mode != OFF && (condition) && verdict(name, 0, frees))                                                         \
    return -1

/* A call that writes `count` bytes: it fails, is torn, is short, or is made. */
#define GUARDED_WRITE(symbol, descriptor, count, torn, whole)                                                          \
    do {                                                                                                               \
        if (mode != OFF && fd_inside(descriptor)) {                                                                    \
            int what = verdict(#symbol, 1, 0);                                                                         \
            if (what == 1)                                                                                             \
                return -1;                                                                                             \
            size_t half = (count) > 1 ? (count) / 2 : (count);                                                         \
            if (what == 2) {                                                                                           \
                (void)!(torn);                                                                                         \
                kill_now();                                                                                            \
            }                                                                                                          \
            if (mode == SHORT)                                                                                         \
                return (torn);                                                                                         \
        }                                                                                                              \
        return (whole);                                                                                                \
    } while (0)

ssize_t write(int fd, const void *buffer, size_t count) {
    GUARDED_WRITE(write, fd, count, REAL(write)(fd, buffer, half), REAL(write)(fd, buffer, count));
}

ssize_t pwrite(int fd, const void *buffer, size_t count, off_t place) {
    GUARDED_WRITE(pwrite, fd, count, REAL(pwrite)(fd, buffer, half, place), REAL(pwrite)(fd, buffer, count, place));
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t place) {
    GUARDED_WRITE(pwrite64, fd, count, REAL(pwrite64)(fd, buffer, half, place),
                  REAL(pwrite64)(fd, buffer, count, place));
}

ssize_t sendfile(int out, int in, off_t *place, size_t count) {
    GUARDED_WRITE(sendfile, out, count, REAL(sendfile)(out, in, place, half), REAL(sendfile)(out, in, place, count));
}

ssize_t sendfile64(int out, int in, off64_t *place, size_t count) {
    GUARDED_WRITE(sendfile64, out, count, REAL(sendfile64)(out, in, place, half),
                  REAL(sendfile64)(out, in, place, count));
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    GUARDED_WRITE(copy_file_range, out, count, REAL(copy_file_range)(in, from, out, to, half, flags),
                  REAL(copy_file_range)(in, from, out, to, count, flags));
}

#define FD_CALL(type, symbol, arguments, forwarded)                                                                    \
    type symbol arguments {                                                                                            \
        GUARD(fd_inside(fd), #symbol, 0);                                                                              \
        return REAL(symbol) forwarded;                                                                                 \
    }

FD_CALL(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FD_CALL(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t place), (fd, parts, count, place))
FD_CALL(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t place), (fd, parts, count, place))
FD_CALL(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t place, int flags),
        (fd, parts, count, place, flags))
FD_CALL(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t place, int flags),
        (fd, parts, count, place, flags))
FD_CALL(int, ftruncate, (int fd, off_t length), (fd, length))
FD_CALL(int, ftruncate64, (int fd, off64_t length), (fd, length))
FD_CALL(int, fallocate, (int fd, int how, off_t place, off_t length), (fd, how, place, length))
FD_CALL(int, fallocate64, (int fd, int how, off64_t place, off64_t length), (fd, how, place, length))
FD_CALL(int, fsync, (int fd), (fd))
FD_CALL(int, fdatasync, (int fd), (fd))
FD_CALL(int, fchmod, (int fd, mode_t bits), (fd, bits))

#define PATH_CALL(type, symbol, arguments, forwarded, where, path, frees)                                              \
    type symbol arguments {                                                                                            \
        GUARD(path_inside(where, path), #symbol, frees);                                                               \
        return REAL(symbol) forwarded;                                                                                 \
    }

PATH_CALL(int, truncate, (const char *path, off_t length), (path, length), AT_FDCWD, path, 0)
PATH_CALL(int, mkdir, (const char *path, mode_t bits), (path, bits), AT_FDCWD, path, 0)
PATH_CALL(int, mkdirat, (int where, const char *path, mode_t bits), (where, path, bits), where, path, 0)
PATH_CALL(int, rmdir, (const char *path), (path), AT_FDCWD, path, 1)
PATH_CALL(int, unlink, (const char *path), (path), AT_FDCWD, path, 1)
PATH_CALL(int, unlinkat, (int where, const char *path, int flags), (where, path, flags), where, path, 1)
PATH_CALL(int, symlink, (const char *target, const char *path), (target, path), AT_FDCWD, path, 0)
PATH_CALL(int, link, (const char *old, const char *path), (old, path), AT_FDCWD, path, 0)
PATH_CALL(int, linkat, (int from, const char *old, int where, const char *path, int flags),
          (from, old, where, path, flags), where, path, 0)
PATH_CALL(int, rename, (const char *old, const char *path), (old, path), AT_FDCWD, path, 0)
PATH_CALL(int, renameat, (int from, const char *old, int where, const char *path), (from, old, where, path), where,
          path, 0)
PATH_CALL(int, chmod, (const char *path, mode_t bits), (path, bits), AT_FDCWD, path, 0)
PATH_CALL(int, utimensat, (int where, const char *path, const struct timespec times[2], int flags),
          (where, path, times, flags), where, path, 0)

int renameat2(int from, const char *old, int where, const char *path, unsigned flags) {
    if (mode == NO_RENAMEAT2) {
        errno = ENOSYS;
        return -1;
    }
    GUARD(path_inside(where, path), "renameat2", 0);
    return REAL(renameat2)(from, old, where, path, flags);
}

long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_renameat2)
        return renameat2((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], (unsigned)a[4]);
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#define OPEN_CALL(symbol, arguments, forwarded, where, path)                                                           \
    int symbol arguments {                                                                                             \
        mode_t bits = 0;                                                                                               \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                                         \
            va_list list;                                                                                              \
            va_start(list, flags);                                                                                     \
            bits = va_arg(list, mode_t);                                                                               \
            va_end(list);                                                                                              \
        }                                                                                                              \
        GUARD((flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) && path_inside(where, path), #symbol, 0);              \
        return REAL(symbol) forwarded;                                                                                 \
    }

OPEN_CALL(open, (const char *path, int flags, ...), (path, flags, bits), AT_FDCWD, path)
OPEN_CALL(open64, (const char *path, int flags, ...), (path, flags, bits), AT_FDCWD, path)
OPEN_CALL(openat, (int where, const char *path, int flags, ...), (where, path, flags, bits), where, path)
OPEN_CALL(openat64, (int where, const char *path, int flags, ...), (where, path, flags, bits), where, path)

int creat(const char *path, mode_t bits) {
    GUARD(path_inside(AT_FDCWD, path), "creat", 0);
    return REAL(creat)(path, bits);
}
