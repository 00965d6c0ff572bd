/* A plugin that tells everyone who connects to its socket what it sees, as lines "kind value". Static, for a bare root.
 *
 * The socket's path is in /probe.socket: the config says it, and a config may be anything.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>

extern char **environ;

/* One line; what would break it is written as in a C string. */
static void say(FILE *out, const char *kind, const char *value)
{
    fprintf(out, "%s ", kind);
    for (; *value; value++) {
        if (*value == '\n' || *value == '\\')
            fprintf(out, "\\%03o", (unsigned char)*value);
        else
            fputc(*value, out);
    }
    fputc('\n', out);
}

static void say_lines_of(FILE *out, const char *kind, const char *path)
{
    char line[8192];
    FILE *file = fopen(path, "r");
    if (!file) {
        say(out, kind, strerror(errno));
        return;
    }
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        say(out, kind, line);
    }
    fclose(file);
}

static void say_links_in(FILE *out, const char *kind, const char *directory)
{
    char path[4096], target[4096], line[8300];
    struct dirent **names;
    int count = scandir(directory, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]->d_name);
        ssize_t size = readlink(path, target, sizeof target - 1);
        if (size > 0) {
            target[size] = 0;
            snprintf(line, sizeof line, "%s %s", names[i]->d_name, target);
            say(out, kind, line);
        }
    }
}

/* Everything below /dev; what is mounted there from elsewhere may be large, so only two levels. */
static void say_devices(FILE *out, const char *directory, int levels)
{
    char path[4096], line[8300], target[4096];
    struct dirent **names;
    struct stat status;
    int count = scandir(directory, &names, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        const char *name = names[i]->d_name;
        snprintf(path, sizeof path, "%s/%s", directory, name);
        if (!strcmp(name, ".") || !strcmp(name, "..") || lstat(path, &status) != 0)
            continue;
        target[0] = 0;
        if (S_ISLNK(status.st_mode)) {
            ssize_t size = readlink(path, target, sizeof target - 1);
            target[size > 0 ? size : 0] = 0;
        }
        snprintf(line, sizeof line, "%s %o %u:%u %u %u %s", path, status.st_mode, major(status.st_rdev),
                 minor(status.st_rdev), status.st_uid, status.st_gid, target);
        say(out, "device", line);
        if (S_ISDIR(status.st_mode) && levels > 1)
            say_devices(out, path, levels - 1);
    }
}

/* Which numbers the device cgroup lets in, without opening anything that could mind. */
static void say_device_rules(FILE *out)
{
    static const struct { mode_t kind; int major, minor; } tries[] = {
        {S_IFCHR, 1, 3}, {S_IFCHR, 1, 5}, {S_IFCHR, 1, 7}, {S_IFCHR, 1, 8}, {S_IFCHR, 1, 9}, {S_IFCHR, 1, 11},
        {S_IFCHR, 5, 0}, {S_IFCHR, 5, 1}, {S_IFCHR, 5, 2}, {S_IFCHR, 10, 229}, {S_IFCHR, 10, 237}, {S_IFCHR, 10, 200},
        {S_IFCHR, 136, 0}, {S_IFBLK, 7, 0}, {S_IFBLK, 7, 1}, {S_IFBLK, 8, 0},
    };
    char line[200];
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        int is_made = mknod("/.probe-node", tries[i].kind | 0600, makedev(tries[i].major, tries[i].minor)) == 0;
        int made_errno = errno;
        int fd = is_made && tries[i].major == 1 ? open("/.probe-node", O_RDONLY | O_NONBLOCK) : -2;
        snprintf(line, sizeof line, "%c %d:%d %s %s", tries[i].kind == S_IFCHR ? 'c' : 'b', tries[i].major,
                 tries[i].minor, is_made ? "made" : strerror(made_errno), fd == -2 ? "-" : fd < 0 ? "shut" : "open");
        say(out, "rule", line);
        if (fd >= 0)
            close(fd);
        if (is_made)
            unlink("/.probe-node");
    }
}

static void say_open(FILE *out, const char *path)
{
    char line[300];
    int fd = open(path, O_RDWR | O_NONBLOCK);
    snprintf(line, sizeof line, "%s %s", path, fd < 0 ? strerror(errno) : "opened");
    say(out, "open", line);
    if (fd >= 0)
        close(fd);
}

static void say_status(FILE *out)
{
    static const char *wanted[] = {"Umask", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn"};
    char line[8192];
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (!strncmp(line, wanted[i], strlen(wanted[i])))
                say(out, "status", line);
    }
    if (file)
        fclose(file);
}

static void say_network(FILE *out)
{
    struct ifaddrs *first, *each;
    char line[200];
    if (getifaddrs(&first) != 0)
        return;
    for (each = first; each; each = each->ifa_next) {
        int family = each->ifa_addr ? each->ifa_addr->sa_family : 0;
        snprintf(line, sizeof line, "%s %d %s", each->ifa_name, family, each->ifa_flags & IFF_UP ? "up" : "down");
        say(out, "interface", line);
    }
    freeifaddrs(first);
}

static void say_all(FILE *out, int argc, char **argv)
{
    struct utsname names;
    char text[4096];
    for (int i = 0; i < argc; i++)
        say(out, "argument", argv[i]);
    for (char **each = environ; *each; each++)
        say(out, "environment", *each);
    say(out, "cwd", getcwd(text, sizeof text) ? text : strerror(errno));
    snprintf(text, sizeof text, "%d", getpid() == 1);
    say(out, "is-first", text);
    uname(&names);
    say(out, "hostname", names.nodename);
    say_status(out);
    say_lines_of(out, "limit", "/proc/self/limits");
    say_lines_of(out, "oom", "/proc/self/oom_score_adj");
    say_lines_of(out, "cgroup", "/proc/self/cgroup");
    say_links_in(out, "namespace", "/proc/self/ns");
    say_lines_of(out, "mount", "/proc/self/mountinfo");
    say_devices(out, "/dev", 2);
    say_device_rules(out);
    say_open(out, "/dev/null");
    say_open(out, "/dev/full");
    say_open(out, "/dev/ptmx");
    say_open(out, "/dev/loop-control");
    say_open(out, "/dev/fuse");
    say_network(out);
    say_lines_of(out, "hosts", "/etc/hosts");
    say_lines_of(out, "resolv", "/etc/resolv.conf");
    say(out, "end", "");
}

/* The first process of a pid namespace gets no signal that it has no handler for. */
static void end(int signal)
{
    _exit(128 + signal);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    FILE *file = fopen("/probe.socket", "r");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, end);
    if (!file || !fgets(address.sun_path, sizeof address.sun_path, file))
        return 2;
    fclose(file);
    for (char *slash = address.sun_path + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(address.sun_path, 0755);
    }
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) {
        perror(address.sun_path);
        return 3;
    }
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        FILE *out = peer < 0 ? NULL : fdopen(peer, "w");
        if (!out)
            return 4;
        say_all(out, argc, argv);
        fclose(out);
    }
}
