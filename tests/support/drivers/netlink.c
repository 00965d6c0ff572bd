/* The few requests of rtnetlink that a network driver needs. */
#include "driver.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    struct nlmsghdr head;
    char room[1024];
};

static struct rtattr *add(struct request *request, int type, const void *data, size_t size) {
    struct rtattr *attribute = (struct rtattr *)((char *)request + NLMSG_ALIGN(request->head.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(attribute), data, size);
    request->head.nlmsg_len = NLMSG_ALIGN(request->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
    return attribute;
}

static void finish(struct request *request, struct rtattr *outer) {
    outer->rta_len = (char *)request + NLMSG_ALIGN(request->head.nlmsg_len) - (char *)outer;
}

static void begin(struct request *request, int type, int flags, const void *data, size_t size) {
    memset(request, 0, sizeof *request);
    request->head.nlmsg_len = NLMSG_LENGTH(size);
    request->head.nlmsg_type = type;
    request->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    memcpy(NLMSG_DATA(&request->head), data, size);
}

static int exchange(struct request *request) {
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char room[1024];
    } reply;
    int failed = 0, link = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (sendto(link, request, request->head.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0 ||
        recv(link, &reply, sizeof reply, 0) < 0)
        failed = errno;
    else if (reply.head.nlmsg_type == NLMSG_ERROR)
        failed = -reply.error.error;
    close(link);
    return failed;
}

int link_create(const char *name, const char *peer) {
    struct request request;
    struct ifinfomsg any = {0};
    begin(&request, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &any, sizeof any);
    add(&request, IFLA_IFNAME, name, strlen(name) + 1);
    struct rtattr *info = add(&request, IFLA_LINKINFO, NULL, 0);
    add(&request, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = add(&request, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *other = add(&request, VETH_INFO_PEER, &any, sizeof any);
    add(&request, IFLA_IFNAME, peer, strlen(peer) + 1);
    finish(&request, other);
    finish(&request, data);
    finish(&request, info);
    return exchange(&request);
}

static int change(const char *name, int type, unsigned flags) {
    struct request request;
    struct ifinfomsg one = {.ifi_index = (int)if_nametoindex(name), .ifi_flags = flags, .ifi_change = flags};
    if (!one.ifi_index)
        return errno;
    begin(&request, type, 0, &one, sizeof one);
    return exchange(&request);
}

int link_delete(const char *name) { return change(name, RTM_DELLINK, 0); }

int link_up(const char *name) { return change(name, RTM_NEWLINK, IFF_UP); }

int address_add(const char *name, const char *address, int prefix) {
    struct request request;
    struct in_addr raw;
    struct ifaddrmsg one = {.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = if_nametoindex(name)};
    inet_pton(AF_INET, address, &raw);
    begin(&request, RTM_NEWADDR, NLM_F_CREATE, &one, sizeof one);
    add(&request, IFA_LOCAL, &raw, sizeof raw);
    add(&request, IFA_ADDRESS, &raw, sizeof raw);
    return exchange(&request);
}
