/* SPDX-License-Identifier: Apache-2.0 */
/* The headers of the datagram that is answered are rebuilt: a UDP socket does not show them. */
#define _GNU_SOURCE
#include "unreachable.h"

#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "address.h"
#include "batch.h"
#include "descriptors.h"
#include "worker.h"

#define PER_SECOND 1000u /* as icmp_msgs_per_sec of the kernel, which does not count these */
#define FILTER 1 /* ICMP_FILTER of linux/icmp.h, which does not go with netinet/in.h; a bit for each type to drop */
#define NONE (-1)
#define REFUSED (-2)

struct message4 {
	struct icmphdr icmp;
	struct iphdr ip;
	struct udphdr udp;
};

struct message6 {
	struct icmp6_hdr icmp;
	struct ip6_hdr ip;
	struct udphdr udp;
};

static int raw4 = NONE, raw6 = NONE;
static uint64_t second;
static unsigned told;

static bool may_tell(void)
{
	if (worker.now_ms / 1000 != second) {
		second = worker.now_ms / 1000;
		told = 0;
	}
	return told++ < PER_SECOND;
}

/* A socket that sends and hears nothing. */
static int open_raw(int family)
{
	int fd = socket(family, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6);
	const uint32_t all = ~0u;
	struct icmp6_filter all6;

	if (fd < 0)
		return REFUSED;
	ICMP6_FILTER_SETBLOCKALL(&all6);
	if (family == AF_INET)
		setsockopt(fd, SOL_RAW, FILTER, &all, sizeof(all));
	else
		setsockopt(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &all6, sizeof(all6));
	descriptors_took(1);
	return fd;
}

static uint16_t checksum(const void *data, size_t length)
{
	const uint8_t *byte = data;
	uint32_t sum = 0;

	for (size_t i = 0; i + 1 < length; i += 2) /* all that is summed here is even */
		sum += (uint32_t)(byte[i] << 8 | byte[i + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)~sum);
}

static struct udphdr udp_of(const struct fl_address *peer, const struct fl_address *local, size_t length)
{
	return (struct udphdr){.source = htons(peer->port),
			       .dest = htons(local->port),
			       .len = htons((uint16_t)(sizeof(struct udphdr) + length))};
}

static void transmit(int fd, const struct fl_address *peer, uint32_t scope, const struct fl_address *local, void *data,
		     size_t length)
{
	struct sockaddr_storage to;
	union batch_control control;
	struct iovec part = {data, length};
	struct msghdr message = {.msg_name = &to, .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};

	message.msg_namelen = address_to_socket(peer, 0, &to);
	if (to.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&to)->sin6_scope_id = scope;
	message.msg_controllen = batch_leave_from(&control, local, scope);
	sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void tell4(const struct fl_address *peer, const struct fl_address *local, size_t length)
{
	struct message4 message = {
		.icmp = {.type = ICMP_DEST_UNREACH, .code = ICMP_PORT_UNREACH},
		.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP},
		.udp = udp_of(peer, local, length),
	};

	message.ip.tot_len = htons((uint16_t)(sizeof(message.ip) + sizeof(message.udp) + length));
	memcpy(&message.ip.saddr, peer->ip + 12, 4);
	memcpy(&message.ip.daddr, local->ip + 12, 4);
	message.ip.check = checksum(&message.ip, sizeof(message.ip));
	message.icmp.checksum = checksum(&message, sizeof(message));
	transmit(raw4, peer, 0, local, &message, sizeof(message));
}

static void tell6(const struct fl_address *peer, uint32_t scope, const struct fl_address *local, size_t length)
{
	struct message6 message = {
		.icmp = {.icmp6_type = ICMP6_DST_UNREACH, .icmp6_code = ICMP6_DST_UNREACH_NOPORT},
		.udp = udp_of(peer, local, length),
	};

	message.ip.ip6_flow = htonl(6u << 28);
	message.ip.ip6_plen = message.udp.len;
	message.ip.ip6_nxt = IPPROTO_UDP;
	message.ip.ip6_hlim = 64;
	memcpy(&message.ip.ip6_src, peer->ip, 16);
	memcpy(&message.ip.ip6_dst, local->ip, 16);
	transmit(raw6, peer, scope, local, &message, sizeof(message)); /* the kernel fills the checksum in */
}

void unreachable_tell(const struct fl_address *peer, uint32_t scope, const struct fl_address *local, size_t length)
{
	int *raw = peer->family == 4 ? &raw4 : &raw6;

	if (*raw == NONE)
		*raw = open_raw(peer->family == 4 ? AF_INET : AF_INET6);
	if (*raw == REFUSED || !may_tell())
		return;
	if (peer->family == 4)
		tell4(peer, local, length);
	else
		tell6(peer, scope, local, length);
}

void unreachable_close(void)
{
	if (raw4 >= 0)
		close(raw4);
	if (raw6 >= 0)
		close(raw6);
}
