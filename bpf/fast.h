/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fast path: an untagged IPv4 packet without options of a flow that is known, or a nat server's plain reply,
 * whose next hop is remembered; or a packet that concerns no service. It decides before it touches anything:
 * whatever is not plain is left, unchanged, to the general path, which comes to the same result.
 */
#ifndef FAIRLEAD_FAST_H
#define FAIRLEAD_FAST_H

#include "checksum.h"
#include "common.h"
#include "flow.h"
#include "rewrite.h"
#include "select.h"

enum { NOT_PLAIN = -1, OPENING = -2 };

struct plain {
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp; /* or udp: the ports stand in the same place */
	struct udphdr *udp;
	__u32 ip_len, time;
	__u8 tcp_flags; /* of UDP: 0 */
};

/* Both in one load, as a key has them. */
static __always_inline __u32 plain_ports(const struct plain *p)
{
	return *(__u32 *)&p->tcp->source;
}

static __always_inline struct fl_hop *hop_at(__u32 folded, __u32 time)
{
	__u32 index = address_hash(folded, FL_HOP_BITS);
	struct fl_hop *hop = bpf_map_lookup_elem(&hops, &index);

	return hop && hop->ifindex && time - hop->asked < hop_ttl ? hop : 0;
}

static __always_inline struct fl_hop *remembered_hop(__be32 dst, __u32 time)
{
	struct fl_hop *hop = hop_at(dst, time);

	return hop && hop->dst.word[3] == dst && hop->dst.word[2] == bpf_htonl(0xffff) ? hop : 0;
}

static __always_inline struct fl_hop *remembered_hop6(const struct fl_addr *dst, __u32 time)
{
	struct fl_hop *hop = hop_at(fold_addr(dst, 6), time);

	return hop && same_addr(&hop->dst, dst) ? hop : 0;
}

/* Both addresses in two loads: byte by byte, which is what struct ethhdr asks for, they are two cache lines of code. */
static __always_inline void plain_link(struct ethhdr *eth, const struct fl_hop *hop)
{
	*(__u64 *)eth->h_dest = *(const __u64 *)hop->dmac;
	*(__u32 *)(eth->h_source + 2) = *(const __u32 *)(hop->smac + 2);
}

/* `change`: of what a transport checksum is over. */
static __always_inline void plain_sum(__u8 proto, struct tcphdr *tcp, struct udphdr *udp, __u64 change)
{
	if (proto == IPPROTO_TCP)
		tcp->check = checksum_after(tcp->check, change);
	else if (udp->check)
		udp->check = udp_checksum_after(udp->check, change);
}

/* The source or the destination of a plain packet changes; the TTL goes down by one. */
static __always_inline void plain_rewrite(const struct plain *p, _Bool source, __be32 addr, __be16 port)
{
	__u64 address = changed32(source ? p->ip->saddr : p->ip->daddr, addr);
	__u64 transport = address + changed16(source ? p->tcp->source : p->tcp->dest, port);

	if (source) {
		p->ip->saddr = addr;
		p->tcp->source = port;
	} else {
		p->ip->daddr = addr;
		p->tcp->dest = port;
	}
	/* TTL is the first byte of its word: one less there is 0x0100 less, in network order. */
	p->ip->ttl--;
	p->ip->check = checksum_after(p->ip->check, address + (__u16)~bpf_htons(0x0100));
	plain_sum(p->ip->protocol, p->tcp, p->udp, transport);
}

/* A checksum that was left to the hardware (partial.h). */
static __always_inline _Bool plain_unfinished(const struct plain *p)
{
	__u32 length = p->ip_len - sizeof(*p->ip);
	__u8 proto = p->ip->protocol;

	if (!unfinished_sums)
		return 0;
	return (proto == IPPROTO_TCP ? p->tcp->check : p->udp->check) ==
	       fold((__u64)p->ip->saddr + p->ip->daddr + bpf_htonl(length) + bpf_htonl(proto));
}

/* `inner`: IPPROTO_IPIP or IPPROTO_IPV6. */
static __always_inline int plain_tunnel(struct xdp_md *ctx, const struct fl_server *server, const struct fl_hop *hop,
					__u32 spread, __u32 ip_len, __u8 tos, __u8 inner)
{
	_Bool four = server->family == 4;
	struct ipv6hdr *ip6;
	struct ethhdr *eth;
	struct iphdr *ip;

	if (bpf_xdp_adjust_head(ctx, four ? -(int)sizeof(*ip) : -(int)sizeof(*ip6)))
		return counted(FL_DROP_FAULT, XDP_DROP);
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	ip6 = (void *)(eth + 1);
	if ((void *)(ip6 + 1) > (void *)(long)ctx->data_end)
		return counted(FL_DROP_FAULT, XDP_DROP);
	plain_link(eth, hop);
	eth->h_proto = four ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (four)
		write_outer4(ip, server, spread, ip_len, tos, inner);
	else
		write_outer6(ip6, server, spread, ip_len, tos, inner);
	return leave(ctx, hop);
}

