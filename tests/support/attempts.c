/* A plugin that tries what it is asked to, and answers with the error number; 0 where it succeeded.
 *
 *   /try/NAME     one of the attempts below, in a process of its own      /read/PATH    what is in a file
 *   /write/PATH   make a file there                                      /fork/N       up to N sleeping processes: how many
 *   /owner/PATH   the uid of a file
 *   /orphan       a process whose parent exits before it does
 *
 * With an argument it makes that one attempt, prints the number, and exits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char argument[4096];

static long try_keyctl(void) { return syscall(SYS_keyctl, 0, -3, 0); }
static long try_add_key(void) { return syscall(SYS_add_key, "user", "moorage", "x", 1, -3); }
static long try_userfaultfd(void) { return syscall(SYS_userfaultfd, 1); }
static long try_io_uring(void) {
    static char parameters[256];
    return syscall(425, 8, parameters);
}
static long try_unshare_user(void) { return syscall(SYS_unshare, CLONE_NEWUSER); }
static long try_unshare_mount(void) { return syscall(SYS_unshare, CLONE_NEWNS); }
static long try_clone_user(void) {
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long try_clone3(void) { return syscall(435, 0, 0); }
static long try_bpf(void) {
    static char attributes[128];
    attributes[0] = 1; /* an array with a key of 4 bytes */
    return syscall(SYS_bpf, 0, attributes, sizeof attributes);
}
static long try_mount(void) { return mount("tmpfs", "/proc/1", "tmpfs", 0, ""), mount("tmpfs", "/mnt", "tmpfs", 0, ""); }
/* what a volume plugin with FUSE does, without a server behind it */
static long try_fuse(void) {
    char options[128];
    int fd = open("/dev/fuse", O_RDWR);
    if (fd < 0)
        return fd;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    long made = mount("attempts", "/mnt", "fuse", MS_NOSUID | MS_NODEV, options);
    return made < 0 ? made : umount2("/mnt", MNT_DETACH);
}
static long try_setns(void) {
    int fd = open("/proc/self/ns/net", O_RDONLY);
    return syscall(SYS_setns, fd, 0);
}
static long try_mknod(void) {
    unlink("/node");
    return mknod("/node", S_IFCHR | 0666, makedev(1, 3));
}
static long try_raw_socket(void) { return socket(AF_INET, SOCK_RAW, 1); }
static long try_vsock(void) { return socket(40, SOCK_STREAM, 0); }
static long try_perf(void) {
    static char attributes[128];
    return syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0);
}
static long try_init_module(void) { return syscall(SYS_init_module, "", 0, ""); }
static long try_kexec(void) { return syscall(SYS_kexec_load, 0, 0, 0, 0); }
static long try_handle(void) { return syscall(SYS_open_by_handle_at, AT_FDCWD, argument, 0); }
static long try_ptrace(void) { return ptrace(PTRACE_ATTACH, atoi(argument), 0, 0); }
static long try_ptrace_child(void) {
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    long result = ptrace(PTRACE_ATTACH, child, 0, 0);
    int number = errno;
    kill(child, SIGKILL);
    errno = number;
    return result;
}
static long try_chroot(void) { return chroot("/"); }
static long try_thread(void) { /* what a thread library does, as far as a filter sees it */
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long try_settimeofday(void) { return syscall(SYS_settimeofday, 0, 0); }
static long try_is_root(void) {
    errno = EPERM;
    return geteuid() == 0 ? 0 : -1;
}
static long try_set_uid(void) { /* a set-uid program of root that says whether it is root */
    execl("/set-uid", "/set-uid", "is-root", "", NULL);
    return -1;
}
static long try_kill(void) { return kill(atoi(argument), SIGCONT); }
static long try_open_to_write(void) { return open(argument, O_WRONLY); }
/* what is mounted read-only there becomes writable: the mount, and its file system, which is the plugin's own */
static long try_remount(void) {
    long flags = MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    return mount(NULL, argument, NULL, flags | MS_BIND, NULL) < 0 ? -1 : mount(NULL, argument, NULL, flags, NULL);
}
static long try_unknown(void) { return syscall(1 << 20); }

static const struct {
    const char *name;
    long (*run)(void);
} attempts[] = {
    {"keyctl", try_keyctl}, {"add_key", try_add_key}, {"userfaultfd", try_userfaultfd}, {"io_uring", try_io_uring},
    {"unshare-user", try_unshare_user}, {"unshare-mount", try_unshare_mount}, {"clone-user", try_clone_user},
    {"clone3", try_clone3}, {"bpf", try_bpf}, {"mount", try_mount}, {"fuse", try_fuse}, {"setns", try_setns}, {"mknod", try_mknod},
    {"raw-socket", try_raw_socket}, {"vsock", try_vsock}, {"perf", try_perf}, {"init-module", try_init_module},
    {"kexec", try_kexec}, {"handle", try_handle}, {"ptrace", try_ptrace}, {"ptrace-child", try_ptrace_child},
    {"chroot", try_chroot}, {"thread", try_thread}, {"settimeofday", try_settimeofday}, {"unknown", try_unknown},
    {"is-root", try_is_root}, {"set-uid", try_set_uid}, {"kill", try_kill}, {"open-to-write", try_open_to_write},
    {"remount", try_remount},
};

static int attempt(const char *name) {
    char *slash = strchr(name, '/');
    if (slash) {
        snprintf(argument, sizeof argument, "%s", slash + 1);
        *slash = 0;
    }
    for (size_t at = 0; at < sizeof attempts / sizeof *attempts; at++)
        if (strcmp(attempts[at].name, name) == 0) {
            int status;
            pid_t child = fork();
            if (child < 0)
                return errno;
            if (child == 0)
                _exit(attempts[at].run() < 0 ? errno : 0);
            waitpid(child, &status, 0);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
        }
    return 9999;
}

static int forks(int most) {
    int count = 0;
    for (; count < most; count++) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0) {
            for (;;)
                pause();
        }
    }
    return count;
}

