/* A kernel that refuses: chosen calls of the program that this library is preloaded into fail once the file $FAULTS_ARMED is there. Also a
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

static int is_armed(void) {
    const char *path = getenv("FAULTS_ARMED");
    return path && access(path, F_OK) == 0;
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

/* Closes `fd`, which `call` is about to use, once for each time that somebody makes the file "$FAULTS_CLOSE.call". The number stays taken,
   for a descriptor that no call can use (EBADF): otherwise the next file that is opened would get it. */
static void close_if_asked(const char *call, int fd) {
    const char *prefix = getenv("FAULTS_CLOSE");
    char path[4096];
    if (!prefix || snprintf(path, sizeof path, "%s.%s", prefix, call) >= (int)sizeof path || unlink(path) != 0)
        return;
    int nothing = open("/", O_PATH | O_CLOEXEC);
    dup3(nothing, fd, O_CLOEXEC);
    close(nothing);
}

/* By how many the number of messages sent is too high: by one, once for each time that somebody makes the file "$FAULTS_LIE.THREAD" for the
   thread of that name. */
static int lies(void) {
    const char *prefix = getenv("FAULTS_LIE");
    char thread[16], path[4096];
    if (!prefix || prctl(PR_GET_NAME, thread) != 0 || snprintf(path, sizeof path, "%s.%s", prefix, thread) >= (int)sizeof path)
        return 0;
    return unlink(path) == 0;
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
    close_if_asked("recvmmsg", fd);
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
    close_if_asked("sendmmsg", fd);
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
            int log = open(getenv("FAULTS_REFUSALS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
            if (log >= 0) {
                if (write(log, "x", 1) < 0) { }
                close(log);
            }
            errno = EINVAL;
            return -1;
        }
    }
    struct stat file;
    if (fstat(fd, &file) == 0 && S_ISCHR(file.st_mode) && file.st_rdev == makedev(10, 200))
        close_if_asked("writev", fd);
    return real(fd, vectors, count);
}

/* $FAULTS_CLOCK is a file of two numbers of 8 bytes: for how many nanoseconds the monotonic clock has stood still, as it does while a machine
   sleeps, and by how many seconds the wall clock is ahead. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    static volatile int64_t *clocks;
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("FAULTS_CLOCK");
    if (!clocks && path) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        void *shared = mmap(NULL, 2 * sizeof *clocks, PROT_READ, MAP_SHARED, file, 0);
        if (shared == MAP_FAILED)
            abort();
        clocks = shared;
        close(file);
    }
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_MONOTONIC && clocks) {
        int64_t now_ns = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec - clocks[0];
        time->tv_sec = now_ns / 1000000000;
        time->tv_nsec = now_ns % 1000000000;
    }
    if (result == 0 && clock == CLOCK_REALTIME && clocks)
        time->tv_sec += clocks[1];
    return result;
}
