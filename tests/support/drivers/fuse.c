/* A real file system in user space: what is read and written at the mount point is read and written in a directory.
 * The server is a thread, so that kill -9 of the plugin leaves a dead mount, as that of sshfs does.
 */
#include "driver.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 128 << 10, BUFFER = WRITE + 4096, NODES = 65536, PATH = 1024 };

struct server {
    int device;
    char top[PATH];
    char *nodes[NODES]; /* the path of each node below the top; number 1 is the top itself */
    int used;
};

static const char *path_of(struct server *server, uint64_t node, const char *name, char *into) {
    const char *below = node == FUSE_ROOT_ID || node >= NODES ? "" : server->nodes[node];
    int length = snprintf(into, PATH, "%s%s", server->top, below ? below : "/.gone");
    if (name)
        snprintf(into + length, PATH - length, "/%s", name);
    return into;
}

static uint64_t node_of(struct server *server, const char *path) {
    const char *below = path + strlen(server->top);
    for (int at = FUSE_ROOT_ID + 1; at <= server->used; at++)
        if (server->nodes[at] && strcmp(server->nodes[at], below) == 0)
            return at;
    if (server->used + 1 >= NODES)
        return 0;
    server->nodes[++server->used] = strdup(below);
    return server->used;
}

/* What was at a path is at another one, or nowhere; so is what is below it. */
static void move_nodes(struct server *server, const char *from, const char *to) {
    const char *below = from + strlen(server->top);
    size_t length = strlen(below);
    for (int at = FUSE_ROOT_ID + 1; at <= server->used; at++) {
        char *old = server->nodes[at], *moved = NULL;
        if (!old || strncmp(old, below, length) != 0 || (old[length] && old[length] != '/'))
            continue;
        if (to && asprintf(&moved, "%s%s", to + strlen(server->top), old + length) < 0)
            _exit(7);
        server->nodes[at] = moved;
        free(old);
    }
}

static void reply(struct server *server, uint64_t unique, int error, const void *data, size_t size) {
    struct fuse_out_header head = {.len = (uint32_t)(sizeof head + size), .error = -error, .unique = unique};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, size}};
    if (writev(server->device, parts, size ? 2 : 1) < 0)
        return; /* the caller was interrupted */
}

static struct fuse_attr attributes(const struct stat *found) {
    return (struct fuse_attr){
        .ino = found->st_ino, .size = found->st_size, .blocks = found->st_blocks,
        .atime = found->st_atim.tv_sec, .mtime = found->st_mtim.tv_sec, .ctime = found->st_ctim.tv_sec,
        .atimensec = found->st_atim.tv_nsec, .mtimensec = found->st_mtim.tv_nsec, .ctimensec = found->st_ctim.tv_nsec,
        .mode = found->st_mode, .nlink = found->st_nlink, .uid = found->st_uid, .gid = found->st_gid,
        .rdev = found->st_rdev, .blksize = found->st_blksize,
    };
}

static int entry_of(struct server *server, const char *path, struct fuse_entry_out *entry) {
    struct stat found;
    if (lstat(path, &found) != 0)
        return errno;
    *entry = (struct fuse_entry_out){.nodeid = node_of(server, path), .attr = attributes(&found)};
    return entry->nodeid ? 0 : ENOMEM;
}

static void reply_entry(struct server *server, uint64_t unique, const char *path, int failed) {
    struct fuse_entry_out entry;
    int error = failed ? failed : entry_of(server, path, &entry);
    reply(server, unique, error, &entry, error ? 0 : sizeof entry);
}

static void reply_attributes(struct server *server, uint64_t unique, const char *path, int failed) {
    struct stat found;
    struct fuse_attr_out out = {0};
    int error = failed ? failed : lstat(path, &found) != 0 ? errno : 0;
    if (!error)
        out.attr = attributes(&found);
    reply(server, unique, error, &out, error ? 0 : sizeof out);
}

static int change(const char *path, const struct fuse_setattr_in *in) {
    struct timespec times[2] = {{in->atime, in->atimensec}, {in->mtime, in->mtimensec}};
    int failed = 0;
    if (!(in->valid & FATTR_ATIME))
        times[0].tv_nsec = in->valid & FATTR_ATIME_NOW ? UTIME_NOW : UTIME_OMIT;
    if (!(in->valid & FATTR_MTIME))
        times[1].tv_nsec = in->valid & FATTR_MTIME_NOW ? UTIME_NOW : UTIME_OMIT;
    if (in->valid & FATTR_MODE)
        failed |= chmod(path, in->mode & 07777);
    if (in->valid & (FATTR_UID | FATTR_GID))
        failed |= lchown(path, in->valid & FATTR_UID ? in->uid : (uid_t)-1, in->valid & FATTR_GID ? in->gid : (gid_t)-1);
    if (in->valid & FATTR_SIZE)
        failed |= truncate(path, in->size);
    failed |= utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
    return failed ? errno : 0;
}

