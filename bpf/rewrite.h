/* SPDX-License-Identifier: GPL-2.0-only */
/* What leaves: the link header, rewritten addresses and ports, the outer header of a tunnel. */
#ifndef FAIRLEAD_REWRITE_H
#define FAIRLEAD_REWRITE_H

#include "checksum.h"
#include "common.h"
#include "outer.h"
#include "parse.h"

/* The link header at the start of the frame, with the `keep` bytes of VLAN tags the frame came with. */
static __always_inline int link_header(struct xdp_md *ctx, const struct packet *p, const __u8 *dmac, const __u8 *smac,
				       __u32 keep, __be16 type)
{
	struct ethhdr *eth = at(ctx, 0, sizeof(*eth) + 2 * MAX_TAGS * 2);
	__be16 *words = (__be16 *)eth;

	if (!eth)
		return -1;
	__builtin_memcpy(eth->h_dest, dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, smac, ETH_ALEN);
	if (!keep) {
		eth->h_proto = type;
		return 0;
	}
	words[6] = p->tags;
	words[7] = p->tags >> 16;
	if (keep == 4) {
		words[8] = type;
		return 0;
	}
	words[8] = p->tags >> 32;
	words[9] = p->tags >> 48;
	words[10] = type;
	return 0;
}

/*
 * Makes the frame ready for another link header and `grow` bytes after it. Tags stay when the frame leaves by the
 * interface it came in by; another interface is another segment. The new offset of L3, or -1.
 */
static __always_inline int make_room(struct xdp_md *ctx, const struct packet *p, _Bool same_link, __u32 grow)
{
	__u32 tags = p->l3 - ETH_HLEN, keep = same_link ? tags : 0;
	int shift = (int)(tags - keep) - (int)grow;

	if (shift && bpf_xdp_adjust_head(ctx, shift))
		return -1;
	return ETH_HLEN + keep;
}

/* Rewrites the addresses and the TTL of an IPv4 header at `l3`; `change` is what that changes in a sum over both. */
static __always_inline int rewrite_header4(struct xdp_md *ctx, __u32 l3, const struct route *r, _Bool hop)
{
	struct iphdr *ip = at(ctx, l3, sizeof(*ip));
	__u64 change;

	if (!ip)
		return -1;
	change = changed32(ip->saddr, r->src.word[3]) + changed32(ip->daddr, r->dst.word[3]);
	ip->saddr = r->src.word[3];
	ip->daddr = r->dst.word[3];
	if (hop) {
		__be16 *lifetime = (__be16 *)&ip->ttl, old = *lifetime;

		ip->ttl--;
		change += changed16(old, *lifetime);
	}
	ip->check = checksum_after(ip->check, change);
	return 0;
}

static __always_inline int rewrite_header6(struct xdp_md *ctx, __u32 l3, const struct route *r, _Bool hop)
{
	struct ipv6hdr *ip = at(ctx, l3, sizeof(*ip));

	if (!ip)
		return -1;
	__builtin_memcpy(&ip->saddr, &r->src, sizeof(r->src));
	__builtin_memcpy(&ip->daddr, &r->dst, sizeof(r->dst));
	if (hop)
		ip->hop_limit--;
	return 0;
}

/* `seed`: the checksum is not finished, so ports do not concern it. */
static __always_inline int rewrite_ports(struct xdp_md *ctx, __u32 l4, const struct packet *p, const struct route *r,
					 _Bool seed)
{
	__u64 addresses = changed_addr(&p->src, &r->src, p->family) + changed_addr(&p->dst, &r->dst, p->family);
	__u64 change = addresses + changed16(p->sport, r->sport) + changed16(p->dport, r->dport);

	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at(ctx, l4, sizeof(*tcp));

		if (!tcp)
			return -1;
		tcp->source = r->sport;
		tcp->dest = r->dport;
		tcp->check = seed ? seed_after(tcp->check, addresses) : checksum_after(tcp->check, change);
		return 0;
	}
	struct udphdr *udp = at(ctx, l4, sizeof(*udp));

	if (!udp)
		return -1;
	udp->source = r->sport;
	udp->dest = r->dport;
	if (udp->check)
		udp->check = seed ? seed_after(udp->check, addresses) : udp_checksum_after(udp->check, change);
	return 0;
}

/* Rewrites addresses, ports and checksums of the packet that was parsed, before anything moved. */
static __always_inline int rewrite(struct xdp_md *ctx, const struct packet *p, const struct route *r, _Bool hop, _Bool seed)
{
	if (p->family == 4 ? rewrite_header4(ctx, p->l3, r, hop) : rewrite_header6(ctx, p->l3, r, hop))
		return -1;
	return p->fragment == LATER_FRAGMENT ? 0 : rewrite_ports(ctx, p->l4, p, r, seed);
}

static __always_inline __u32 spread_of(const struct packet *p)
{
	return mix_flow(fold_addr(&p->src, p->family), p->fragment == WHOLE ? (__u32)p->dport << 16 | p->sport : 0);
}

static __always_inline int outer4(struct xdp_md *ctx, __u32 l3, const struct packet *p, const struct fl_server *server)
{
	struct iphdr *ip = at(ctx, l3, sizeof(*ip));

	if (!ip)
		return -1;
	write_outer4(ip, server, spread_of(p), p->ip_len, p->tos, p->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6);
	return 0;
}

static __always_inline int outer6(struct xdp_md *ctx, __u32 l3, const struct packet *p, const struct fl_server *server)
{
	struct ipv6hdr *ip = at(ctx, l3, sizeof(*ip));

	if (!ip)
		return -1;
	write_outer6(ip, server, spread_of(p), p->ip_len, p->tos, p->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6);
	return 0;
}

static __always_inline int leave(struct xdp_md *ctx, const struct fl_hop *hop)
{
	return hop->ifindex == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(hop->ifindex, 0);
}

static __always_inline __u32 overhead(const struct route *r)
{
	if (r->forwarding != FL_TUNNEL || r->kind != FL_TO_SERVER)
		return 0;
	return r->hop_family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

#endif
