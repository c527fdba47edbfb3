/* A kernel that refuses: chosen calls of the program that this library is preloaded into fail once they are armed. Also a
   program that closes what it still uses, a clock that stood still, and a kernel that says what cannot be. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Shards that a test may have. */
#define SHARDS 64

/* What the test tells and hears, in the file $FAULTS_STATE. It is mapped before the program gives up its right to open files. */
static struct {
    /* For how many nanoseconds the monotonic clock has stood still, as it does while a machine sleeps. */
    volatile int64_t still_ns;
    /* By how many seconds the wall clock is ahead. */
    volatile int64_t ahead_s;
    volatile uint64_t is_armed;
    /* How many merged frames were refused. */
    atomic_ullong refusals;
    /* Whose next descriptor is to be closed: recvmmsg, sendmmsg, writev. */
    atomic_ullong closes[3];
    /* Whose next sendmmsg is to lie: by the number in the thread's name. */
    atomic_ullong lies[SHARDS];
} *state;

enum call { RECVMMSG, SENDMMSG, WRITEV };

__attribute__((constructor)) static void map_state(void) {
    const char *path = getenv("FAULTS_STATE");
    if (state || !path)
        return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        abort();
    state = shared;
    close(file);
}

static int is_armed(void) {
    return state && state->is_armed;
}

/* Whether `wish` was set, once. */
static int take(atomic_ullong *wish) {
    return atomic_exchange(wish, 0) != 0;
}

/* The next error number of a list in the environment, as in "12,105"; 0 behind its end. */
static int next_error(const char *variable, atomic_int *taken) {
    const char *list = getenv(variable);
    if (!list || !is_armed())
        return 0;
    int wanted = atomic_load(taken);
    for (int index = 0; index < wanted; index++) {
        list = strchr(list, ',');
        if (!list)
            return 0;
        list++;
    }
    int error = atoi(list);
    if (error)
        atomic_fetch_add(taken, 1);
    return error;
}

/* Closes `fd`, which `call` is about to use, where that is wished. The number stays taken, for a descriptor that no call can use (EBADF): otherwise
   the next file that is opened would get it. */
static void close_if_asked(enum call call, int fd) {
    if (!state || !take(&state->closes[call]))
        return;
    int nothing = open("/", O_PATH | O_CLOEXEC);
    dup3(nothing, fd, O_CLOEXEC);
    close(nothing);
}

/* By how many the number of messages sent is too high: by one, where that is wished of the thread "tollgate-NUMBER". */
static int lies(void) {
    char thread[16];
    unsigned shard;
    if (!state || prctl(PR_GET_NAME, thread) != 0 || sscanf(thread, "tollgate-%u", &shard) != 1 || shard >= SHARDS)
        return 0;
    return take(&state->lies[shard]);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout) {
    static atomic_int taken;
    static int (*real)(int, struct mmsghdr *, unsigned int, int, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "recvmmsg");
    int error = next_error("FAULTS_RECEIVE", &taken);
    if (error) {
        errno = error;
        return -1;
    }
    close_if_asked(RECVMMSG, fd);
    return real(fd, messages, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
    static atomic_int taken;
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "sendmmsg");
    int error = next_error("FAULTS_SEND", &taken);
    if (error) {
        errno = error;
        return -1;
    }
    close_if_asked(SENDMMSG, fd);
    int sent = real(fd, messages, count, flags);
    /* Whoever asks for a lie must not hide what the kernel refused. */
    return sent < 0 ? sent : sent + lies();
}

/* A TUN frame begins with a virtio header of 10 bytes: the second is the kind of super-packet, bytes 2 and 4 tell the headers' length and
   the segments'. */
ssize_t writev(int fd, const struct iovec *vectors, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "writev");
    const char *refused = getenv("FAULTS_MERGED");
    if (refused && count > 1 && vectors[0].iov_len >= 10 && is_armed()) {
        const unsigned char *header = vectors[0].iov_base;
        size_t bytes = 0;
        for (int index = 0; index < count; index++)
            bytes += vectors[index].iov_len;
        unsigned short header_bytes, segment_bytes;
        memcpy(&header_bytes, header + 2, 2);
        memcpy(&segment_bytes, header + 4, 2);
        int is_merged = header[1] != 0 && segment_bytes != 0;
        int is_short = is_merged && (bytes - 10 - header_bytes) % segment_bytes != 0;
        if (is_merged && (is_short || strcmp(refused, "all") == 0)) {
            atomic_fetch_add(&state->refusals, 1);
            errno = EINVAL;
            return -1;
        }
    }
    struct stat file;
    if (fstat(fd, &file) == 0 && S_ISCHR(file.st_mode) && file.st_rdev == makedev(10, 200))
        close_if_asked(WRITEV, fd);
    return real(fd, vectors, count);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_MONOTONIC && state) {
        int64_t now_ns = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec - state->still_ns;
        time->tv_sec = now_ns / 1000000000;
        time->tv_nsec = now_ns % 1000000000;
    }
    if (result == 0 && clock == CLOCK_REALTIME && state)
        time->tv_sec += state->ahead_s;
    return result;
}
