// SPDX-License-Identifier: GPL-2.0-only
/* Programs of the test bed: what a veth needs to receive, and a server that takes tunnelled packets out. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* IP in IP, all four ways: the outer header is cut off, the rest is given to the stack. */
SEC("xdp")
int decapsulate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data, saved;
	__u8 *ip = data + sizeof(*eth);
	__u32 outer;
	__u8 next;

	if (data + sizeof(*eth) + 40 > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		outer = 20;
		next = ip[9];
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		outer = 40;
		next = ip[6];
	} else {
		return XDP_PASS;
	}
	if (next != IPPROTO_IPIP && next != IPPROTO_IPV6)
		return XDP_PASS;
	saved = *eth;
	saved.h_proto = next == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (bpf_xdp_adjust_head(ctx, outer))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(saved) > end)
		return XDP_DROP;
	*(struct ethhdr *)data = saved;
	return XDP_PASS;
}

/* Programs of tc that are not ours: one looks on, one ends the search for others. */
SEC("tc")
int watch(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

SEC("tc")
int end_here(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
