/* Counts the locks that the program takes which this library is preloaded into: those of the C library, wanted by others or not, and the system
   calls in which locks of Rust wait or wake somebody. $LOCKS_COUNTS is a file of three numbers of 8 bytes, in this order. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic uint64_t nowhere[3];
static _Atomic uint64_t *counts = nowhere;
static int (*real_mutex)(pthread_mutex_t *);
static int (*real_read)(pthread_rwlock_t *);
static int (*real_write)(pthread_rwlock_t *);
static long (*real_syscall)(long, ...);

static void find(void) {
    real_mutex = dlsym(RTLD_NEXT, "pthread_mutex_lock");
    real_read = dlsym(RTLD_NEXT, "pthread_rwlock_rdlock");
    real_write = dlsym(RTLD_NEXT, "pthread_rwlock_wrlock");
    real_syscall = dlsym(RTLD_NEXT, "syscall");
}

__attribute__((constructor)) static void begin(void) {
    find();
    const char *path = getenv("LOCKS_COUNTS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *shared = mmap(NULL, sizeof nowhere, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED)
        abort();
    counts = shared;
    close(file);
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
    if (!real_mutex)
        find();
    atomic_fetch_add(&counts[0], 1);
    return real_mutex(mutex);
}

int pthread_rwlock_rdlock(pthread_rwlock_t *lock) {
    if (!real_read)
        find();
    atomic_fetch_add(&counts[1], 1);
    return real_read(lock);
}

int pthread_rwlock_wrlock(pthread_rwlock_t *lock) {
    if (!real_write)
        find();
    atomic_fetch_add(&counts[1], 1);
    return real_write(lock);
}

long syscall(long number, ...) {
    if (!real_syscall)
        find();
    va_list list;
    va_start(list, number);
    long arguments[6];
    for (int index = 0; index < 6; index++)
        arguments[index] = va_arg(list, long);
    va_end(list);
    if (number == SYS_futex)
        atomic_fetch_add(&counts[2], 1);
    return real_syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}
