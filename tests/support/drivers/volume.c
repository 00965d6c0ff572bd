/* VolumeDriver: volumes are directories of /data; what is mounted for whom is known in memory only. */
#include "driver.h"
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VOLUMES = 512, OWNERS = 64, NAME = 128 };

static struct volume {
    char name[NAME];
    char owners[OWNERS][NAME];
    int count;
} volumes[VOLUMES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Its entry, a new one where it has none; `tidy` frees those that nobody has mounted. */
static struct volume *find(const char *name) {
    struct volume *free_one = NULL;
    for (struct volume *each = volumes; each < volumes + VOLUMES; each++) {
        if (strcmp(each->name, name) == 0)
            return each;
        if (!each->name[0] && !free_one)
            free_one = each;
    }
    if (!free_one)
        _exit(6);
    snprintf(free_one->name, sizeof free_one->name, "%s", name);
    return free_one;
}

static void tidy(void) {
    for (struct volume *each = volumes; each < volumes + VOLUMES; each++)
        if (each->count == 0)
            each->name[0] = 0;
}

static const char *data(void) { return option("data") ? option("data") : "/data"; }

static const char *how(void) { return option("how") ? option("how") : "fuse"; }

static void paths_of(const char *name, char *source, char *point, size_t room) {
    snprintf(source, room, "%s/%s", data(), name);
    if (strcmp(how(), "none") == 0 && !option("at"))
        snprintf(point, room, "%s", source);
    else
        snprintf(point, room, "%s/%s", option("at") ? option("at") : "/mnt/volumes", name);
}

/* As vieux/sshfs has it: a mount point that cannot be examined, such as a dead mount, is an error. */
static int make_point(const char *point) {
    char parent[512];
    struct stat found;
    if (option("clean"))
        while (umount2(point, MNT_DETACH) == 0)
            ;
    if (lstat(point, &found) == 0)
        return 0;
    if (errno != ENOENT)
        return errno;
    snprintf(parent, sizeof parent, "%s", point);
    *strrchr(parent, '/') = 0;
    mkdir(parent, 0755);
    return mkdir(point, 0755) == 0 || errno == EEXIST ? 0 : errno;
}

static int mount_volume(const char *source, const char *point) {
    int failed = make_point(point);
    if (failed || strcmp(how(), "none") == 0)
        return failed;
    if (strcmp(how(), "fuse") == 0)
        return mount_fuse(source, point);
    if (strcmp(how(), "tmpfs") == 0)
        return mount("driver", point, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m") == 0 ? 0 : errno;
    return mount(source, point, NULL, MS_BIND, NULL) == 0 ? 0 : errno;
}

static int owner_of(struct volume *volume, const char *id) {
    for (int at = 0; at < volume->count; at++)
        if (strcmp(volume->owners[at], id) == 0)
            return at;
    return -1;
}

static void do_mount(struct call *call, const char *name, const char *source, const char *point) {
    char id[NAME];
    struct volume *volume = find(name);
    int failed = 0;
    text_of(call, "ID", id, sizeof id);
    if (owner_of(volume, id) < 0) {
        failed = volume->count == 0 ? mount_volume(source, point) : 0;
        if (!failed && volume->count < OWNERS)
            snprintf(volume->owners[volume->count++], NAME, "%s", id);
    }
    if (failed)
        answer_error(call, "cannot mount %s: %s", name, strerror(failed));
    else
        answer(call, 200, "{\"Mountpoint\": \"%s\", \"Err\": \"\"}", point);
}

static void do_unmount(struct call *call, const char *name, const char *point) {
    char id[NAME];
    struct volume *volume = find(name);
    int at = owner_of(volume, text_of(call, "ID", id, sizeof id));
    if (at < 0) {
        answer_error(call, "volume %s is not mounted for %s", name, id);
        return;
    }
    memmove(volume->owners[at], volume->owners[volume->count - 1], NAME);
    if (--volume->count == 0 && strcmp(how(), "none") != 0)
        umount2(point, MNT_DETACH);
    answer(call, 200, "{}");
}

static int remove_entry(const char *path, const struct stat *found, int kind, struct FTW *where) {
    (void)found, (void)kind, (void)where;
    return remove(path);
}

static void answer_list(struct call *call) {
    char text[65536] = "{\"Volumes\": [", source[512], point[512];
    size_t used = strlen(text);
    int number = 0;
    DIR *all = opendir(data());
    for (struct dirent *each; all && (each = readdir(all)) && used < sizeof text - 1024;)
        if (each->d_name[0] != '.' && each->d_type == DT_DIR) {
            paths_of(each->d_name, source, point, sizeof source);
            used += snprintf(text + used, sizeof text - used, "%s{\"Name\": \"%s\", \"Mountpoint\": \"%s\"}",
                             number++ ? ", " : "", each->d_name, find(each->d_name)->count ? point : "");
            tidy();
        }
    if (all)
        closedir(all);
    answer(call, 200, "%s], \"Err\": \"\"}", text);
}

static void answer_mounts(struct call *call) {
    char text[65536] = "{";
    size_t used = 1;
    int number = 0;
    for (struct volume *each = volumes; each < volumes + VOLUMES; each++)
        for (int at = 0; at < each->count && used < sizeof text - 1024; at++)
            used += snprintf(text + used, sizeof text - used, "%s\"%s %s\": true", number++ ? ", " : "", each->name,
                             each->owners[at]);
    answer(call, 200, "%s}", text);
}

static void do_create(struct call *call, const char *name, const char *source) {
    char failure[NAME];
    if (!name[0] || strchr(name, '/'))
        answer_error(call, "%s is no name of a volume", name);
    else if (text_of(call, "fail", failure, sizeof failure)[0])
        answer_error(call, "%s", failure);
    else if (mkdir(source, 0755) != 0 && errno != EEXIST)
        answer_error(call, "cannot create %s: %s", name, strerror(errno));
    else
        answer(call, 200, "{}");
}

static void do_known(struct call *call, const char *verb, const char *name, const char *source, const char *point) {
    struct stat found;
    const char *mounted = find(name)->count || strcmp(how(), "none") == 0 ? point : "";
    if (stat(source, &found) != 0)
        answer_error(call, "no volume %s", name);
    else if (strcmp(verb, "Mount") == 0)
        do_mount(call, name, source, point);
    else if (strcmp(verb, "Path") == 0)
        answer(call, 200, "{\"Mountpoint\": \"%s\"}", mounted);
    else if (strcmp(verb, "Get") == 0)
        answer(call, 200, "{\"Volume\": {\"Name\": \"%s\", \"Mountpoint\": \"%s\", \"Status\": {}}}", name, mounted);
    else if (find(name)->count)
        answer_error(call, "volume %s is in use", name);
    else if (nftw(source, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0)
        answer_error(call, "cannot remove %s: %s", name, strerror(errno));
    else
        answer(call, 200, "{}");
}

int volume_call(struct call *call) {
    char name[NAME], source[512], point[512];
    const char *verb = strchr(call->path, '.');
    if (strcmp(call->path, "/Test.Mounts") == 0) {
        answer_mounts(call);
        return 1;
    }
    if (!verb++ || strncmp(call->path, "/VolumeDriver.", 14) != 0)
        return 0;
    text_of(call, "Name", name, sizeof name);
    paths_of(name, source, point, sizeof source);
    pthread_mutex_lock(&lock);
    if (strcmp(verb, "Create") == 0)
        do_create(call, name, source);
    else if (strcmp(verb, "List") == 0)
        answer_list(call);
    else if (strcmp(verb, "Capabilities") == 0)
        answer(call, 200, "{\"Capabilities\": {\"Scope\": \"local\"}}");
    else if (strcmp(verb, "Unmount") == 0)
        do_unmount(call, name, point);
    else
        do_known(call, verb, name, source, point);
    tidy();
    pthread_mutex_unlock(&lock);
    return 1;
}
