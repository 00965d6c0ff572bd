/* HTTP/1.1 on the plugin's socket, a thread for each connection, as a plugin made with Go has it. */
#include "driver.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/uio.h>
#include <unistd.h>

static int send_all(int client, const void *data, size_t size) {
    for (const char *at = data; size > 0;) {
        ssize_t done = send(client, at, size, MSG_NOSIGNAL);
        if (done <= 0)
            return -1;
        at += done, size -= done;
    }
    return 0;
}

static void answer_text(struct call *call, int status, const char *text) {
    size_t size = strlen(text), room = size + 512;
    char *all = malloc(room);
    int length = snprintf(all, room, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status,
                          status == 200 ? "OK" : "Error", text[0] == '{' ? "application/json" : "text/plain", size, text);
    send_all(call->client, all, length);
    free(all);
}

void answer(struct call *call, int status, const char *format, ...) {
    char *text;
    va_list values;
    va_start(values, format);
    if (vasprintf(&text, format, values) < 0)
        _exit(5);
    va_end(values);
    answer_text(call, status, text);
    free(text);
}

void answer_error(struct call *call, const char *format, ...) {
    char *text;
    va_list values;
    va_start(values, format);
    if (vasprintf(&text, format, values) < 0)
        _exit(5);
    va_end(values);
    int status = option("errors") ? atoi(option("errors")) : strncmp(text, "400 ", 4) == 0 ? 400 : 500;
    answer(call, status, "{\"Err\": \"%s\"}", text);
    free(text);
}

int begin_stream(struct call *call) {
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: application/x-json-stream\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    return send_all(call->client, head, sizeof head - 1);
}

int send_chunk(struct call *call, const void *data, size_t size) {
    char head[32];
    int length = snprintf(head, sizeof head, "%zx\r\n", size);
    if (send_all(call->client, head, length) != 0 || send_all(call->client, data, size) != 0)
        return -1;
    return send_all(call->client, "\r\n", 2);
}

static const char *value_of(struct call *call, const char *key) {
    char quoted[128];
    size_t length = snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (const char *at = call->body; (at = strstr(at, quoted)) != NULL;) {
        at += length;
        at += strspn(at, " \t\r\n");
        if (*at == ':')
            return at + 1 + strspn(at + 1, " \t\r\n");
    }
    return "";
}

const char *text_of(struct call *call, const char *key, char *into, size_t room) {
    const char *at = value_of(call, key);
    size_t used = 0;
    if (*at == '"')
        for (at++; *at && *at != '"' && used + 1 < room; at++) {
            if (*at == '\\' && at[1] == 'u') {
                unsigned code = 0;
                sscanf(at + 2, "%4x", &code);
                into[used++] = (char)code;
                at += 5;
            } else {
                at += *at == '\\';
                into[used++] = *at;
            }
        }
    into[used] = 0;
    return into;
}

int flag_of(struct call *call, const char *key) { return strncmp(value_of(call, key), "true", 4) == 0; }

/* The lines of a head one by one; a body of a given length or in chunks. */
static int read_line(FILE *from, char *line, int room) {
    if (!fgets(line, room, from))
        return -1;
    line[strcspn(line, "\r\n")] = 0;
    return (int)strlen(line);
}

static int read_more(FILE *from, struct call *call, size_t size) {
    call->body = realloc(call->body, call->size + size + 1);
    if (fread(call->body + call->size, 1, size, from) != size)
        return -1;
    call->size += size;
    call->body[call->size] = 0;
    return 0;
}

static int read_chunks(FILE *from, struct call *call) {
    char line[256];
    for (;;) {
        if (read_line(from, line, sizeof line) < 0)
            return -1;
        size_t size = strtoul(line, NULL, 16);
        if ((size > 0 && read_more(from, call, size) != 0) || read_line(from, line, sizeof line) < 0)
            return -1;
        if (size == 0)
            return 0;
    }
}

static int read_call(FILE *from, struct call *call) {
    char line[65536];
    size_t size = 0;
    int is_chunked = 0, length;
    call->body = calloc(1, 1);
    call->size = 0, call->has_type = 0;
    if (read_line(from, line, sizeof line) <= 0 || sscanf(line, "%*s %255s", call->path) != 1)
        return -1;
    while ((length = read_line(from, line, sizeof line)) > 0) {
        if (strncasecmp(line, "content-length:", 15) == 0)
            size = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding:", 18) == 0)
            is_chunked = 1;
        if (strncasecmp(line, "content-type:", 13) == 0)
            call->has_type = 1;
    }
    return length < 0 ? -1 : is_chunked ? read_chunks(from, call) : read_more(from, call, size);
}

static void (*handler)(struct call *);

static void *converse(void *client) {
    struct call call = {.client = (int)(long)client};
    FILE *from = fdopen(dup(call.client), "r");
    while (from && read_call(from, &call) == 0) {
        handler(&call);
        free(call.body);
        call.body = NULL;
    }
    free(call.body);
    if (from)
        fclose(from);
    close(call.client);
    return NULL;
}

void serve(void (*handle)(struct call *)) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = option("socket");
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path ? path : "/run/docker/plugins/plugin.sock");
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    unlink(address.sun_path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1024) != 0) {
        perror("bind");
        _exit(4);
    }
    handler = handle;
    for (;;) {
        pthread_t thread;
        pthread_attr_t small;
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 512 << 10);
        pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
        if (client >= 0 && pthread_create(&thread, &small, converse, (void *)(long)client) != 0)
            close(client);
        pthread_attr_destroy(&small);
    }
}