static void orphan(void) {
    pid_t child = fork();
    if (child == 0) {
        if (fork() == 0)
            usleep(100000);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

static void answer(int client) {
    static char request[8192], body[65536], head[128];
    ssize_t got = read(client, request, sizeof request - 1);
    if (got <= 0)
        return;
    request[got] = 0;
    char *path = strchr(request, ' ');
    path = path ? path + 1 : request;
    path[strcspn(path, " \r\n")] = 0;
    snprintf(body, sizeof body, "{\"Implements\": [\"VolumeDriver\"]}");
    if (strncmp(path, "/try/", 5) == 0)
        snprintf(body, sizeof body, "%d", attempt(path + 5));
    if (strncmp(path, "/fork/", 6) == 0)
        snprintf(body, sizeof body, "%d", forks(atoi(path + 6)));
    if (strcmp(path, "/orphan") == 0)
        orphan();
    if (strncmp(path, "/exit/", 6) == 0)
        _exit(atoi(path + 6));
    if (strncmp(path, "/owner/", 7) == 0) {
        struct stat status;
        snprintf(body, sizeof body, "%ld", lstat(path + 6, &status) < 0 ? -1L : (long)status.st_uid);
    }
    if (strncmp(path, "/write/", 7) == 0) {
        int fd = open(path + 6, O_WRONLY | O_CREAT, 0644);
        snprintf(body, sizeof body, "%d", fd < 0 || write(fd, "x", 1) < 0 ? errno : 0);
        close(fd);
    }
    if (strncmp(path, "/read/", 6) == 0) {
        int fd = open(path + 5, O_RDONLY);
        size_t used = 0;
        ssize_t more;
        if (fd < 0)
            used = snprintf(body, sizeof body, "errno %d", errno);
        while (fd >= 0 && used < sizeof body - 1 && (more = read(fd, body + used, sizeof body - 1 - used)) > 0)
            used += more;
        body[used] = 0;
        close(fd);
    }
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", strlen(body));
    if (write(client, head, strlen(head)) < 0 || write(client, body, strlen(body)) < 0)
        return;
}

static void leave(int number) {
    (void)number;
    _exit(0);
}

int main(int count, char **words) {
    if (count > 1) { /* beside the plugin's own process */
        int number = attempt(words[1]);
        printf("%d\n", number);
        return count > 2 ? number : 0;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/docker/plugins/plugin.sock"};
    signal(SIGTERM, leave);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
        perror("bind");
        return 4;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        answer(client);
        close(client);
    }
}
