/* SPDX-License-Identifier: GPL-2.0-only */
/* The packet that an ICMP error quotes: most often its headers alone, and eight bytes after them. */
#ifndef FAIRLEAD_QUOTE_H
#define FAIRLEAD_QUOTE_H

#include "common.h"
#include "parse.h"

/* Reads a quoted packet of q->family at q->l3, as it was sent; the quote ends at `end`. -1: too little of it. */
static __always_inline int read_quote(struct xdp_md *ctx, struct packet *q, __u32 end)
{
	__be16 *ports;

	if (q->family == 4) {
		struct iphdr *ip = at(ctx, q->l3, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(IP_OFFSET) || unroutable4(ip->saddr) ||
		    unroutable4(ip->daddr))
			return -1;
		set_addr4(&q->src, ip->saddr);
		set_addr4(&q->dst, ip->daddr);
		q->proto = ip->protocol;
		q->l4 = q->l3 + ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = at(ctx, q->l3, sizeof(*ip));

		if (!ip || ip->version != 6)
			return -1;
		__builtin_memcpy(&q->src, &ip->saddr, sizeof(q->src));
		__builtin_memcpy(&q->dst, &ip->daddr, sizeof(q->dst));
		if (unroutable6(&q->src) || unroutable6(&q->dst))
			return -1;
		q->proto = ip->nexthdr;
		q->l4 = q->l3 + sizeof(*ip);
	}
	if ((q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP) || q->l4 + 8 > end)
		return -1;
	ports = at(ctx, q->l4, 8);
	if (!ports)
		return -1;
	q->sport = ports[0];
	q->dport = ports[1];
	return 0;
}

#endif