static __always_inline int plain_reply(struct xdp_md *ctx, const struct plain *p)
{
	struct fl_listen4 key = { .addr = p->ip->saddr, .port = p->tcp->source, .proto = p->ip->protocol };
	struct fl_reply *reply = bpf_map_lookup_elem(&replies4, &key);
	struct fl_server *server;
	struct fl_hop *hop;
	__u32 id;

	if (!reply || reply->flags || direct_lately(reply, p->time))
		return NOT_PLAIN;
	id = reply->server;
	server = bpf_map_lookup_elem(&servers, &id);
	hop = remembered_hop(p->ip->daddr, p->time);
	if (!server || server->flags || !hop || p->ip_len > hop->mtu || p->ip->ttl <= 1 || plain_unfinished(p))
		return NOT_PLAIN;
	plain_rewrite(p, 1, reply->vip.word[3], reply->port ? reply->port : key.port);
	plain_link(p->eth, hop);
	count_traffic(reply->service, id, FL_TO_CLIENT, p->ip_len, 0);
	return leave(ctx, hop);
}

/* What is known of a request. */
struct plain_flow {
	__u64 addresses, rest; /* the key */
	__u64 hash;
	__u64 word; /* table_base and table_size of its service, unless an entry decides */
	struct touch touch; /* word NULL: it was not looked at */
	struct fl_service *service;
	struct fl_flow *entry; /* NULL: the flow table was not asked */
	struct fl_usage *usage; /* beside it */
	__u32 service_id, server_id, seen;
	__u16 generation;
	__u8 state;
};

/* The service of a TCP packet, and its table as it is in this moment; -1: none, or no router forwards it. */
static __always_inline int plain_service(struct plain_flow *flow, const struct plain *p)
{
	struct fl_listen4 key = { .addr = p->ip->daddr, .port = p->tcp->dest, .proto = IPPROTO_TCP };
	__u32 *id = bpf_map_lookup_elem(&listeners4, &key);

	if (!id || unroutable4(p->ip->saddr))
		return -1;
	flow->service_id = *id;
	flow->service = bpf_map_lookup_elem(&services, &flow->service_id);
	if (!flow->service)
		return -1;
	flow->word = *(volatile __u64 *)&flow->service->table_base;
	return 0;
}

/* The server that its slot names. */
static __always_inline void plain_slot(struct plain_flow *flow)
{
	__u32 size = slots_of(flow->word);
	__u64 hash = flow_hash4(flow->service->seed, flow->addresses, flow->addresses >> 32, flow->rest, IPPROTO_TCP);

	flow->server_id = server_in_slot(flow->word, size, slot_of(hash, size));
}

/*
 * By the slot, for a flow of a settled service that was met a moment ago (touched.h). -1: the table has to say. It may
 * be a flow that the table does not know, so what is asked of a new one is asked here.
 */
static __always_inline int plain_settled(struct plain_flow *flow, const struct plain *p)
{
	if (touch_find(&flow->touch, flow->hash, p->time) || p->tcp_flags & TCP_FIN || !touch_met(&flow->touch))
		return -1;
	if (plain_service(flow, p) || !(flow->word >> 32 & FL_SETTLED))
		return -1;
	plain_slot(flow);
	return 0;
}

/* By an entry; -1: it does not decide. `before`: its lock, when its key was compared. */
static __always_inline int plain_entry(struct plain_flow *flow, struct fl_flow *entry, struct fl_usage *usage, __u16 before,
				       __u32 time)
{
	if (entry->kind != FL_TO_SERVER)
		return -1;
	flow->entry = entry;
	flow->usage = usage;
	flow->service_id = entry->service;
	flow->server_id = entry->server;
	flow->generation = entry->generation;
	flow->seen = entry->seen;
	flow->state = entry->state;
	if (before & 1 || lock_of(entry) != before)
		return -1;
	flow->service = bpf_map_lookup_elem(&services, &flow->service_id);
	return flow->service && !too_late(flow->seen, flow->state, flow->service, time) ? 0 : -1;
}

static __always_inline int plain_known(struct plain_flow *flow, const struct plain *p)
{
	struct fl_details4 *details;
	struct fl_flow4 *found;
	__u16 before;

	found = find4(flow->addresses, flow->rest, flow->hash, &details, &before);
	return found ? plain_entry(flow, &found->flow, &details->usage, before, p->time) : -1;
}

/* The next hop to a server by which a packet of `family` goes as it is; NULL: it is not plain. */
static __always_inline struct fl_hop *plain_hop(const struct fl_server *server, __u8 forwarding, __u8 family, __u32 ip_len,
						__u32 time)
{
	__u8 to = server->family;
	struct fl_hop *hop;

	if (server->flags || forwarding == FL_FULLNAT || (to != family && forwarding != FL_TUNNEL))
		return 0;
	hop = to == 4 ? remembered_hop(server->addr.word[3], time) : remembered_hop6(&server->addr, time);
	if (forwarding == FL_TUNNEL)
		ip_len += to == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	return !hop || ip_len > hop->mtu || (forwarding == FL_DSR && hop->gateway) ? 0 : hop;
}

