/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Parsing. Every header is read after its bounds were checked, against the frame and against the length the IP
 * header claims. What does not parse goes to the stack, which refuses it with its own counters.
 */
#ifndef FAIRLEAD_PARSE_H
#define FAIRLEAD_PARSE_H

#include "common.h"

#define MAX_TAGS 2
#define MAX_EXTENSIONS 6

enum parsed { PARSED_FLOW, PARSED_LATER, PARSED_ICMP, PARSED_OTHER, PARSED_BAD };

#define MAX_OFFSET 0x3ff /* no header we read starts later */

/* `size` bytes at `offset`, or NULL when the frame ends before. */
static __always_inline void *at(struct xdp_md *ctx, __u32 offset, __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset > MAX_OFFSET)
		return 0;
	/* Says nothing new, but in the register that is added: clang checks another one, and Linux 6.18 forgets. */
	asm volatile("%0 &= 0x3ff" : "+r"(offset));
	data += offset;
	if (data + size > end)
		return 0;
	return data;
}

static __always_inline __u32 frame_length(struct xdp_md *ctx)
{
	if (multi_buffer)
		return bpf_xdp_get_buff_len(ctx);
	return ctx->data_end - ctx->data;
}

/* The pseudo header of TCP, UDP and ICMPv6. The order of the addresses does not matter to a sum. */
static __always_inline __u64 pseudo_header(const struct packet *p, __u32 length, __u8 proto)
{
	__u64 sum = (__u64)bpf_htonl(length) + bpf_htonl(proto);

	sum += (__u64)p->src.word[3] + p->dst.word[3];
	if (p->family == 4)
		return sum;
	return sum + p->src.word[0] + p->src.word[1] + p->src.word[2] + p->dst.word[0] + p->dst.word[1] + p->dst.word[2];
}

static __always_inline enum parsed parse_ports(struct xdp_md *ctx, struct packet *p)
{
	__u32 end = p->l3 + p->ip_len;

	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at(ctx, p->l4, sizeof(*tcp));

		if (!tcp || p->l4 + sizeof(*tcp) > end)
			return PARSED_BAD;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp_flags = ((__u8 *)tcp)[13];
		return PARSED_FLOW;
	}
	if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = at(ctx, p->l4, sizeof(*udp));

		if (!udp || p->l4 + sizeof(*udp) > end)
			return PARSED_BAD;
		p->sport = udp->source;
		p->dport = udp->dest;
		return PARSED_FLOW;
	}
	if (p->proto == (p->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return p->fragment == WHOLE ? PARSED_ICMP : PARSED_OTHER;
	return PARSED_OTHER;
}

/*
 * Addresses no router forwards from or to: "this" network, loopback, multicast and above (RFC 6890); for IPv6 also
 * link-local ones, and those with an IPv4 address inside, which would be taken for IPv4 in our maps.
 */
static __always_inline _Bool unroutable4(__be32 addr)
{
	__u8 first = bpf_ntohl(addr) >> 24;

	return !first || first == 127 || first >= 224;
}

static __always_inline _Bool unroutable6(const struct fl_addr *a)
{
	__u32 first = bpf_ntohl(a->word[0]);

	if (!first && !a->word[1] && (!a->word[2] || a->word[2] == bpf_htonl(0xffff)))
		return 1;
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6;
}

static __always_inline enum parsed parse4(struct xdp_md *ctx, struct packet *p)
{
	struct iphdr *ip = at(ctx, p->l3, sizeof(*ip));
	__u32 header, offset;

	if (!ip || ip->version != 4 || ip->ihl < 5)
		return PARSED_BAD;
	header = ip->ihl * 4;
	p->family = 4;
	p->ip_len = bpf_ntohs(ip->tot_len);
	if (p->ip_len < header || p->l3 + p->ip_len > frame_length(ctx))
		return PARSED_BAD;
	if (unroutable4(ip->saddr) || unroutable4(ip->daddr))
		return PARSED_OTHER;
	set_addr4(&p->src, ip->saddr);
	set_addr4(&p->dst, ip->daddr);
	p->ihl = header;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	offset = bpf_ntohs(ip->frag_off);
	p->dont_fragment = !!(offset & IP_DF);
	p->fragment_id = ip->id;
	p->l4 = p->l3 + header;
	if (offset & IP_OFFSET) {
		p->fragment = LATER_FRAGMENT;
		return p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP ? PARSED_LATER : PARSED_OTHER;
	}
	if (offset & IP_MF)
		p->fragment = FIRST_FRAGMENT;
	return parse_ports(ctx, p);
}

struct extension {
	__u8 next, length;
	__u16 offset; /* of a fragment header, with flags */
	__be32 id;
};

static __always_inline enum parsed parse6(struct xdp_md *ctx, struct packet *p)
{
	struct ipv6hdr *ip = at(ctx, p->l3, sizeof(*ip));
	__u32 offset, next;

	if (!ip || ip->version != 6)
		return PARSED_BAD;
	p->family = 6;
	p->ip_len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (p->l3 + p->ip_len > frame_length(ctx))
		return PARSED_BAD;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	if (unroutable6(&p->src) || unroutable6(&p->dst))
		return PARSED_OTHER;
	p->ttl = ip->hop_limit;
	p->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	p->dont_fragment = 1;
	next = ip->nexthdr;
	offset = p->l3 + sizeof(*ip);
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension *header;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		header = at(ctx, offset, sizeof(*header));
		if (!header || offset + sizeof(*header) > p->l3 + p->ip_len)
			return PARSED_BAD;
		if (next == IPPROTO_FRAGMENT) {
			__u16 position = bpf_ntohs(header->offset);

			p->fragment_id = header->id;
			if (position & 0xfff8) {
				p->fragment = LATER_FRAGMENT;
				return PARSED_LATER;
			}
			if (position & 1)
				p->fragment = FIRST_FRAGMENT;
			offset += sizeof(*header);
		} else {
			/* A routing header with segments left: the address is not the last one. */
			if (next == IPPROTO_ROUTING && ((__u8 *)header)[3])
				return PARSED_OTHER;
			offset += (header->length + 1) * 8;
		}
		next = header->next;
		if (offset > MAX_OFFSET - sizeof(struct tcphdr))
			return PARSED_OTHER;
	}
	p->proto = next;
	p->l4 = offset;
	return parse_ports(ctx, p);
}

static __always_inline enum parsed parse(struct xdp_md *ctx, struct packet *p)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));
	__be16 type;

	if (!eth)
		return PARSED_BAD;
	type = eth->h_proto;
	p->l3 = sizeof(*eth);
	for (int i = 0; i < MAX_TAGS; i++) {
		__be32 *tag;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		tag = at(ctx, p->l3 - 2, 6);
		if (!tag)
			return PARSED_BAD;
		p->tags |= (__u64)*tag << (32 * i);
		type = ((__be16 *)tag)[2];
		p->l3 += 4;
	}
	if (type == bpf_htons(ETH_P_IP))
		return parse4(ctx, p);
	if (type == bpf_htons(ETH_P_IPV6))
		return parse6(ctx, p);
	return PARSED_OTHER;
}

#endif
