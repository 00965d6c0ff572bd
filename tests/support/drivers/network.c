/* NetworkDriver and IpamDriver of one plugin: a veth pair for each endpoint, whose end on the host has the gateway's
 * address. Also the kinds that need no file of their own: authorization and metrics.
 */
#include "driver.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *prefix(void) { return option("prefix") ? option("prefix") : "10.213.77"; }

static void names_of(struct call *call, char *host, char *inner) {
    char id[128];
    text_of(call, "EndpointID", id, sizeof id);
    snprintf(host, 16, "mh%.8s", id);
    snprintf(inner, 16, "mc%.8s", id);
}

static void create_endpoint(struct call *call) {
    char host[16], inner[16];
    names_of(call, host, inner);
    int failed = link_create(host, inner);
    if (!failed)
        failed = link_up(host);
    if (failed)
        answer_error(call, "cannot create %s: %s", host, strerror(failed));
    else
        answer(call, 200, "{\"Interface\": {}}");
}

static void join(struct call *call) {
    char host[16], inner[16], gateway[64];
    names_of(call, host, inner);
    snprintf(gateway, sizeof gateway, "%s.1", prefix());
    int failed = address_add(host, gateway, 24);
    if (failed)
        answer_error(call, "cannot give %s its address: %s", host, strerror(failed));
    else
        answer(call, 200, "{\"InterfaceName\": {\"SrcName\": \"%s\", \"DstPrefix\": \"eth\"}, \"Gateway\": \"%s\"}", inner,
               gateway);
}

static void delete_endpoint(struct call *call) {
    char host[16], inner[16];
    names_of(call, host, inner);
    link_delete(host);
    answer(call, 200, "{}");
}

static void give_address(struct call *call) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int last = 1;
    char wanted[64], type[64];
    text_of(call, "Address", wanted, sizeof wanted);
    text_of(call, "RequestAddressType", type, sizeof type);
    pthread_mutex_lock(&lock);
    if (wanted[0])
        answer(call, 200, "{\"Address\": \"%s/24\"}", wanted);
    else if (strstr(type, "gateway"))
        answer(call, 200, "{\"Address\": \"%s.1/24\"}", prefix());
    else
        answer(call, 200, "{\"Address\": \"%s.%d/24\"}", prefix(), ++last);
    pthread_mutex_unlock(&lock);
}

static int ipam_call(struct call *call) {
    const char *path = call->path;
    if (strcmp(path, "/IpamDriver.GetCapabilities") == 0)
        answer(call, 200, "{\"RequiresMACAddress\": false}");
    else if (strcmp(path, "/IpamDriver.GetDefaultAddressSpaces") == 0)
        answer(call, 200, "{\"LocalDefaultAddressSpace\": \"local\", \"GlobalDefaultAddressSpace\": \"global\"}");
    else if (strcmp(path, "/IpamDriver.RequestPool") == 0)
        answer(call, 200, "{\"PoolID\": \"pool\", \"Pool\": \"%s.0/24\", \"Data\": {}}", prefix());
    else if (strcmp(path, "/IpamDriver.RequestAddress") == 0)
        give_address(call);
    else if (strncmp(path, "/IpamDriver.Release", 19) == 0)
        answer(call, 200, "{}");
    else
        return 0;
    return 1;
}

int network_call(struct call *call) {
    const char *path = call->path;
    if (strcmp(path, "/NetworkDriver.GetCapabilities") == 0)
        answer(call, 200, "{\"Scope\": \"local\", \"ConnectivityScope\": \"local\"}");
    else if (strcmp(path, "/NetworkDriver.CreateEndpoint") == 0)
        create_endpoint(call);
    else if (strcmp(path, "/NetworkDriver.DeleteEndpoint") == 0)
        delete_endpoint(call);
    else if (strcmp(path, "/NetworkDriver.Join") == 0)
        join(call);
    else if (strcmp(path, "/NetworkDriver.EndpointOperInfo") == 0)
        answer(call, 200, "{\"Value\": {}}");
    else if (strncmp(path, "/NetworkDriver.", 15) == 0 || strncmp(path, "/MetricsCollector.", 18) == 0)
        answer(call, 200, "{}");
    else
        return ipam_call(call);
    return 1;
}

int authorization_call(struct call *call) {
    char uri[1024];
    const char *denied = option("deny");
    if (strncmp(call->path, "/AuthZPlugin.AuthZ", 18) != 0)
        return 0;
    text_of(call, "RequestUri", uri, sizeof uri);
    if (denied && strstr(uri, denied))
        answer(call, 200, "{\"Allow\": false, \"Msg\": \"%s is denied\"}", denied);
    else
        answer(call, 200, "{\"Allow\": true, \"Msg\": \"\"}");
    return 1;
}