/* As flow_touch does. */
static __always_inline void plain_touch(const struct plain_flow *flow, __u8 proto, __u8 tcp_flags, __u32 ip_len, __u32 time)
{
	__u8 state = state_after(flow->state, proto, tcp_flags);

	if (flow->seen != time)
		flow->entry->seen = time;
	if (flow->state != state)
		flow->entry->state = state;
	account(flow->usage, ip_len);
	if (flow->touch.word && state == FL_OPEN)
		touch_set(&flow->touch);
}

static __always_inline int plain_send(struct xdp_md *ctx, const struct plain *p, const struct fl_server *server,
				      __u8 forwarding, const struct fl_hop *hop)
{
	__u32 spread;

	if (forwarding == FL_TUNNEL) {
		spread = mix_flow(p->ip->saddr, plain_ports(p));
		return plain_tunnel(ctx, server, hop, spread, p->ip_len, p->ip->tos, IPPROTO_IPIP);
	}
	if (forwarding == FL_NAT)
		plain_rewrite(p, 0, server->addr.word[3], server->port ? server->port : p->tcp->dest);
	plain_link(p->eth, hop);
	return leave(ctx, hop);
}

static __always_inline int plain_request(struct xdp_md *ctx, const struct plain *p)
{
	struct fl_settings *set = get_settings();
	struct plain_flow flow = {};
	struct fl_server *server;
	struct fl_hop *hop;
	_Bool may_skip; /* the flow table */
	__u8 forwarding;

	flow.addresses = two(p->ip->saddr, p->ip->daddr);
	flow.rest = (__u64)p->ip->protocol << 32 | plain_ports(p);
	if (!set)
		return NOT_PLAIN;
	flow.hash = hash4(flow.addresses, flow.rest, set);
	may_skip = set->crowded && !accounting && p->ip->protocol == IPPROTO_TCP;
	if ((!may_skip || plain_settled(&flow, p)) && plain_known(&flow, p))
		return NOT_PLAIN;
	server = bpf_map_lookup_elem(&servers, &flow.server_id);
	if (!server || (flow.entry && server->generation != flow.generation))
		return NOT_PLAIN;
	forwarding = flow.service->forwarding;
	hop = plain_hop(server, forwarding, 4, p->ip_len, p->time);
	if (!hop || plain_unfinished(p))
		return NOT_PLAIN;
	if (forwarding == FL_NAT && (p->ip->ttl <= 1 || server->addr.word[3] == p->ip->saddr))
		return NOT_PLAIN;
	if (flow.entry)
		plain_touch(&flow, p->ip->protocol, p->tcp_flags, p->ip_len, p->time);
	count_traffic(flow.service_id, flow.server_id, FL_TO_SERVER, p->ip_len, 0);
	return plain_send(ctx, p, server, forwarding, hop);
}

/* 0, or NOT_PLAIN. */
static __always_inline int plain_parse(struct xdp_md *ctx, struct plain *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ip_len;

	p->eth = data;
	p->ip = data + ETH_HLEN;
	p->tcp = data + ETH_HLEN + sizeof(struct iphdr);
	p->udp = (void *)p->tcp;
	if ((void *)(p->tcp + 1) > end)
		return NOT_PLAIN;
	if (p->eth->h_proto != bpf_htons(ETH_P_IP) || *(__u8 *)p->ip != 0x45 ||
	    p->ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return NOT_PLAIN;
	ip_len = bpf_ntohs(p->ip->tot_len);
	if (ip_len < sizeof(*p->ip) + sizeof(*p->tcp) || ETH_HLEN + ip_len > frame_length(ctx))
		return NOT_PLAIN;
	p->ip_len = ip_len;
	p->time = now();
	p->tcp_flags = 0;
	if (p->ip->protocol == IPPROTO_TCP)
		p->tcp_flags = ((__u8 *)p->tcp)[13];
	else if (p->ip->protocol != IPPROTO_UDP)
		return NOT_PLAIN;
	return 0;
}

/*
 * An XDP action, NOT_PLAIN, or OPENING: a SYN to what may be a VIP. A function of its own, so that its stack does not
 * weigh on the general path's.
 */
__noinline int fast(struct xdp_md *ctx)
{
	struct plain p;
	__u8 to, from;

	if (plain_parse(ctx, &p))
		return NOT_PLAIN;
	to = near_bits(p.ip->daddr);
	if (to & FL_NEAR_VIP) {
		if (p.tcp_flags & (TCP_SYN | TCP_RST))
			return opens(p.tcp_flags) ? OPENING : NOT_PLAIN;
		return plain_request(ctx, &p);
	}
	from = near_bits(p.ip->saddr);
	if (from & FL_NEAR_SERVER && !unroutable4(p.ip->daddr) && !opens(p.tcp_flags))
		return plain_reply(ctx, &p);
	if (!((to | from) & FL_NEAR_SERVER))
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	return NOT_PLAIN;
}

#endif
