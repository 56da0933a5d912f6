/* SPDX-License-Identifier: GPL-2.0-only */
/* The fast path for IPv6, as fast.h is for IPv4: without extension headers. */
#ifndef FAIRLEAD_FAST6_H
#define FAIRLEAD_FAST6_H

#include "fast.h"

struct plain6 {
	struct ethhdr *eth;
	struct ipv6hdr *ip;
	struct tcphdr *tcp; /* or udp: the ports stand in the same place */
	struct udphdr *udp;
	struct fl_addr src, dst;
	__u32 ip_len, time;
	__u8 tcp_flags; /* of UDP: 0 */
};

static __always_inline void plain_rewrite6(const struct plain6 *p, _Bool source, const struct fl_addr *addr, __be16 port)
{
	__u64 change = changed_addr(source ? &p->src : &p->dst, addr, 6) +
		       changed16(source ? p->tcp->source : p->tcp->dest, port);

	if (source) {
		__builtin_memcpy(&p->ip->saddr, addr, sizeof(*addr));
		p->tcp->source = port;
	} else {
		__builtin_memcpy(&p->ip->daddr, addr, sizeof(*addr));
		p->tcp->dest = port;
	}
	p->ip->hop_limit--;
	plain_sum(p->ip->nexthdr, p->tcp, p->udp, change);
}

static __always_inline _Bool plain_unfinished6(const struct plain6 *p)
{
	__u32 length = p->ip_len - sizeof(*p->ip);
	__u8 proto = p->ip->nexthdr;
	__u64 sum = (__u64)bpf_htonl(length) + bpf_htonl(proto);

	if (!unfinished_sums)
		return 0;
	sum += (__u64)p->src.word[0] + p->src.word[1] + p->src.word[2] + p->src.word[3];
	sum += (__u64)p->dst.word[0] + p->dst.word[1] + p->dst.word[2] + p->dst.word[3];
	return (proto == IPPROTO_TCP ? p->tcp->check : p->udp->check) == fold(sum);
}

static __always_inline int plain_reply6(struct xdp_md *ctx, const struct plain6 *p)
{
	struct fl_listen6 key = { .addr = p->src, .port = p->tcp->source, .proto = p->ip->nexthdr };
	struct fl_reply *reply = bpf_map_lookup_elem(&replies6, &key);
	struct fl_server *server;
	struct fl_hop *hop;
	__u32 id;

	if (!reply || reply->flags || direct_lately(reply, p->time))
		return NOT_PLAIN;
	id = reply->server;
	server = bpf_map_lookup_elem(&servers, &id);
	hop = remembered_hop6(&p->dst, p->time);
	if (!server || server->flags || !hop || p->ip_len > hop->mtu || p->ip->hop_limit <= 1 || plain_unfinished6(p))
		return NOT_PLAIN;
	plain_rewrite6(p, 1, &reply->vip, reply->port ? reply->port : key.port);
	plain_link(p->eth, hop);
	count_traffic(reply->service, id, FL_TO_CLIENT, p->ip_len, 0);
	return leave(ctx, hop);
}

/* The entry of a flow; -1: it has none that decides. */
static __always_inline int plain_known6(struct plain_flow *flow, const struct plain6 *p, const struct fl_settings *set)
{
	struct tuple t = { .src = p->src, .dst = p->dst, .sport = p->tcp->source, .dport = p->tcp->dest,
			   .proto = p->ip->nexthdr, .family = 6 };
	struct fl_details6 *details;
	struct fl_flow6 *found;
	__u16 before;

	found = find6(&t, hash6(&t, set), &details, &before);
	return found ? plain_entry(flow, &found->flow, &details->usage, before, p->time) : -1;
}

static __always_inline int plain_request6(struct xdp_md *ctx, const struct plain6 *p)
{
	struct fl_settings *set = get_settings();
	struct plain_flow flow = {};
	struct fl_server *server;
	__u8 forwarding, tos;
	struct fl_hop *hop;
	__u32 spread;

	if (!set || plain_known6(&flow, p, set))
		return NOT_PLAIN;
	server = bpf_map_lookup_elem(&servers, &flow.server_id);
	if (!server || server->generation != flow.generation)
		return NOT_PLAIN;
	forwarding = flow.service->forwarding;
	hop = plain_hop(server, forwarding, 6, p->ip_len, p->time);
	if (!hop || plain_unfinished6(p) || (forwarding == FL_NAT && p->ip->hop_limit <= 1))
		return NOT_PLAIN;
	plain_touch(&flow, p->ip->nexthdr, p->tcp_flags, p->ip_len, p->time);
	count_traffic(flow.service_id, flow.server_id, FL_TO_SERVER, p->ip_len, 0);
	if (forwarding == FL_TUNNEL) {
		spread = mix_flow(fold_addr(&p->src, 6), *(__u32 *)&p->tcp->source);
		tos = p->ip->priority << 4 | p->ip->flow_lbl[0] >> 4;
		return plain_tunnel(ctx, server, hop, spread, p->ip_len, tos, IPPROTO_IPV6);
	}
	if (forwarding == FL_NAT)
		plain_rewrite6(p, 0, &server->addr, server->port ? server->port : p->tcp->dest);
	plain_link(p->eth, hop);
	return leave(ctx, hop);
}

/* An XDP action, or NOT_PLAIN. */
__noinline int fast6(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct plain6 p = { .eth = data, .ip = data + ETH_HLEN, .tcp = data + ETH_HLEN + sizeof(struct ipv6hdr) };
	__u8 to, from;

	p.udp = (void *)p.tcp;
	if ((void *)(p.tcp + 1) > end || p.eth->h_proto != bpf_htons(ETH_P_IPV6) || p.ip->version != 6)
		return NOT_PLAIN;
	p.ip_len = sizeof(*p.ip) + bpf_ntohs(p.ip->payload_len);
	if (p.ip_len < sizeof(*p.ip) + sizeof(*p.tcp) || ETH_HLEN + p.ip_len > frame_length(ctx))
		return NOT_PLAIN;
	if (p.ip->nexthdr == IPPROTO_TCP)
		p.tcp_flags = ((__u8 *)p.tcp)[13];
	else if (p.ip->nexthdr != IPPROTO_UDP)
		return NOT_PLAIN;
	__builtin_memcpy(&p.src, &p.ip->saddr, sizeof(p.src));
	__builtin_memcpy(&p.dst, &p.ip->daddr, sizeof(p.dst));
	p.time = now();
	to = near_bits(fold_addr(&p.dst, 6));
	if (to & FL_NEAR_VIP)
		return p.tcp_flags & (TCP_SYN | TCP_RST) ? NOT_PLAIN : plain_request6(ctx, &p);
	from = near_bits(fold_addr(&p.src, 6));
	if (from & FL_NEAR_SERVER && !unroutable6(&p.src) && !unroutable6(&p.dst) && !opens(p.tcp_flags))
		return plain_reply6(ctx, &p);
	if (!((to | from) & FL_NEAR_SERVER))
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	return NOT_PLAIN;
}

#endif
