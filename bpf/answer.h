/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets we answer ourselves, in the name of the address they were sent to: echo, RST, ICMP errors. The answer
 * is built from the packet and leaves by the interface it came in by. RST and errors are limited per CPU.
 */
#ifndef FAIRLEAD_ANSWER_H
#define FAIRLEAD_ANSWER_H

#include "checksum.h"
#include "common.h"
#include "parse.h"
#include "rewrite.h"
#include "select.h"

#define QUOTE 96 /* bytes of the packet an ICMP error quotes at most; a multiple of 4 (RFC 792 asks for IP header + 8) */

static __always_inline _Bool may_answer(void)
{
	struct fl_settings *set = get_settings();
	struct fl_cpu *cpu = this_cpu();

	return set && cpu && window_allows(&cpu->answer_window, &cpu->answer_count, set->answers);
}

static __always_inline int swap_macs(struct xdp_md *ctx)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth));
	__u8 mac[ETH_ALEN];

	if (!eth)
		return -1;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return 0;
}

static __always_inline void header4(struct iphdr *ip, const struct packet *p, __u32 length, __u8 proto)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = OUTER_TTL;
	ip->protocol = proto;
	ip->check = 0;
	ip->saddr = p->dst.word[3];
	ip->daddr = p->src.word[3];
	ip->check = ~fold((__u64)((__u32 *)ip)[0] + ((__u32 *)ip)[1] + ((__u32 *)ip)[2] + ip->saddr + ip->daddr);
}

static __always_inline void header6(struct ipv6hdr *ip, const struct packet *p, __u32 payload, __u8 next)
{
	*(__be32 *)ip = bpf_htonl(6u << 28);
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = next;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, &p->dst, sizeof(p->dst));
	__builtin_memcpy(&ip->daddr, &p->src, sizeof(p->src));
}

/* Echo request to a VIP: type, addresses and MACs change, and nothing else does. */
__noinline int answer_echo(struct xdp_md *ctx, const struct packet *p)
{
	struct icmphdr *icmp;
	__be16 *type, old;

	if (!p)
		return XDP_PASS;
	icmp = at(ctx, p->l4, sizeof(*icmp));
	if (!icmp)
		return counted(FL_PASS_MALFORMED, XDP_PASS);
	type = (__be16 *)icmp;
	old = *type;
	icmp->type = p->family == 4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;
	icmp->checksum = checksum_after(icmp->checksum, changed16(old, *type));
	if (p->family == 4) {
		struct iphdr *ip = at(ctx, p->l3, sizeof(*ip));
		__be16 *lifetime, before;

		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		ip->saddr = p->dst.word[3];
		ip->daddr = p->src.word[3];
		lifetime = (__be16 *)&ip->ttl;
		before = *lifetime;
		ip->ttl = OUTER_TTL;
		ip->check = checksum_after(ip->check, changed16(before, *lifetime));
	} else {
		struct ipv6hdr *ip = at(ctx, p->l3, sizeof(*ip));

		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		__builtin_memcpy(&ip->saddr, &p->dst, sizeof(p->dst));
		__builtin_memcpy(&ip->daddr, &p->src, sizeof(p->src));
		ip->hop_limit = OUTER_TTL;
	}
	if (swap_macs(ctx))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return counted(FL_SENT_ECHO, XDP_TX);
}

/* Cuts the frame to `length` bytes. */
static __always_inline int cut(struct xdp_md *ctx, __u32 length)
{
	int change = (int)length - (int)frame_length(ctx);

	return change ? bpf_xdp_adjust_tail(ctx, change) : 0;
}

struct segment {
	__be32 seq, ack;
};

/* RFC 9293 section 3.10.7.1: the number an RST must carry to be accepted depends on the segment it answers. */
static __always_inline void reset_segment(struct tcphdr *tcp, const struct packet *p, const struct segment *s, __u32 length)
{
	tcp->source = p->dport;
	tcp->dest = p->sport;
	((__be32 *)tcp)[3] = bpf_htonl(5u << 28 | TCP_RST << 16);
	tcp->seq = s->ack;
	tcp->ack_seq = 0;
	if (!(p->tcp_flags & TCP_ACK)) {
		((__be32 *)tcp)[3] = bpf_htonl(5u << 28 | (TCP_RST | TCP_ACK) << 16);
		tcp->seq = 0;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(s->seq) + length);
	}
	((__be32 *)tcp)[4] = 0;
	tcp->check = ~fold(pseudo_header(p, sizeof(*tcp), IPPROTO_TCP) + ((__u32 *)tcp)[0] + ((__u32 *)tcp)[1] +
			   ((__u32 *)tcp)[2] + ((__u32 *)tcp)[3]);
}

__noinline int answer_reset(struct xdp_md *ctx, const struct packet *p)
{
	__u32 header, length;
	struct tcphdr *tcp;
	struct segment s;

	if (!p)
		return XDP_DROP;
	tcp = at(ctx, p->l4, sizeof(*tcp));
	if (!tcp || p->tcp_flags & TCP_RST || p->fragment != WHOLE)
		return counted(FL_DROP_UNANSWERABLE, XDP_DROP);
	if (!may_answer())
		return counted(FL_DROP_ANSWER_LIMIT, XDP_DROP);
	s.seq = tcp->seq;
	s.ack = tcp->ack_seq;
	length = p->ip_len - (p->l4 - p->l3) - tcp->doff * 4 + !!(p->tcp_flags & TCP_SYN) + !!(p->tcp_flags & TCP_FIN);
	header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (cut(ctx, p->l3 + header + sizeof(*tcp)))
		return counted(FL_DROP_FAULT, XDP_DROP);
	tcp = at(ctx, p->l3 + header, sizeof(*tcp));
	if (!tcp)
		return counted(FL_DROP_FAULT, XDP_DROP);
	reset_segment(tcp, p, &s, length);
	if (p->family == 4) {
		struct iphdr *ip = at(ctx, p->l3, sizeof(*ip));

		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		header4(ip, p, sizeof(*ip) + sizeof(*tcp), IPPROTO_TCP);
	} else {
		struct ipv6hdr *ip = at(ctx, p->l3, sizeof(*ip));

		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		header6(ip, p, sizeof(*tcp), IPPROTO_TCP);
	}
	if (swap_macs(ctx))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return counted(FL_SENT_RESET, XDP_TX);
}

