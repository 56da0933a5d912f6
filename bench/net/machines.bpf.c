// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the clients' and servers' machines run on their interfaces: a program that makes frames, one that counts those
 * that arrive, and the least a load balancer could do.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME 60
#define PORTS 50000 /* flows that share a source address */
#define DISCARD 9   /* the port of the frames that are counted */

struct counters { /* as in load/frames.c */
	__u64 window, flows, sent, first_ns, arrived, last_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[FRAME]);
} template SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

__u32 turn;

/* The next flow's frame, out by the interface it is given, unless too many are under way. The checksum of UDP is 0. */
SEC("xdp")
int make_frame(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, flow = turn, host, sum;
	void *frame = bpf_map_lookup_elem(&template, &zero);
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	struct counters *count = bpf_map_lookup_elem(&counters, &zero);

	if (!count || count->sent - *(volatile __u64 *)&count->arrived >= count->window)
		return XDP_DROP;
	if (count->sent++ == 0)
		count->first_ns = bpf_ktime_get_ns();
	if (!frame || data + FRAME > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, frame, FRAME);
	host = flow / PORTS;
	/* The source address grows by `host`, so its complement's sum does (RFC 1624); 16 hosts never carry further. */
	ip->saddr = bpf_htonl(bpf_ntohl(ip->saddr) + host);
	sum = (__u16)~bpf_ntohs(ip->check) + host;
	ip->check = bpf_htons((__u16)~((sum & 0xffff) + (sum >> 16)));
	udp->source = bpf_htons((__u16)(1024 + flow % PORTS));
	turn = flow + 1 < count->flows ? flow + 1 : 0;
	return XDP_TX;
}

/* Counts and drops those frames, also in a tunnel; the rest is for the stack. */
SEC("xdp")
int count_frames(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 zero = 0;
	struct counters *count;

	if ((void *)(udp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->protocol != IPPROTO_IPIP && (ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(DISCARD)))
		return XDP_PASS;
	count = bpf_map_lookup_elem(&counters, &zero);
	if (count) {
		count->last_ns = bpf_ktime_get_ns();
		__sync_fetch_and_add(&count->arrived, 1);
	}
	return XDP_DROP;
}

SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The floor: back where it came from. */
SEC("xdp")
int swap_macs(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u8 saved[ETH_ALEN];

	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	__builtin_memcpy(saved, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, saved, ETH_ALEN);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
