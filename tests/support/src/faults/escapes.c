/* A fault that strangers can reach, and its use: the first thread of a shard that receives, once the file $ESCAPES_ARMED is there, tries what somebody
   would who has taken the program over. $ESCAPES_REPORT, which is opened before the program begins, gets a line for each: its name, and the error number,
   or "done". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int report = -1;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ESCAPES_REPORT");
    report = path ? open(path, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
}

static void tell(const char *name, long result) {
    char line[128];
    int error = errno;
    int bytes = result < 0 ? snprintf(line, sizeof line, "%s %d\n", name, error) : snprintf(line, sizeof line, "%s done\n", name);
    if (write(report, line, bytes) < 0) { }
}

/* A process of its own, which would be past the filters of threads if it could execute. */
static long fork_bare(void) {
    long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    return child;
}

static long execute(void) {
    char *arguments[] = {"/bin/true", NULL}, *variables[] = {NULL};
    return execve(arguments[0], arguments, variables);
}

static long load_program(void) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    return syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
}

static long open_of(pid_t process, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", process, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static long connect_out(void) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int stream = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    long result = connect(stream, (struct sockaddr *)&there, sizeof there);
    int error = errno;
    close(stream);
    errno = error;
    return result;
}

static void try_all(void) {
    tell("fork", fork_bare());
    tell("execve", execute());
    tell("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    tell("key socket", socket(AF_KEY, SOCK_RAW, 2));
    tell("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    tell("mount", mount("none", "/tmp", "tmpfs", 0, ""));
    tell("unshare", unshare(CLONE_NEWUSER));
    tell("setns", setns(report, CLONE_NEWNET));
    tell("kill", kill(getppid(), 0));
    tell("process_vm_readv", syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0));
    tell("bpf", load_program());
    tell("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
    tell("no_new_privs off", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    tell("setuid", syscall(SYS_setuid, 0));
    tell("personality", syscall(SYS_personality, 0xffffffff));
    tell("chroot", chroot("/"));
    tell("TIOCSTI", syscall(SYS_ioctl, 0, 0x5412, "x"));
    const char *own = getenv("ESCAPES_REPORT");
    tell("path: read a file", open("/etc/passwd", O_RDONLY | O_CLOEXEC));
    tell("path: read a folder", open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    tell("path: read what this user owns", open(own, O_RDONLY | O_CLOEXEC));
    tell("path: write what this user owns", open(own, O_WRONLY | O_CLOEXEC));
    tell("path: read another process's memory", open_of(getppid(), "mem"));
    tell("path: make a file", open("/tmp/escaped", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    tell("path: make a folder", mkdir("/tmp/escaped", 0700));
    tell("path: remove a file", unlink(own));
    tell("path: connect by TCP", connect_out());
    tell("end", 0);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout) {
    static int (*real)(int, struct mmsghdr *, unsigned int, int, struct timespec *);
    static atomic_int begun;
    if (!real)
        real = dlsym(RTLD_NEXT, "recvmmsg");
    const char *armed = getenv("ESCAPES_ARMED");
    if (report >= 0 && armed && !atomic_load(&begun) && access(armed, F_OK) == 0 && !atomic_exchange(&begun, 1))
        try_all();
    return real(fd, messages, count, flags, timeout);
}
