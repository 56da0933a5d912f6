// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tc program beside the XDP program: takes packets that XDP has finished but for their link header, because the
 * kernel did not know the neighbour yet, and gives them to the kernel's neighbour code, which keeps them until it
 * does. The stack could not take them: they come from the VIP, which is an address of this host.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

#define AF_INET 2
#define AF_INET6 10

SEC("tc")
int resolve(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 *mark = (void *)(long)skb->data_meta;
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long error;

	if ((void *)(mark + 1) > data || *mark != FL_UNRESOLVED)
		return TC_ACT_UNSPEC;
	fib.tot_len = skb->len - ETH_HLEN;
	if (skb->protocol == bpf_htons(ETH_P_IP) && data + ETH_HLEN + 20 <= end) {
		fib.family = AF_INET;
		__builtin_memcpy(&fib.ipv4_dst, data + ETH_HLEN + 16, sizeof(fib.ipv4_dst));
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6) && data + ETH_HLEN + 40 <= end) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_dst, data + ETH_HLEN + 24, sizeof(fib.ipv6_dst));
	} else {
		return TC_ACT_SHOT;
	}
	error = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (error != BPF_FIB_LKUP_RET_SUCCESS && error != BPF_FIB_LKUP_RET_NO_NEIGH)
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(fib.ifindex, 0, 0, 0);
}

char _license[] SEC("license") = "GPL";
