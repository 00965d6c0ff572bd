/* LogDriver: appends the frames of each FIFO to /data/CONTAINER.frames and its lines to /data/CONTAINER.txt. */
#include "driver.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILES = 64, FRAME = 1 << 20 };

static struct source {
    char file[256];
    char container[128];
    int is_open;
} sources[FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t number(const uint8_t **at, const uint8_t *last) {
    uint64_t value = 0;
    for (int shift = 0; *at < last && shift < 64; shift += 7) {
        value |= (uint64_t)(**at & 0x7f) << shift;
        if (!(*(*at)++ & 0x80))
            break;
    }
    return value;
}

/* The field 3 of a LogEntry. */
static void write_line(FILE *to, const uint8_t *at, size_t size) {
    for (const uint8_t *last = at + size; at < last;) {
        uint64_t tag = number(&at, last), value = number(&at, last);
        if ((tag & 7) != 2)
            continue;
        if (value > (uint64_t)(last - at))
            return;
        if (tag >> 3 == 3)
            fprintf(to, "%.*s\n", (int)value, (const char *)at);
        at += value;
    }
    fflush(to);
}

static FILE *opened(const char *container, const char *suffix, const char *mode) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s.%s", option("data") ? option("data") : "/data", container, suffix);
    return fopen(path, mode);
}

/* Store the whole frames at the beginning of the data; how many bytes these are, or -1 for what is no frame. */
static ssize_t store(FILE *frames, FILE *lines, const uint8_t *data, size_t used) {
    size_t at = 0;
    uint32_t size;
    while (used - at >= 4) {
        memcpy(&size, data + at, 4);
        size = ntohl(size);
        if (size > FRAME)
            return -1;
        if (used - at - 4 < size)
            break;
        fwrite(data + at, 1, size + 4, frames);
        fflush(frames);
        write_line(lines, data + at + 4, size);
        at += size + 4;
    }
    return (ssize_t)at;
}

/* Takes as much as there is in one read, which is whole frames: a kill must not leave a part of one in the FIFO. */
static void *copy(void *argument) {
    struct source *source = argument;
    uint8_t *data = malloc(2 * FRAME);
    size_t used = 0;
    ssize_t got, done = 0;
    int fifo = open(source->file, O_RDONLY | O_CLOEXEC);
    FILE *frames = opened(source->container, "frames", "a"), *lines = opened(source->container, "txt", "a");
    while (fifo >= 0 && frames && lines && (got = read(fifo, data + used, 2 * FRAME - used)) > 0) {
        used += (size_t)got;
        if ((done = store(frames, lines, data, used)) < 0) {
            fprintf(stderr, "%s: no frame\n", source->file);
            break;
        }
        memmove(data, data + done, used - (size_t)done);
        used -= (size_t)done;
    }
    if (fifo >= 0)
        close(fifo);
    if (frames)
        fclose(frames);
    if (lines)
        fclose(lines);
    pthread_mutex_lock(&lock);
    source->is_open = 0;
    source->file[0] = 0;
    pthread_mutex_unlock(&lock);
    free(data);
    return NULL;
}

static void start(struct call *call) {
    pthread_t thread;
    struct source *free_one = NULL;
    char file[256];
    text_of(call, "File", file, sizeof file);
    if (access(file, R_OK) != 0) {
        answer_error(call, "cannot open %s: %s", file, strerror(errno));
        return;
    }
    pthread_mutex_lock(&lock);
    for (struct source *each = sources; each < sources + FILES && !free_one; each++)
        if (!each->is_open)
            free_one = each;
    if (free_one) {
        snprintf(free_one->file, sizeof free_one->file, "%s", file);
        text_of(call, "ContainerID", free_one->container, sizeof free_one->container);
        free_one->is_open = 1;
    }
    pthread_mutex_unlock(&lock);
    if (!free_one || pthread_create(&thread, NULL, copy, free_one) != 0) {
        answer_error(call, "too many files");
        return;
    }
    pthread_detach(thread);
    answer(call, 200, "{\"Err\": \"\"}");
}

static int is_open(const char *container) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (struct source *each = sources; each < sources + FILES; each++)
        found |= each->is_open && strcmp(each->container, container) == 0;
    pthread_mutex_unlock(&lock);
    return found;
}

static void read_logs(struct call *call) {
    char container[128], data[65536];
    int follows = flag_of(call, "Follow");
    FILE *frames = opened(text_of(call, "ContainerID", container, sizeof container), "frames", "r");
    if (begin_stream(call) != 0)
        return;
    for (int was_open = 1; frames;) {
        size_t got = fread(data, 1, sizeof data, frames);
        if (got > 0 && send_chunk(call, data, got) != 0)
            break;
        if (got == 0 && (!follows || !was_open))
            break;
        if (got == 0) {
            was_open = is_open(container); /* what was written before it was closed is read once more */
            clearerr(frames);
            usleep(10000);
        }
    }
    if (frames)
        fclose(frames);
    send_chunk(call, "", 0);
}

int log_call(struct call *call) {
    if (strcmp(call->path, "/LogDriver.StartLogging") == 0)
        start(call);
    else if (strcmp(call->path, "/LogDriver.StopLogging") == 0)
        answer(call, 200, "{\"Err\": \"\"}"); /* the end of the FIFO comes by itself */
    else if (strcmp(call->path, "/LogDriver.ReadLogs") == 0)
        read_logs(call);
    else if (strcmp(call->path, "/LogDriver.Capabilities") == 0)
        answer(call, 200, "{\"Cap\": {\"ReadLogs\": true}}");
    else
        return 0;
    return 1;
}
