/* SPDX-License-Identifier: GPL-2.0-only */
/* Headers of IP and what stands in them, for every program; declares no map. */
#ifndef FAIRLEAD_INET_H
#define FAIRLEAD_INET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

#define AF_INET 2 /* the header with these, like linux/icmp.h, needs a C library */
#define AF_INET6 10
#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

struct icmphdr {
	__u8 type, code;
	__sum16 checksum;
	__be32 rest;
};

enum { ICMP_ECHOREPLY = 0, ICMP_DEST_UNREACH = 3, ICMP_ECHO = 8, ICMP_TIME_EXCEEDED = 11, ICMP_PARAMETERPROB = 12 };
enum { ICMP_PORT_UNREACH = 3, ICMP_FRAG_NEEDED = 4 };
enum {
	ICMPV6_DEST_UNREACH = 1,
	ICMPV6_PKT_TOOBIG = 2,
	ICMPV6_PARAMPROB = 4,
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
};
enum { ICMPV6_PORT_UNREACH = 4 };

static __always_inline void set_addr4(struct fl_addr *addr, __be32 v4)
{
	addr->word[0] = 0;
	addr->word[1] = 0;
	addr->word[2] = bpf_htonl(0xffff);
	addr->word[3] = v4;
}

static __always_inline _Bool same_addr(const struct fl_addr *a, const struct fl_addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static __always_inline __u32 fold_addr(const struct fl_addr *a, __u8 family)
{
	if (family == 4)
		return a->word[3];
	return a->word[0] ^ a->word[1] * 3 ^ a->word[2] * 5 ^ a->word[3] * 7;
}

#endif
