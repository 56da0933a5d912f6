/* SPDX-License-Identifier: GPL-2.0-only */
/* Sends a routed packet: next hop, size, rewriting, link header, and the device. */
#ifndef FAIRLEAD_TRANSMIT_H
#define FAIRLEAD_TRANSMIT_H

#include "answer.h"
#include "common.h"
#include "nexthop.h"
#include "partial.h"
#include "rewrite.h"

static __always_inline _Bool is_nat(const struct route *r)
{
	return r->forwarding == FL_NAT || r->forwarding == FL_FULLNAT;
}

/*
 * A packet whose only purpose is that the stack resolves the neighbour it is sent to: an echo reply nobody asked
 * for, from the packet's source to the wanted hop. The packet itself is lost; its sender repeats it. The original
 * can not be given to the stack: to the VIP it would be answered here, from the VIP it would be a martian.
 */
__noinline int make_resolve(struct xdp_md *ctx, const struct packet *p, const struct route *r)
{
	struct scratch *work = get_scratch();
	__be32 *icmp;
	__u32 header;

	if (!p || !r || !work)
		return XDP_DROP;
	if (r->hop_family != p->family)
		return counted(FL_DROP_NO_ROUTE, XDP_DROP);
	header = p->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (cut(ctx, p->l3 + header + 8))
		return counted(FL_DROP_FAULT, XDP_DROP);
	work->turned = *p;
	work->turned.src = r->hop; /* header4 and header6 write answers, so the ends are swapped */
	work->turned.dst = p->src;
	icmp = at(ctx, p->l3 + header, 8);
	if (!icmp)
		return counted(FL_DROP_FAULT, XDP_DROP);
	icmp[1] = 0;
	if (p->family == 4) {
		struct iphdr *ip = at(ctx, p->l3, sizeof(*ip));

		icmp[0] = bpf_htonl(ICMP_ECHOREPLY << 24 | 0xffff);
		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		header4(ip, &work->turned, sizeof(*ip) + 8, IPPROTO_ICMP);
	} else {
		struct ipv6hdr *ip = at(ctx, p->l3, sizeof(*ip));

		icmp[0] = bpf_htonl(ICMPV6_ECHO_REPLY << 24);
		((__u16 *)icmp)[1] = ~fold(pseudo_header(&work->turned, 8, IPPROTO_ICMPV6) + icmp[0]);
		if (!ip)
			return counted(FL_DROP_FAULT, XDP_DROP);
		header6(ip, &work->turned, 8, IPPROTO_ICMPV6);
	}
	return counted(FL_PASS_RESOLVING, XDP_PASS);
}

/* Rewrites a packet that the stack gets: 0, or the verdict when it is dropped. */
static __always_inline int rewrite_for_stack(struct xdp_md *ctx, const struct packet *p, const struct route *r, _Bool hop)
{
	int sum = unfinished_sums ? finish_sum(ctx, p, 1) : SUM_DONE;

	if (sum == SUM_UNKNOWN)
		return counted(FL_DROP_CHECKSUM, XDP_DROP);
	if (rewrite(ctx, p, r, hop, sum == SUM_SEED))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return 0;
}

/*
 * Finishes a packet but for its link header and leaves it to `resolve`, so that the kernel keeps it until it knows the
 * neighbour. NOT_KEPT: this driver has no room for metadata, or there is a VLAN tag, which the stack takes off.
 */
enum { NOT_KEPT = -1 };

static __always_inline int keep_until_resolved(struct xdp_md *ctx, const struct packet *p, const struct route *r)
{
	__u32 *mark;
	int dropped;

	if (p->l3 != ETH_HLEN || bpf_xdp_adjust_meta(ctx, -(int)sizeof(*mark)))
		return NOT_KEPT;
	mark = (void *)(long)ctx->data_meta;
	if ((void *)(mark + 1) > (void *)(long)ctx->data)
		return NOT_KEPT;
	*mark = FL_UNRESOLVED;
	if (p->ttl <= 1)
		return counted(FL_DROP_TTL, XDP_DROP);
	dropped = rewrite_for_stack(ctx, p, r, 1);
	if (dropped)
		return dropped;
	count_traffic(r->service, r->server, r->kind, p->ip_len, 0);
	return counted(FL_PASS_UNRESOLVED, XDP_PASS);
}

