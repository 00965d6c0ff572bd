/* A plugin that does what its arguments say, for tests: one static program, and nothing else in its root.
 *
 *   listen=MS     listen after so many milliseconds (0)       never         never listen
 *   end=CODE@MS   exit by itself, after that long             ignore-term   go on after SIGTERM
 *   out=TEXT      a line on standard output                   err=TEXT      a line on standard error
 *   wedge         accept, never answer                        flood=BYTES   so many bytes a second on standard output
 *   sick=N        answer /health with an error from the N-th call on
 *   allocate=MIB  take so much memory once it listens         count=N       so many numbered lines a second, in order
 *
 * It answers POST /exit/CODE by exiting, /env with its environment, /args with its arguments, /write/BYTES/PIECE by
 * writing so many bytes of 128-byte lines on standard output, PIECE at once, with the nanoseconds that this took, and
 * everything else with what it implements. The socket is the one that the environment names in SOCKET, or plugin.sock.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static int arguments;
static char **argument;

static void pause_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

static const char *find(const char *key) {
    size_t length = strlen(key);
    for (int i = 1; i < arguments; i++)
        if (strncmp(argument[i], key, length) == 0 && (argument[i][length] == '=' || argument[i][length] == 0))
            return argument[i][length] == '=' ? argument[i] + length + 1 : "";
    return NULL;
}

static void leave(int number) {
    (void)number;
    _exit(0);
}

static void flood(long bytes_per_second) {
    static char line[1024];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    long per_tick = bytes_per_second / 100;
    for (;;) {
        for (long sent = 0; sent < per_tick; sent += sizeof line)
            if (write(1, line, sizeof line) < 0)
                _exit(3);
        pause_ms(10);
    }
}

static void count_up(long lines_per_second) {
    for (long number = 0;;) {
        for (long in_tick = 0; in_tick < (lines_per_second + 99) / 100; in_tick++)
            if (dprintf(1, "%ld\n", number++) < 0)
                _exit(3);
        pause_ms(10);
    }
}

static long write_lines(const char *how) {
    static char piece[65536];
    char *slash;
    long left = strtol(how, &slash, 10), size = *slash == '/' ? atol(slash + 1) : 0;
    if (size <= 0 || size > (long)sizeof piece)
        size = sizeof piece;
    for (size_t at = 0; at < sizeof piece; at++)
        piece[at] = at % 128 == 127 ? '\n' : 'x';
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (; left > 0; left -= size)
        for (long sent = 0; sent < size;) {
            ssize_t done = write(1, piece + sent, size - sent);
            if (done < 0)
                _exit(3);
            sent += done;
        }
    clock_gettime(CLOCK_MONOTONIC, &to);
    return (to.tv_sec - from.tv_sec) * 1000000000L + to.tv_nsec - from.tv_nsec;
}

static void answer(int client) {
    char request[4096], body[65536] = "{\"Implements\": [\"VolumeDriver\"]}", head[256];
    ssize_t got = read(client, request, sizeof request - 1);
    if (got <= 0)
        return;
    request[got] = 0;
    char *path = strchr(request, ' ');
    path = path ? path + 1 : request;
    char **list = strncmp(path, "/env", 4) == 0 ? environ : strncmp(path, "/args", 5) == 0 ? argument : NULL;
    if (strncmp(path, "/exit/", 6) == 0)
        _exit(atoi(path + 6));
    if (list) {
        size_t used = 0;
        body[0] = 0;
        for (; *list; list++)
            used += snprintf(body + used, sizeof body - used, "%s\n", *list);
    }
    if (strncmp(path, "/err/", 5) == 0) /* an error of a plugin, which HTTP knows nothing of */
        snprintf(body, sizeof body, "{\"Err\": \"%.*s\"}", (int)strcspn(path + 5, " "), path + 5);
    static long health_calls;
    if (strncmp(path, "/health", 7) == 0 && find("sick") && ++health_calls >= atol(find("sick")))
        snprintf(body, sizeof body, "{\"Err\": \"sick\"}");
    if (strncmp(path, "/write/", 7) == 0)
        snprintf(body, sizeof body, "%ld\n", write_lines(path + 7));
    snprintf(head, sizeof head,
             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
             strlen(body));
    if (write(client, head, strlen(head)) < 0 || write(client, body, strlen(body)) < 0)
        return;
}

static void serve(void) {
    const char *name = getenv("SOCKET") ? getenv("SOCKET") : "plugin.sock";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "/run/docker/plugins/%s", name);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
        perror("bind");
        _exit(4);
    }
    if (find("allocate")) {
        size_t size = (size_t)atol(find("allocate")) << 20;
        volatile char *memory = malloc(size); /* a plain one is optimised away */
        for (size_t at = 0; memory && at < size; at += 1024)
            memory[at] = 1;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        if (find("wedge"))
            continue; /* kept open, never answered */
        answer(client);
        close(client);
    }
}

static void in_child(void (*work)(long), long value) {
    if (fork() == 0) {
        work(value);
        _exit(0);
    }
}

static void end_later(long unused) {
    (void)unused;
    const char *text = find("end"), *at = strchr(text, '@');
    pause_ms(at ? atol(at + 1) : 0);
    kill(1, SIGUSR1);
}

static void end_now(int number) {
    (void)number;
    _exit(atoi(find("end")));
}

int main(int count, char **words) {
    arguments = count;
    argument = words;
    signal(SIGTERM, find("ignore-term") ? SIG_IGN : leave);
    signal(SIGPIPE, SIG_IGN);
    if (find("out"))
        dprintf(1, "%s\n", find("out"));
    if (find("err"))
        dprintf(2, "%s\n", find("err"));
    if (find("end")) {
        if (!strchr(find("end"), '@'))
            _exit(atoi(find("end")));
        signal(SIGUSR1, end_now);
        in_child(end_later, 0);
    }
    if (find("flood"))
        in_child(flood, atol(find("flood")));
    if (find("count"))
        in_child(count_up, atol(find("count")));
    if (find("never"))
        for (;;)
            pause();
    if (find("listen"))
        pause_ms(atol(find("listen")));
    serve();
}
