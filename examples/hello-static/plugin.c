/* The smallest plugin: answers HTTP on /run/docker/plugins/hello.sock, one call a connection, and ends on SIGTERM. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static const struct sockaddr_un address = {AF_UNIX, "/run/docker/plugins/hello.sock"};

static void stop(int number) {
    (void)number;
    unlink(address.sun_path);
    _exit(0);
}

/* Reads headers and body, because closing a unix socket with unread bytes in it resets the caller. */
static void serve(int peer) {
    char request[65536] = "", answer[256];
    size_t have = 0, want = sizeof request - 1;
    while (have < want) {
        ssize_t got = read(peer, request + have, want - have);
        if (got <= 0)
            return;
        have += (size_t)got;
        char *end = strstr(request, "\r\n\r\n");
        if (end != NULL && want == sizeof request - 1) {
            char *length = strcasestr(request, "\r\nContent-Length:");
            size_t body = length != NULL && length < end ? strtoul(length + 17, NULL, 10) : 0;
            want = (size_t)(end + 4 - request);
            want += body < sizeof request - 1 - want ? body : sizeof request - 1 - want;
        }
    }
    int activate = strncmp(request, "POST /Plugin.Activate ", 22) == 0;
    const char *body = activate ? "{\"Implements\":[\"hello\"]}\n" : "{\"Hello\":\"world\"}\n";
    int size = snprintf(answer, sizeof answer,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.plugins.v1.2+json\r\n"
                        "Content-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(body), body);
    if (write(peer, answer, (size_t)size) != size)
        perror("cannot answer");
}

int main(void) {
    const struct timeval patience = {5, 0}; /* one call at a time: a silent caller may not stop the others for ever */
    signal(SIGTERM, stop);                  /* process 1 has no default action for it */
    signal(SIGPIPE, SIG_IGN);
    unlink(address.sun_path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0) {
        perror(address.sun_path);
        return 1;
    }
    printf("listening on %s\n", address.sun_path);
    fflush(stdout);
    for (;;) {
        int peer = accept(listener, NULL, NULL);
        if (peer < 0)
            continue;
        setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        serve(peer);
        close(peer);
    }
}
