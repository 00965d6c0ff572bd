/* What a container does: each argument is one step.
 *
 *   out:TEXT, err:TEXT   a line on standard output or error
 *   long:N               a line of N times x
 *   tick:N               N lines "tick 0" ..., 20 ms apart
 *   write:PATH:TEXT      a file
 *   pause                until SIGTERM
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stop(int number)
{
    (void)number;
    _exit(0);
}

static const char *after(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0 ? text + strlen(start) : NULL;
}

int main(int count, char **arguments)
{
    signal(SIGTERM, stop);
    setvbuf(stdout, NULL, _IOLBF, 1 << 20);
    for (int at = 1; at < count; at++) {
        const char *rest;
        if ((rest = after(arguments[at], "out:")))
            printf("%s\n", rest);
        else if ((rest = after(arguments[at], "err:")))
            fprintf(stderr, "%s\n", rest);
        else if ((rest = after(arguments[at], "long:"))) {
            for (int left = atoi(rest); left > 0; left--)
                putchar('x');
            putchar('\n');
        } else if ((rest = after(arguments[at], "tick:"))) {
            for (int number = 0; number < atoi(rest); number++) {
                printf("tick %d\n", number);
                usleep(20000);
            }
        } else if ((rest = after(arguments[at], "write:"))) {
            char path[4096];
            const char *colon = strchr(rest, ':');
            snprintf(path, sizeof path, "%.*s", (int)(colon - rest), rest);
            int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
            if (file < 0 || write(file, colon + 1, strlen(colon + 1)) < 0) {
                perror(path);
                return 1;
            }
            close(file);
        } else if (strcmp(arguments[at], "pause") == 0)
            pause();
    }
    return 0;
}