/* bpf_fib_lookup did not give a next hop. */
__noinline int no_hop(struct xdp_md *ctx, const struct packet *p, const struct route *r, int error, int icmp)
{
	if (!p || !r)
		return XDP_DROP;
	/* To this node itself: its own connection to the server. */
	if (may_be_own(error) && r->kind == FL_TO_CLIENT && r->forwarding == FL_NAT)
		return counted(FL_PASS_OWN, XDP_PASS);
	if (error == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return counted(FL_DROP_FORWARDING_OFF, XDP_DROP);
	if (error != BPF_FIB_LKUP_RET_NO_NEIGH)
		return counted(FL_DROP_NO_ROUTE, XDP_DROP);
	if (r->kind == FL_TO_SERVER && r->forwarding == FL_NAT && !icmp) {
		int dropped = rewrite_for_stack(ctx, p, r, 0);

		return dropped ? dropped : counted(FL_PASS_UNRESOLVED, XDP_PASS);
	}
	if (resolver && !icmp && is_nat(r)) {
		int verdict = keep_until_resolved(ctx, p, r);

		if (verdict != NOT_KEPT)
			return verdict;
	}
	return make_resolve(ctx, p, r);
}

/* The last step of every mode: room for the outer header, if there is one, and the link header. */
static __always_inline int send_frame(struct xdp_md *ctx, const struct packet *p, const struct route *r, const struct fl_hop *hop)
{
	__u32 grow = overhead(r);
	int l3 = make_room(ctx, p, hop->ifindex == ctx->ingress_ifindex, grow);
	__u8 family = grow ? r->hop_family : p->family;

	if (l3 < 0)
		return counted(FL_DROP_FAULT, XDP_DROP);
	if (grow) {
		__u32 id = r->server;
		struct fl_server *server = bpf_map_lookup_elem(&servers, &id);

		if (!server || (family == 4 ? outer4(ctx, l3, p, server) : outer6(ctx, l3, p, server)))
			return counted(FL_DROP_FAULT, XDP_DROP);
	}
	if (link_header(ctx, p, hop->dmac, hop->smac, l3 - ETH_HLEN, family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6)))
		return counted(FL_DROP_FAULT, XDP_DROP);
	return leave(ctx, hop);
}

__noinline int transmit(struct xdp_md *ctx, const struct packet *p, const struct route *r)
{
	struct fl_hop *hop;
	int error, sum;

	if (!p || !r)
		return XDP_DROP;
	error = hop_find(ctx, &r->hop, r->hop_family, &hop);
	if (error)
		return no_hop(ctx, p, r, error, 0);
	if (r->forwarding == FL_DSR && hop->gateway)
		return counted(FL_DROP_OFF_LINK, XDP_DROP);
	if (is_nat(r) && p->ttl <= 1)
		return counted(FL_DROP_TTL, XDP_DROP);
	if (p->ip_len + overhead(r) > hop->mtu)
		return too_big(ctx, p, hop->mtu - overhead(r));
	sum = unfinished_sums ? finish_sum(ctx, p, 0) : SUM_DONE;
	if (sum == SUM_UNKNOWN)
		return counted(FL_DROP_CHECKSUM, XDP_DROP);
	if (is_nat(r) && rewrite(ctx, p, r, 1, sum == SUM_SEED))
		return counted(FL_DROP_FAULT, XDP_DROP);
	count_traffic(r->service, r->server, r->kind, p->ip_len, 0);
	return send_frame(ctx, p, r, hop);
}

#endif
