/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP: echo requests to a VIP are answered; errors are brought to whom they concern, by the packet they quote.
 *
 * The quoted packet went the other way, so its tuple is turned round and routed like a packet of the flow; what
 * would be rewritten in that packet is rewritten, mirrored, in the quote. RFC 5508 sections 4.2 and 4.3.
 */
#ifndef FAIRLEAD_ICMP_H
#define FAIRLEAD_ICMP_H

#include "beyond.h"
#include "common.h"
#include "decide.h"
#include "quote.h"
#include "transmit.h"

static __always_inline _Bool is_error(__u8 family, __u8 type)
{
	if (family == 4)
		return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/* Reads the quoted packet into `q`, turned round; q->l3 and q->l4 are where it stands in the frame. */
__noinline int parse_quote(struct xdp_md *ctx, const struct packet *p, struct packet *q)
{
	struct fl_addr src;
	__be16 port;

	if (!p || !q)
		return -1;
	q->l3 = p->l4 + 8;
	q->family = p->family;
	q->ip_len = p->ip_len;
	q->ttl = p->ttl;
	if (read_quote(ctx, q, p->l3 + p->ip_len))
		return -1;
	src = q->src;
	q->src = q->dst;
	q->dst = src;
	port = q->sport;
	q->sport = q->dport;
	q->dport = port;
	return 0;
}

/* Rewrites the quote. Returns what that changes in the sum of the ICMP message. */
static __always_inline int rewrite_quote(struct xdp_md *ctx, const struct packet *p, const struct packet *q, const struct route *r, __u64 *change)
{
	__u64 addresses = changed_addr(&q->src, &r->src, q->family) + changed_addr(&q->dst, &r->dst, q->family);
	__u64 ports = changed16(q->sport, r->sport) + changed16(q->dport, r->dport);
	__be16 *l4;

	*change = ports;
	if (q->family == 4) {
		struct iphdr *ip = at(ctx, q->l3, sizeof(*ip));
		__u16 old;

		if (!ip)
			return -1;
		old = ip->check;
		ip->saddr = r->dst.word[3];
		ip->daddr = r->src.word[3];
		ip->check = checksum_after(old, addresses);
		*change += addresses + changed16(old, ip->check);
	} else {
		struct ipv6hdr *ip = at(ctx, q->l3, sizeof(*ip));

		if (!ip)
			return -1;
		__builtin_memcpy(&ip->saddr, &r->dst, sizeof(r->dst));
		__builtin_memcpy(&ip->daddr, &r->src, sizeof(r->src));
		*change += addresses;
	}
	l4 = at(ctx, q->l4, 8);
	if (!l4)
		return -1;
	l4[0] = r->dport;
	l4[1] = r->sport;
	if (q->proto == IPPROTO_UDP && l4[3]) {
		__u16 old = l4[3];

		l4[3] = udp_checksum_after(old, addresses + ports);
		*change += changed16(old, l4[3]);
	} else if (q->proto == IPPROTO_TCP) {
		__u16 *check = at(ctx, q->l4 + 16, 2);

		/* Most quotes end before it. */
		if (check && q->l4 + 18u <= p->l3 + p->ip_len) {
			__u16 old = *check;

			*check = checksum_after(old, addresses + ports);
			*change += changed16(old, *check);
		}
	}
	return 0;
}

/* The outer addresses of the error: to whom the quoted packet's sender really is; from the VIP when it was ours. */
static __always_inline void outer_route(struct route *outer, const struct packet *p, const struct packet *q, const struct route *r)
{
	*outer = *r;
	outer->dst = r->dst;
	outer->src = r->forwarding == FL_FULLNAT || same_addr(&p->src, &q->src) ? r->src : p->src;
}

__noinline int send_error(struct xdp_md *ctx, const struct packet *p, const struct packet *q, const struct route *r)
{
	struct scratch *work = get_scratch();
	struct icmphdr *icmp;
	struct fl_hop *hop;
	__u64 change;
	int error;

	if (!p || !q || !r || !work)
		return XDP_DROP;
	error = hop_find(ctx, &r->hop, r->hop_family, &hop);
	if (error)
		return no_hop(ctx, p, r, error, 1);
	if (r->forwarding == FL_DSR && hop->gateway)
		return counted(FL_DROP_OFF_LINK, XDP_DROP);
	if (p->ip_len + overhead(r) > hop->mtu)
		return counted(FL_DROP_TOO_BIG, XDP_DROP);
	if (is_nat(r)) {
		if (p->ttl <= 1)
			return counted(FL_DROP_TTL, XDP_DROP);
		outer_route(&work->outer, p, q, r);
		if (rewrite_quote(ctx, p, q, r, &change))
			return counted(FL_DROP_FAULT, XDP_DROP);
		if (p->family == 6)
			change += changed_addr(&p->src, &work->outer.src, 6) + changed_addr(&p->dst, &work->outer.dst, 6);
		icmp = at(ctx, p->l4, sizeof(*icmp));
		if (!icmp)
			return counted(FL_DROP_FAULT, XDP_DROP);
		icmp->checksum = checksum_after(icmp->checksum, change);
		if (p->family == 4 ? rewrite_header4(ctx, p->l3, &work->outer, 1) : rewrite_header6(ctx, p->l3, &work->outer, 1))
			return counted(FL_DROP_FAULT, XDP_DROP);
	}
	count(FL_ICMP_FORWARDED);
	count_traffic(r->service, r->server, r->kind, p->ip_len, 0);
	return send_frame(ctx, p, r, hop);
}

__noinline int icmp_packet(struct xdp_md *ctx, const struct packet *p)
{
	struct scratch *work = get_scratch();
	struct icmphdr *icmp;
	int verdict;

	if (!p || !work)
		return XDP_PASS;
	icmp = at(ctx, p->l4, sizeof(*icmp));
	if (!icmp || p->l4 + sizeof(*icmp) > p->l3 + p->ip_len)
		return counted(FL_PASS_MALFORMED, XDP_PASS);
	if (icmp->type == (p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST)) {
		if (bpf_map_lookup_elem(&vips, &p->dst))
			return answer_echo(ctx, p);
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	}
	if (icmp->type == (p->family == 4 ? ICMP_DEST_UNREACH : ICMPV6_PKT_TOOBIG) &&
	    icmp->code == (p->family == 4 ? ICMP_FRAG_NEEDED : 0)) {
		__u32 mtu = bpf_ntohl(icmp->rest);

		verdict = tunnel_too_big(ctx, p, p->family == 4 ? mtu & 0xffff : mtu);
		if (verdict != MISSED)
			return verdict;
		icmp = at(ctx, p->l4, sizeof(*icmp));
		if (!icmp)
			return counted(FL_PASS_MALFORMED, XDP_PASS);
	}
	__builtin_memset(&work->quoted, 0, sizeof(work->quoted));
	if (!is_error(p->family, icmp->type) || parse_quote(ctx, p, &work->quoted))
		return counted(FL_PASS_ICMP, XDP_PASS);
	verdict = decide(ctx, &work->quoted, &work->route, 1);
	if (verdict == ROUTED)
		return send_error(ctx, p, &work->quoted, &work->route);
	return verdict == REFUSED || verdict == RESET || verdict == MISSED ? counted(FL_PASS_ICMP, XDP_PASS) : verdict;
}

#endif
