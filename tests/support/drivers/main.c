/* The first argument is what it is: volume, log, authorization, network (with ipam) or metrics; then options:
 *
 *   types=A,B         what it answers to Plugin.Activate         activate=404   it does not know that call
 *   strict            400 for a call without JSON or its type    errors=200     errors have status 200
 *   answer=html       what is no JSON, to each call              hang=PATH      never answer this call
 *   delay=PATH@MS     answer this call after so long             listen=MS      listen after so long
 *   deny=TEXT         deny requests whose URI has it             socket=PATH    (/run/docker/plugins/plugin.sock)
 *   how=fuse|bind|tmpfs|none   how a volume is mounted   at=DIRECTORY   where (/mnt/volumes)
 *   prefix=10.213.77  of the addresses that it gives
 *   clean             unmount what is at a mount point first     data=DIRECTORY  of the volumes and logs (/data)
 *
 * Volumes are directories of the data. What is mounted is forgotten when it is killed. POST /Test.Calls answers how often
 * each call came, /Test.Mounts what is mounted.
 */
#include "driver.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char **arguments;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char path[256];
    int times;
} calls[64];

const char *option(const char *key) {
    size_t length = strlen(key);
    for (char **each = arguments; *each; each++)
        if (strncmp(*each, key, length) == 0 && ((*each)[length] == '=' || (*each)[length] == 0))
            return (*each)[length] == '=' ? *each + length + 1 : "";
    return NULL;
}

static void count(const char *path) {
    pthread_mutex_lock(&lock);
    for (size_t at = 0; at < sizeof calls / sizeof *calls; at++)
        if (calls[at].times == 0 || strcmp(calls[at].path, path) == 0) {
            snprintf(calls[at].path, sizeof calls[at].path, "%s", path);
            calls[at].times++;
            break;
        }
    pthread_mutex_unlock(&lock);
}

static void answer_counts(struct call *call) {
    char text[8192] = "{";
    size_t used = 1;
    for (size_t at = 0; at < sizeof calls / sizeof *calls && calls[at].times; at++)
        used += snprintf(text + used, sizeof text - used, "%s\"%s\": %d", at ? ", " : "", calls[at].path, calls[at].times);
    snprintf(text + used, sizeof text - used, "}");
    answer(call, 200, "%s", text);
}

static void activate(struct call *call) {
    const char *types = option("types");
    char list[512] = "";
    size_t used = 0;
    if (option("activate")) {
        answer(call, atoi(option("activate")), "404 page not found\n");
        return;
    }
    for (const char *at = types ? types : "VolumeDriver"; *at;) {
        size_t length = strcspn(at, ",");
        used += snprintf(list + used, sizeof list - used, "%s\"%.*s\"", used ? ", " : "", (int)length, at);
        at += length + (at[length] == ',');
    }
    answer(call, 200, "{\"Implements\": [%s]}", list);
}

static void delay(const char *path) {
    const char *which = option("delay"), *at = which ? strchr(which, '@') : NULL;
    if (at && strncmp(path, which, at - which) == 0 && path[at - which] == 0)
        usleep(atol(at + 1) * 1000);
    if (option("hang") && strcmp(option("hang"), path) == 0)
        for (;;)
            pause();
}

static void handle(struct call *call) {
    count(call->path);
    delay(call->path);
    if (strcmp(call->path, "/Test.Calls") == 0)
        answer_counts(call);
    else if (option("answer"))
        answer(call, 200, "<html>%s</html>", call->path);
    else if (option("strict") && (call->size == 0 || call->body[0] != '{' || !call->has_type))
        answer_error(call, "400 no JSON, or no type of it");
    else if (strcmp(call->path, "/Plugin.Activate") == 0)
        activate(call);
    else if (!volume_call(call) && !log_call(call) && !authorization_call(call) && !network_call(call))
        answer(call, 404, "404 page not found\n");
    else
        return;
}

int main(int number, char **words) {
    (void)number;
    arguments = words;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, SIG_DFL);
    if (getpid() == 1) { /* the default action is none for the first process of a namespace */
        struct sigaction leave = {.sa_handler = (void (*)(int))_exit};
        sigaction(SIGTERM, &leave, NULL);
    }
    if (option("listen"))
        usleep(atol(option("listen")) * 1000);
    serve(handle);
}
