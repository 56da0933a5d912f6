/* SPDX-License-Identifier: Apache-2.0 */
/* A flood of SYNs from sources that do not exist, at a fixed rate; needs a raw socket. */
#define _GNU_SOURCE /* sendmmsg */
#include "load.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 32

struct syn {
	struct iphdr ip;
	struct tcphdr tcp;
};

static uint32_t add_up(const void *data, size_t length)
{
	const uint16_t *word = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < length / 2; i++)
		sum += word[i];
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

/* The kernel fills in what is 0 of the IP header. */
static void make(struct syn *syn, const struct target *target, uint32_t source, uint64_t number)
{
	memset(syn, 0, sizeof(*syn));
	syn->ip.version = 4;
	syn->ip.ihl = 5;
	syn->ip.ttl = 64;
	syn->ip.protocol = IPPROTO_TCP;
	syn->ip.saddr = htonl(source + (uint32_t)(number % 65536));
	syn->ip.daddr = target->address.sin_addr.s_addr;
	syn->tcp.source = htons((uint16_t)(1024 + number * 7919 % 60000));
	syn->tcp.dest = target->address.sin_port;
	syn->tcp.seq = htonl((uint32_t)(number * 2654435761u));
	syn->tcp.doff = 5;
	syn->tcp.syn = 1;
	syn->tcp.window = htons(65535);
	syn->tcp.check = fold(add_up(&syn->ip.saddr, 8) + htons(IPPROTO_TCP) + htons(sizeof(syn->tcp)) +
			      add_up(&syn->tcp, sizeof(syn->tcp)));
}

int run_flood(struct target *target, double per_second, long count, const char *from)
{
	int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	struct syn syn[BATCH];
	struct iovec part[BATCH];
	struct mmsghdr message[BATCH];
	struct in_addr source;
	uint64_t start = now_ns(), sent = 0;

	if (fd < 0)
		fail("socket");
	if (inet_pton(AF_INET, from, &source) != 1)
		fail(from);
	while (sent < (uint64_t)count) {
		struct timespec pause = {.tv_nsec = 200000};
		int done;

		if ((double)sent > (double)(now_ns() - start) * per_second / 1e9) {
			nanosleep(&pause, NULL);
			continue;
		}
		for (unsigned i = 0; i < BATCH; i++) {
			make(&syn[i], target, ntohl(source.s_addr), sent + i);
			part[i] = (struct iovec){.iov_base = &syn[i], .iov_len = sizeof(syn[i])};
			message[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &target->address,
								  .msg_namelen = sizeof(target->address),
								  .msg_iov = &part[i],
								  .msg_iovlen = 1}};
		}
		done = sendmmsg(fd, message, BATCH, 0);
		if (done < 0)
			fail("sendmmsg");
		sent += (uint64_t)done;
	}
	printf("{\"sent\": %llu, \"seconds\": %.3f}\n", (unsigned long long)sent, (double)(now_ns() - start) / 1e9);
	return 0;
}