static void reply_open(struct server *server, uint64_t unique, const char *path, uint32_t flags) {
    int file = open(path, (flags & ~(O_CREAT | O_EXCL | O_NOCTTY)) | O_CLOEXEC);
    struct fuse_open_out out = {.fh = (uint64_t)file, .open_flags = FOPEN_DIRECT_IO};
    reply(server, unique, file < 0 ? errno : 0, &out, file < 0 ? 0 : sizeof out);
}

static void reply_create(struct server *server, uint64_t unique, const char *path, const struct fuse_create_in *in) {
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out;
    int file = open(path, in->flags | O_CREAT | O_CLOEXEC, in->mode & 07777);
    int failed = file < 0 ? errno : entry_of(server, path, &out.entry);
    out.open = (struct fuse_open_out){.fh = (uint64_t)file, .open_flags = FOPEN_DIRECT_IO};
    if (failed && file >= 0)
        close(file);
    reply(server, unique, failed, &out, failed ? 0 : sizeof out);
}

static void reply_read(struct server *server, uint64_t unique, const struct fuse_read_in *in) {
    char *data = malloc(in->size);
    ssize_t got = pread((int)in->fh, data, in->size, in->offset);
    reply(server, unique, got < 0 ? errno : 0, data, got < 0 ? 0 : got);
    free(data);
}

static void reply_write(struct server *server, uint64_t unique, const struct fuse_write_in *in) {
    ssize_t done = pwrite((int)in->fh, in + 1, in->size, in->offset);
    struct fuse_write_out out = {.size = (uint32_t)done};
    reply(server, unique, done < 0 ? errno : 0, &out, done < 0 ? 0 : sizeof out);
}

static void reply_directory(struct server *server, uint64_t unique, const struct fuse_read_in *in) {
    DIR *all = (DIR *)in->fh;
    char *data = calloc(1, in->size);
    size_t used = 0;
    seekdir(all, (long)in->offset);
    for (struct dirent *each; (each = readdir(all)) != NULL;) {
        size_t length = strlen(each->d_name), size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
        if (used + size > in->size)
            break;
        struct fuse_dirent *out = (struct fuse_dirent *)(data + used);
        *out = (struct fuse_dirent){each->d_ino, (uint64_t)telldir(all), (uint32_t)length, each->d_type};
        memcpy(data + used + FUSE_NAME_OFFSET, each->d_name, length);
        used += size;
    }
    reply(server, unique, 0, data, used);
    free(data);
}

static void reply_statfs(struct server *server, uint64_t unique) {
    struct statvfs found;
    struct fuse_statfs_out out = {0};
    if (statvfs(server->top, &found) == 0)
        out.st = (struct fuse_kstatfs){found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
                                       (uint32_t)found.f_bsize, 255, (uint32_t)found.f_frsize, 0, {0}};
    reply(server, unique, 0, &out, sizeof out);
}

static int rename_entry(struct server *server, const char *from, uint64_t directory, const char *name) {
    char to[PATH];
    if (rename(from, path_of(server, directory, name, to)) != 0)
        return errno;
    move_nodes(server, to, NULL);
    move_nodes(server, from, to);
    return 0;
}

static int remove_entry(struct server *server, const char *path, int is_directory) {
    if ((is_directory ? rmdir(path) : unlink(path)) != 0)
        return errno;
    move_nodes(server, path, NULL);
    return 0;
}

