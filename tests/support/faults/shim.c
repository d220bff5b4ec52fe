/*
 * Faults of the operating system, for the files whose path begins with FAULTS_PATH.
 *
 * Loaded by LD_PRELOAD. FAULTS_CONTROL names a file of struct control, which a test maps and
 * changes while the process runs. FAULTS_LOG names a file that every change of the watched files
 * is appended to, so that a test can tell what a power failure would leave of them; nothing is
 * really flushed then. Layouts are those of shim.py and disk.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum call { WRITE, FSYNC, OPEN, TRUNCATE, UNLINK, READ, THREAD, CALLS };
enum outcome { FAIL, SHORT, KILL };
enum change { WROTE = 1, TRUNCATED, SYNCING, SYNCED, NOT_SYNCED, UNLINKED, CREATED, NOTED };

struct control {
    int64_t clock_ns;      /* added to the wall clock */
    int64_t call;          /* the call that fails, */
    int64_t nth;           /* at which count of it; 0: none fails */
    int64_t times;         /* and how often in a row; -1: from then on */
    int64_t outcome;       /* an error, a write of half the bytes, or SIGKILL */
    int64_t error;         /* the errno of a failure */
    int64_t counts[CALLS]; /* calls so far */
};

struct record {
    int64_t change, offset, length, name_length, process, descriptor;
};

#define DESCRIPTORS 65536
static char *names[DESCRIPTORS];
static struct control *control;
static const char *watched;
static int log_file = -1;
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static int ready;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

__attribute__((constructor)) static void begin(void) {
    watched = getenv("FAULTS_PATH");
    const char *path = getenv("FAULTS_CONTROL");
    if (path) {
        int descriptor = real_open(path, O_RDWR | O_CLOEXEC, 0);
        void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (at != MAP_FAILED) control = at;
    }
    path = getenv("FAULTS_LOG");
    if (path) {
        int low = real_open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        log_file = fcntl(low, F_DUPFD_CLOEXEC, 900); /* out of the way of tests that count */
        if (log_file < 0) log_file = low;
    }
    ready = 1;
}

/* The watched files, and their folder, as a flush of it keeps their names. */
static int is_watched(const char *path) {
    if (!ready || !watched || !path) return 0;
    if (strncmp(path, watched, strlen(watched)) == 0) return 1;
    size_t folder = (size_t)(strrchr(watched, '/') - watched);
    return strlen(path) == folder && strncmp(path, watched, folder) == 0;
}

static const char *name_of(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? names[descriptor] : NULL;
}

static int ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

/* Whether this call is the one to fail; dies in it where that is wanted. */
static int fails(enum call call) {
    if (!control) return 0;
    int64_t count = __atomic_add_fetch(&control->counts[call], 1, __ATOMIC_SEQ_CST);
    int64_t nth = __atomic_load_n(&control->nth, __ATOMIC_SEQ_CST);
    if (nth == 0 || control->call != call || count < nth) return 0;
    if (control->times >= 0 && count >= nth + control->times) return 0;
    if (control->outcome == KILL) kill(getpid(), SIGKILL);
    errno = (int)control->error;
    return 1;
}

static void note(enum change change, const char *name, int descriptor, int64_t offset,
                 int64_t length, const void *data) {
    if (log_file < 0 || ends_with(name, "-shm")) return;
    int before = errno;
    struct record record = {change, offset, length, (int64_t)strlen(name), getpid(), descriptor};
    struct iovec parts[3] = {
        {&record, sizeof record}, {(void *)name, strlen(name)}, {(void *)data, data ? length : 0}};
    pthread_mutex_lock(&log_lock);
    ssize_t written = writev(log_file, parts, 3);
    pthread_mutex_unlock(&log_lock);
    if (written < 0) abort();
    errno = before;
}

/* --- descriptors ----------------------------------------------------------------------------- */