static __always_inline __u64 sum_quote(struct xdp_md *ctx, __u32 offset, __u32 quote)
{
	__u64 sum = 0;

	for (__u32 i = 0; i < QUOTE / 4; i++) {
		__u32 *word;

		if (i * 4 >= quote)
			break;
		word = at(ctx, offset + i * 4, 4);
		if (word)
			sum += *word;
	}
	return sum;
}

/* Writes an ICMP error, and its IP header at `l3`, in front of the `quote` bytes of `p` that follow. */
static __always_inline int write_error(struct xdp_md *ctx, const struct packet *p, __u32 l3, __u32 quote, __u32 kind, __u32 data)
{
	__u32 header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr), length = 8 + quote;
	__u64 sum = bpf_htonl(kind << 16) + (__u64)bpf_htonl(data) + sum_quote(ctx, l3 + header + 8, quote);
	__be32 *icmp = at(ctx, l3 + header, 8);

	if (p->family == 6)
		sum += pseudo_header(p, length, IPPROTO_ICMPV6);
	if (!icmp)
		return -1;
	icmp[0] = bpf_htonl(kind << 16);
	icmp[1] = bpf_htonl(data);
	((__u16 *)icmp)[1] = ~fold(sum);
	if (p->family == 4) {
		struct iphdr *ip = at(ctx, l3, sizeof(*ip));

		if (!ip)
			return -1;
		header4(ip, p, header + length, IPPROTO_ICMP);
	} else {
		struct ipv6hdr *ip = at(ctx, l3, sizeof(*ip));

		if (!ip)
			return -1;
		header6(ip, p, length, IPPROTO_ICMPV6);
	}
	return 0;
}

static __always_inline __u32 quote_of(const struct packet *p)
{
	return p->ip_len < QUOTE ? p->ip_len & ~3u : QUOTE;
}

/* An ICMP error in front of the packet, which becomes the quote. `kind` is type and code, `data` the second word. */
__noinline int answer_error(struct xdp_md *ctx, const struct packet *p, __u32 kind, __u32 data)
{
	__u32 header, quote;
	__u8 old[2 * ETH_ALEN];
	struct ethhdr *eth;
	int l3;

	if (!p)
		return -1;
	eth = at(ctx, 0, sizeof(*eth));
	if (!eth)
		return -1;
	__builtin_memcpy(old, eth, sizeof(old));
	header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	quote = quote_of(p);
	l3 = make_room(ctx, p, 1, header + 8);
	if (l3 < 0 || cut(ctx, l3 + header + 8 + quote))
		return -1;
	if (link_header(ctx, p, old + ETH_ALEN, old, l3 - ETH_HLEN, p->family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6)))
		return -1;
	return write_error(ctx, p, l3, quote, kind, data);
}

/* RFC 1122 section 3.2.2: no error about a fragment. (Errors and groups of hosts do not come this far.) */
static __always_inline _Bool may_complain(const struct packet *p)
{
	return p->fragment != LATER_FRAGMENT;
}

static __always_inline __u32 too_big_kind(__u8 family)
{
	return family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_FRAG_NEEDED : ICMPV6_PKT_TOOBIG << 8;
}

static __always_inline __u32 least_mtu(__u8 family)
{
	return family == 4 ? 68 : 1280;
}

static __always_inline int too_big(struct xdp_md *ctx, const struct packet *p, __u32 mtu)
{
	__u32 least = least_mtu(p->family), let_in = 0;

	/* To shorten it is not for its sender to do: it sent several. */
	bpf_check_mtu(ctx, 0, &let_in, 0, 0);
	if (let_in && p->ip_len > let_in)
		return counted(FL_DROP_MERGED, XDP_DROP);
	if (!p->dont_fragment || !may_complain(p))
		return counted(FL_DROP_TOO_BIG, XDP_DROP);
	if (!may_answer())
		return counted(FL_DROP_ANSWER_LIMIT, XDP_DROP);
	if (mtu < least)
		mtu = least;
	if (answer_error(ctx, p, too_big_kind(p->family), mtu))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return counted(FL_SENT_TOO_BIG, XDP_TX);
}

/* A new flow of a service that rejects. */
static __always_inline int refuse(struct xdp_md *ctx, const struct packet *p)
{
	if (p->proto == IPPROTO_TCP)
		return answer_reset(ctx, p);
	if (!may_complain(p))
		return counted(FL_DROP_UNANSWERABLE, XDP_DROP);
	if (!may_answer())
		return counted(FL_DROP_ANSWER_LIMIT, XDP_DROP);
	if (answer_error(ctx, p,
			 p->family == 4 ? ICMP_DEST_UNREACH << 8 | ICMP_PORT_UNREACH : ICMPV6_DEST_UNREACH << 8 | ICMPV6_PORT_UNREACH,
			 0))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return counted(FL_SENT_UNREACHABLE, XDP_TX);
}

#endif