/* Calls that name an entry of a directory. */
static int handle_name(struct server *server, const struct fuse_in_header *head, void *in) {
    char path[PATH];
    const char *name = (const char *)in;
    uint64_t unique = head->unique;
    switch (head->opcode) {
    case FUSE_LOOKUP:
        reply_entry(server, unique, path_of(server, head->nodeid, name, path), 0);
        return 1;
    case FUSE_MKDIR:
        path_of(server, head->nodeid, (const char *)((struct fuse_mkdir_in *)in + 1), path);
        reply_entry(server, unique, path, mkdir(path, ((struct fuse_mkdir_in *)in)->mode & 07777) == 0 ? 0 : errno);
        return 1;
    case FUSE_CREATE:
        path_of(server, head->nodeid, (const char *)((struct fuse_create_in *)in + 1), path);
        reply_create(server, unique, path, in);
        return 1;
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        path_of(server, head->nodeid, name, path);
        reply(server, unique, remove_entry(server, path, head->opcode == FUSE_RMDIR), NULL, 0);
        return 1;
    case FUSE_RENAME:
    case FUSE_RENAME2:
        name += head->opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(struct fuse_rename2_in);
        path_of(server, head->nodeid, name, path);
        reply(server, unique,
              rename_entry(server, path, ((struct fuse_rename_in *)in)->newdir, name + strlen(name) + 1), NULL, 0);
        return 1;
    default:
        return 0;
    }
}

static void greet(struct server *server, uint64_t unique, const struct fuse_init_in *in) {
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = in->minor < 31 ? in->minor : 31,
                                .max_readahead = in->max_readahead, .flags = FUSE_BIG_WRITES, .max_write = WRITE,
                                .max_background = 16, .congestion_threshold = 12};
    reply(server, unique, 0, &out, sizeof out);
}

static void handle(struct server *server, const struct fuse_in_header *head, void *in) {
    char path[PATH];
    uint64_t unique = head->unique;
    if (handle_name(server, head, in))
        return;
    path_of(server, head->nodeid, NULL, path);
    switch (head->opcode) {
    case FUSE_INIT:
        greet(server, unique, in);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        break; /* these have no reply */
    case FUSE_GETATTR:
        reply_attributes(server, unique, path, 0);
        break;
    case FUSE_SETATTR:
        reply_attributes(server, unique, path, change(path, in));
        break;
    case FUSE_OPEN:
        reply_open(server, unique, path, ((struct fuse_open_in *)in)->flags);
        break;
    case FUSE_OPENDIR: {
        DIR *all = opendir(path);
        struct fuse_open_out out = {.fh = (uint64_t)all};
        reply(server, unique, all ? 0 : errno, &out, all ? sizeof out : 0);
        break;
    }
    case FUSE_READDIR:
        reply_directory(server, unique, in);
        break;
    case FUSE_READ:
        reply_read(server, unique, in);
        break;
    case FUSE_WRITE:
        reply_write(server, unique, in);
        break;
    case FUSE_RELEASE:
        close((int)((struct fuse_release_in *)in)->fh);
        reply(server, unique, 0, NULL, 0);
        break;
    case FUSE_RELEASEDIR:
        closedir((DIR *)((struct fuse_release_in *)in)->fh);
        reply(server, unique, 0, NULL, 0);
        break;
    case FUSE_FSYNC:
        reply(server, unique, fsync((int)((struct fuse_fsync_in *)in)->fh) == 0 ? 0 : errno, NULL, 0);
        break;
    case FUSE_FLUSH:
    case FUSE_DESTROY:
        reply(server, unique, 0, NULL, 0);
        break;
    case FUSE_STATFS:
        reply_statfs(server, unique);
        break;
    default:
        reply(server, unique, ENOSYS, NULL, 0);
    }
}

static void *work(void *argument) {
    struct server *server = argument;
    char *buffer = malloc(BUFFER);
    for (;;) {
        ssize_t got = read(server->device, buffer, BUFFER);
        if (got >= (ssize_t)sizeof(struct fuse_in_header))
            handle(server, (struct fuse_in_header *)buffer, buffer + sizeof(struct fuse_in_header));
        else if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
            break; /* unmounted */
    }
    close(server->device);
    for (int at = 0; at <= server->used; at++)
        free(server->nodes[at]);
    free(server);
    free(buffer);
    return NULL;
}

int mount_fuse(const char *directory, const char *point) {
    pthread_t thread;
    char options[128];
    struct server *server = calloc(1, sizeof *server);
    server->used = FUSE_ROOT_ID;
    server->device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(server->top, sizeof server->top, "%s", directory);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", server->device);
    if (server->device < 0 || mount("driver", point, "fuse.driver", MS_NOSUID | MS_NODEV, options) != 0) {
        int failed = errno;
        if (server->device >= 0)
            close(server->device);
        free(server);
        return failed;
    }
    if (pthread_create(&thread, NULL, work, server) != 0)
        return EAGAIN;
    pthread_detach(thread);
    return 0;
}