static int watch_open(const char *path, int flags, mode_t mode) {
    if (!is_watched(path)) return real_open(path, flags, mode);
    if (fails(OPEN)) return -1;
    int there = access(path, F_OK) == 0;
    int descriptor = real_open(path, flags, mode);
    if (descriptor >= 0 && descriptor < DESCRIPTORS) {
        free(names[descriptor]);
        names[descriptor] = strdup(path);
        if (!there) note(CREATED, path, descriptor, 0, 0, NULL);
        else if (flags & O_TRUNC) note(TRUNCATED, path, descriptor, 0, 0, NULL);
    }
    return descriptor;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return watch_open(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

int close(int descriptor) {
    REAL(close);
    if (name_of(descriptor)) {
        free(names[descriptor]);
        names[descriptor] = NULL;
    }
    return real(descriptor);
}

int unlink(const char *path) {
    REAL(unlink);
    if (!is_watched(path)) return real(path);
    if (fails(UNLINK)) return -1;
    int outcome = real(path);
    if (outcome == 0) note(UNLINKED, path, -1, 0, 0, NULL);
    return outcome;
}

/* --- reading and writing --------------------------------------------------------------------- */

/* How many of the bytes are to be written; -1: none, with errno set. */
static ssize_t allowed(size_t length) {
    if (!fails(WRITE)) return (ssize_t)length;
    if (control->outcome == SHORT) return (ssize_t)(length + 1) / 2;
    return -1;
}

ssize_t write(int descriptor, const void *data, size_t length) {
    REAL(write);
    const char *name = name_of(descriptor);
    if (!name) return real(descriptor, data, length);
    if (ends_with(name, ".notes")) {
        note(NOTED, name, descriptor, 0, (int64_t)length, data);
        return real(descriptor, data, length);
    }
    ssize_t most = allowed(length);
    if (most < 0) return -1;
    off_t at = lseek(descriptor, 0, SEEK_CUR);
    ssize_t written = real(descriptor, data, (size_t)most);
    if (written > 0) note(WROTE, name, descriptor, at, written, data);
    return written;
}

#define PWRITES(name_, offset_type) \
    ssize_t name_(int descriptor, const void *data, size_t length, offset_type at) { \
        static ssize_t (*real)(int, const void *, size_t, off64_t); \
        if (!real) real = (ssize_t (*)(int, const void *, size_t, off64_t)) \
            dlsym(RTLD_NEXT, "pwrite64"); \
        const char *name = name_of(descriptor); \
        if (!name) return real(descriptor, data, length, at); \
        ssize_t most = allowed(length); \
        if (most < 0) return -1; \
        ssize_t written = real(descriptor, data, (size_t)most, at); \
        if (written > 0) note(WROTE, name, descriptor, at, written, data); \
        return written; \
    }
PWRITES(pwrite, off_t)
PWRITES(pwrite64, off64_t)

#define PREADS(name_, offset_type) \
    ssize_t name_(int descriptor, void *data, size_t length, offset_type at) { \
        static ssize_t (*real)(int, void *, size_t, off64_t); \
        if (!real) real = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64"); \
        if (name_of(descriptor) && fails(READ)) return -1; \
        return real(descriptor, data, length, at); \
    }
PREADS(pread, off_t)
PREADS(pread64, off64_t)

#define TRUNCATES(name_, offset_type) \
    int name_(int descriptor, offset_type length) { \
        static int (*real)(int, off64_t); \
        if (!real) real = (int (*)(int, off64_t))dlsym(RTLD_NEXT, "ftruncate64"); \
        const char *name = name_of(descriptor); \
        if (!name) return real(descriptor, length); \
        if (fails(TRUNCATE)) return -1; \
        int outcome = real(descriptor, length); \
        if (outcome == 0) note(TRUNCATED, name, descriptor, length, 0, NULL); \
        return outcome; \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define SYNCS(name_) \
    int name_(int descriptor) { \
        REAL(name_); \
        const char *name = name_of(descriptor); \
        if (!name) return real(descriptor); \
        note(SYNCING, name, descriptor, 0, 0, NULL); \
        int outcome = fails(FSYNC) ? -1 : log_file >= 0 ? 0 : real(descriptor); \
        note(outcome == 0 ? SYNCED : NOT_SYNCED, name, descriptor, 0, 0, NULL); \
        return outcome; \
    }
SYNCS(fsync)
SYNCS(fdatasync)

/* --- clocks and threads ---------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int outcome = real(clock, now);
    if (outcome == 0 && clock == CLOCK_REALTIME && control) {
        int64_t sum = now->tv_sec * 1000000000LL + now->tv_nsec + control->clock_ns;
        now->tv_sec = sum / 1000000000LL;
        now->tv_nsec = sum % 1000000000LL;
    }
    return outcome;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    int outcome = clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return outcome;
}

time_t time(time_t *at) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (at) *at = fine.tv_sec;
    return fine.tv_sec;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*work)(void *), void *with) {
    REAL(pthread_create);
    if (ready && fails(THREAD)) return errno;
    return real(thread, how, work, with);
}
