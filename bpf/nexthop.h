/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Next hops by the kernel's routing table. Each CPU remembers what it was told for `hop_ttl` jiffies, by
 * destination alone: where policy routing looks at more than that, the agent sets hop_ttl to 0.
 */
#ifndef FAIRLEAD_NEXTHOP_H
#define FAIRLEAD_NEXTHOP_H

#include "common.h"

__noinline int hop_ask(struct xdp_md *ctx, struct fl_hop *hop, const struct fl_addr *dst, int family)
{
	struct bpf_fib_lookup fib = {};
	int error;

	if (!hop || !dst)
		return -1;
	hop->ifindex = 0;
	fib.ifindex = ctx->ingress_ifindex;
	fib.tot_len = 1; /* so that the answer carries the MTU */
	if (family == 4) {
		fib.family = AF_INET;
		fib.ipv4_dst = dst->word[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_dst, dst, sizeof(*dst));
	}
	error = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (error)
		return error;
	hop->dst = *dst;
	hop->asked = now();
	hop->mtu = fib.mtu_result;
	__builtin_memcpy(hop->dmac, fib.dmac, ETH_ALEN);
	__builtin_memcpy(hop->smac, fib.smac, ETH_ALEN);
	if (family == 4)
		hop->gateway = fib.family != AF_INET || fib.ipv4_dst != dst->word[3];
	else
		hop->gateway = !same_addr((struct fl_addr *)fib.ipv6_dst, dst);
	hop->ifindex = fib.ifindex;
	return 0;
}

/*
 * Whether a packet may be for this node itself, by what bpf_fib_lookup said. Where forwarding is off it does not look
 * any further; what is not its own the stack then drops.
 */
static __always_inline _Bool may_be_own(int error)
{
	return error == BPF_FIB_LKUP_RET_NOT_FWDED || error == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* 0 and *found, or what bpf_fib_lookup said instead. */
static __always_inline int hop_find(struct xdp_md *ctx, const struct fl_addr *dst, __u8 family, struct fl_hop **found)
{
	__u32 index = address_hash(fold_addr(dst, family), FL_HOP_BITS);
	struct fl_hop *hop = bpf_map_lookup_elem(&hops, &index);

	if (!hop)
		return -1;
	*found = hop;
	if (hop->ifindex && now() - hop->asked < hop_ttl && same_addr(&hop->dst, dst))
		return 0;
	return hop_ask(ctx, hop, dst, family);
}

#endif
