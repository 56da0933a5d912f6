/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A router between this node and a tunnel's server says that the tunnelled packet is too big: to us, who sent it. It
 * is the client that must send smaller ones, so the client is told (RFC 2003 section 4, RFC 2473 section 8), in the
 * name of the VIP, by its own packet, which stands in the quote behind the outer header. Who forges such a message
 * must know a flow, and the server and the source address of its tunnel.
 */
#ifndef FAIRLEAD_BEYOND_H
#define FAIRLEAD_BEYOND_H

#include "common.h"
#include "decide.h"
#include "quote.h"
#include "transmit.h"

/* The outer header that is quoted: its ends into `outer`, the protocol inside it returned; 0: it is not a tunnel's. */
static __always_inline __u8 quoted_tunnel(struct xdp_md *ctx, const struct packet *p, struct packet *outer)
{
	__u8 inside;

	if (p->family == 4) {
		struct iphdr *ip = at(ctx, p->l4 + 8, sizeof(*ip));

		if (!ip || *(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(IP_OFFSET))
			return 0;
		set_addr4(&outer->src, ip->saddr);
		set_addr4(&outer->dst, ip->daddr);
		inside = ip->protocol;
	} else {
		struct ipv6hdr *ip = at(ctx, p->l4 + 8, sizeof(*ip));

		if (!ip || ip->version != 6)
			return 0;
		__builtin_memcpy(&outer->src, &ip->saddr, sizeof(outer->src));
		__builtin_memcpy(&outer->dst, &ip->daddr, sizeof(outer->dst));
		inside = ip->nexthdr;
	}
	return inside == IPPROTO_IPIP || inside == IPPROTO_IPV6 ? inside : 0;
}

/* The client's packet inside, as far as it is quoted, into `q`; -1: too little of it. */
static __always_inline int quoted_client(struct xdp_md *ctx, const struct packet *p, struct packet *q, __u8 inside)
{
	__u32 end = p->l3 + p->ip_len;

	__builtin_memset(q, 0, sizeof(*q));
	q->l3 = p->l4 + 8 + (p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	q->family = inside == IPPROTO_IPIP ? 4 : 6;
	q->ip_len = end - q->l3;
	return read_quote(ctx, q, end);
}

/* Whether we tunnel packets of this route with these outer addresses. */
static __always_inline _Bool is_tunnel_of(const struct route *r, const struct packet *outer)
{
	__u32 id = r->server;
	struct fl_server *server = bpf_map_lookup_elem(&servers, &id);

	return server && r->forwarding == FL_TUNNEL && r->kind == FL_TO_SERVER && same_addr(&r->hop, &outer->dst) &&
	       server->source.word[0] == outer->src.word[0] && server->source.word[1] == outer->src.word[1] &&
	       server->source.word[2] == outer->src.word[2] &&
	       !((server->source.word[3] ^ outer->src.word[3]) & ~server->spread);
}

/* Cuts all that stands before the client's packet, and puts an error of our own there. */
__noinline int tell_client(struct xdp_md *ctx, const struct packet *p, const struct packet *q, __u32 mtu)
{
	__u32 header, quote, keep;
	struct fl_hop *hop;
	int error, shift;

	if (!p || !q)
		return XDP_DROP;
	error = hop_find(ctx, &q->src, q->family, &hop);
	if (error == BPF_FIB_LKUP_RET_NO_NEIGH) {
		struct scratch *work = get_scratch();

		if (!work)
			return XDP_DROP;
		work->outer.hop = q->src;
		work->outer.hop_family = q->family;
		return make_resolve(ctx, p, &work->outer);
	}
	if (error)
		return counted(FL_DROP_NO_ROUTE, XDP_DROP);
	if (!may_answer())
		return counted(FL_DROP_ANSWER_LIMIT, XDP_DROP);
	header = q->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	keep = hop->ifindex == ctx->ingress_ifindex ? p->l3 - ETH_HLEN : 0;
	quote = quote_of(q);
	shift = (int)q->l3 - (int)(ETH_HLEN + keep + header + 8);
	if ((shift && bpf_xdp_adjust_head(ctx, shift)) || cut(ctx, ETH_HLEN + keep + header + 8 + quote) ||
	    link_header(ctx, p, hop->dmac, hop->smac, keep, q->family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6)) ||
	    write_error(ctx, q, ETH_HLEN + keep, quote, too_big_kind(q->family), mtu))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return counted(FL_SENT_PATH_MTU, leave(ctx, hop));
}

/* An error "too big" whose next hop takes `mtu` bytes; MISSED: it is not about a tunnelled packet. */
__noinline int tunnel_too_big(struct xdp_md *ctx, const struct packet *p, __u32 mtu)
{
	__u32 outer = p && p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr), least;
	struct scratch *work = get_scratch();
	__u8 inside;
	int verdict;

	if (!p || !work)
		return MISSED;
	inside = quoted_tunnel(ctx, p, &work->turned);
	if (!inside)
		return MISSED;
	if (mtu <= outer || quoted_client(ctx, p, &work->quoted, inside))
		return counted(FL_PASS_ICMP, XDP_PASS);
	verdict = decide(ctx, &work->quoted, &work->route, 1);
	if (verdict == REFUSED || verdict == RESET || verdict == MISSED ||
	    (verdict == ROUTED && !is_tunnel_of(&work->route, &work->turned)))
		return counted(FL_PASS_ICMP, XDP_PASS);
	if (verdict != ROUTED)
		return verdict;
	least = least_mtu(work->quoted.family);
	mtu -= outer;
	return tell_client(ctx, p, &work->quoted, mtu < least ? least : mtu);
}

#endif
