/* A plugin of each kind, for tests with real consumers: one static program, and nothing else in its root. main.c has
 * its options.
 */
#ifndef DRIVER_H
#define DRIVER_H
#define _GNU_SOURCE
#include <stddef.h>

struct call {
    int client;
    char path[256];
    char *body; /* with a null byte after it */
    size_t size;
    int has_type; /* whether it has a Content-Type */
};

/* main.c: the value of KEY=VALUE among the arguments, "" for KEY alone, NULL where it is missing. */
const char *option(const char *key);

/* http.c */
void serve(void (*handle)(struct call *));
void answer(struct call *call, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void answer_error(struct call *call, const char *format, ...) __attribute__((format(printf, 2, 3)));
int begin_stream(struct call *call);
int send_chunk(struct call *call, const void *data, size_t size); /* of size 0: the last one */
/* The string that KEY has first in the body, unescaped; "" where there is none. */
const char *text_of(struct call *call, const char *key, char *into, size_t room);
int flag_of(struct call *call, const char *key);

/* The kinds: whether the call was theirs, and then it is answered. */
int volume_call(struct call *call);
int log_call(struct call *call);
int authorization_call(struct call *call);
int network_call(struct call *call);

/* fuse.c: serve a directory at a mount point, from a thread of this process. 0 or an errno. */
int mount_fuse(const char *directory, const char *point);

/* netlink.c: 0 or an errno. */
int link_create(const char *name, const char *peer);
int link_delete(const char *name);
int link_up(const char *name);
int address_add(const char *name, const char *address, int prefix);

#endif
