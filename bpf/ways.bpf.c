// SPDX-License-Identifier: GPL-2.0-only
/*
 * Health checks by the way of a service's packets: two tc programs. On its way out a marked packet is addressed to
 * the VIP and sent as the XDP program sends a client's (dsr: to the server's link address, which it has already;
 * tunnel: with an outer header). What the VIP answers gets the server's address as its source before the stack sees
 * it: the VIP may be an address of this very host, and its packets would be martians.
 *
 * Invariant: a packet of a way goes that way or nowhere; what is not a probe's leaves as it came.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include "inet.h"
#include "checksum.h"
#include "outer.h"

#define TCP_CHECK 16
#define UDP_CHECK 6

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct fl_way);
} ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct fl_asked);
	__type(value, struct fl_asker);
} asked SEC(".maps");

/* What a plain IP header says, one without options or extensions, and the ports behind it. */
struct header {
	struct fl_addr src, dst; /* in this order, as IPv6 has them */
	__be16 sport, dport;
	__u32 ip_len;
	__u8 family, proto, tos, ttl;
	__u16 l4;
};

enum { PLAIN, NOT_PLAIN, NO_IP };

static __always_inline int read_header(struct __sk_buff *skb, __u32 at, struct header *h)
{
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;
	__u8 first;
	int whole;

	if (bpf_skb_load_bytes(skb, at, &first, 1))
		return NO_IP;
	if (first >> 4 == 4) {
		if (bpf_skb_load_bytes(skb, at, &ip.v4, sizeof(ip.v4)))
			return NO_IP;
		h->family = 4;
		set_addr4(&h->src, ip.v4.saddr);
		set_addr4(&h->dst, ip.v4.daddr);
		h->ip_len = bpf_ntohs(ip.v4.tot_len);
		h->proto = ip.v4.protocol;
		h->tos = ip.v4.tos;
		h->ttl = ip.v4.ttl;
		h->l4 = at + sizeof(ip.v4);
		whole = first == 0x45 && !(ip.v4.frag_off & bpf_htons(IP_MF | IP_OFFSET));
	} else if (first >> 4 == 6) {
		if (bpf_skb_load_bytes(skb, at, &ip.v6, sizeof(ip.v6)))
			return NO_IP;
		h->family = 6;
		__builtin_memcpy(&h->src, &ip.v6.saddr, sizeof(h->src));
		__builtin_memcpy(&h->dst, &ip.v6.daddr, sizeof(h->dst));
		h->ip_len = bpf_ntohs(ip.v6.payload_len) + sizeof(ip.v6);
		h->proto = ip.v6.nexthdr;
		h->tos = bpf_ntohl(*(__be32 *)&ip.v6) >> 20;
		h->ttl = ip.v6.hop_limit;
		h->l4 = at + sizeof(ip.v6);
		whole = 1;
	} else {
		return NO_IP;
	}
	if (!whole || bpf_skb_load_bytes(skb, h->l4, &h->sport, 4))
		return NOT_PLAIN;
	return PLAIN;
}

static __always_inline __u64 address_sum(const struct fl_addr *a, __u8 family)
{
	if (family == 4)
		return a->word[3];
	return (__u64)a->word[0] + a->word[1] + a->word[2] + a->word[3];
}

/* Writes into the packet; a sum over it that the driver brought (CHECKSUM_COMPLETE) stays right. */
static __always_inline int put(struct __sk_buff *skb, __u32 at, const void *from, __u32 length)
{
	return bpf_skb_store_bytes(skb, at, from, length, BPF_F_RECOMPUTE_CSUM);
}

/*
 * The transport's checksum after a change of the pseudo header. Where hardware is to compute it (CHECKSUM_PARTIAL)
 * the field holds another thing, which only the kernel's own function knows; that one in turn spoils CHECKSUM_COMPLETE for
 * IPv6 before Linux 6.16. `ours`: the stack of this host sent it, which never leaves a checksum of UDP out.
 */
static __always_inline int change_checksum(struct __sk_buff *skb, const struct header *h, __u64 change, _Bool ours)
{
	__u32 at = h->l4 + (h->proto == IPPROTO_TCP ? TCP_CHECK : UDP_CHECK);
	__u64 flags = BPF_F_PSEUDO_HDR;
	__sum16 sum;

	if (bpf_csum_update(skb, 0) < 0) {
		if (h->proto == IPPROTO_UDP)
			flags |= ours ? BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE : BPF_F_MARK_MANGLED_0;
		change = (change & 0xffffffff) + (change >> 32);
		change = (change & 0xffffffff) + (change >> 32);
		return bpf_l4_csum_replace(skb, at, 0, change, flags);
	}
	if (bpf_skb_load_bytes(skb, at, &sum, sizeof(sum)))
		return -1;
	if (h->proto == IPPROTO_UDP && !sum)
		return 0;
	sum = h->proto == IPPROTO_UDP ? udp_checksum_after(sum, change) : checksum_after(sum, change);
	return put(skb, at, &sum, sizeof(sum));
}

/* New addresses in an IPv4 header, at L3 or quoted; `h` is what it says now. */
static __always_inline int put_addresses4(struct __sk_buff *skb, __u32 at, const struct header *h, __be32 src, __be32 dst)
{
	__be32 both[2] = { src, dst };
	__sum16 sum;

	if (bpf_skb_load_bytes(skb, at + __builtin_offsetof(struct iphdr, check), &sum, sizeof(sum)))
		return -1;
	sum = checksum_after(sum, changed32(h->src.word[3], src) + changed32(h->dst.word[3], dst));
	if (put(skb, at + __builtin_offsetof(struct iphdr, check), &sum, sizeof(sum)))
		return -1;
	return put(skb, at + __builtin_offsetof(struct iphdr, saddr), both, sizeof(both));
}

/* The same packet under the header of the other family (RFC 7915, as far as it concerns a probe). */
static __always_inline int translate(struct __sk_buff *skb, struct header *h, const struct header *to)
{
	__be16 type = to->family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	__u32 payload = h->ip_len - (h->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

	if (bpf_skb_change_proto(skb, type, 0) ||
	    put(skb, __builtin_offsetof(struct ethhdr, h_proto), &type, sizeof(type)))
		return -1;
	if (to->family == 4) {
		struct iphdr ip = { .version = 4, .ihl = 5, .tos = h->tos, .ttl = h->ttl, .protocol = h->proto };
		__u64 sum;

		ip.tot_len = bpf_htons(payload + sizeof(ip));
		ip.frag_off = bpf_htons(IP_DF);
		ip.saddr = to->src.word[3];
		ip.daddr = to->dst.word[3];
		sum = (__u64)((__u32 *)&ip)[0] + ((__u32 *)&ip)[1] + ((__u32 *)&ip)[2] + ip.saddr + ip.daddr;
		ip.check = ~fold(sum);
		h->ip_len = payload + sizeof(ip);
		h->l4 = ETH_HLEN + sizeof(ip);
		return put(skb, ETH_HLEN, &ip, sizeof(ip));
	}
	struct ipv6hdr ip = { .payload_len = bpf_htons(payload), .nexthdr = h->proto, .hop_limit = h->ttl };

	*(__be32 *)&ip = bpf_htonl(6u << 28 | (__u32)h->tos << 20);
	__builtin_memcpy(&ip.saddr, &to->src, sizeof(to->src));
	__builtin_memcpy(&ip.daddr, &to->dst, sizeof(to->dst));
	h->ip_len = payload + sizeof(ip);
	h->l4 = ETH_HLEN + sizeof(ip);
	return put(skb, ETH_HLEN, &ip, sizeof(ip));
}

/* Gives a packet the addresses and the family of `to`; `h` follows in length and place. */
static __always_inline int readdress(struct __sk_buff *skb, struct header *h, const struct header *to, _Bool ours)
{
	__u64 before = address_sum(&h->src, h->family) + address_sum(&h->dst, h->family);
	__u64 after = address_sum(&to->src, to->family) + address_sum(&to->dst, to->family);
	__u64 change = (__u64)(__u16)~fold(before) + after;
	int error;

	if (to->family != h->family)
		error = translate(skb, h, to);
	else if (to->family == 4)
		error = put_addresses4(skb, ETH_HLEN, h, to->src.word[3], to->dst.word[3]);
	else
		error = put(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), &to->src, 2 * sizeof(to->src));
	return error ? error : change_checksum(skb, h, change, ours);
}

/* Puts the outer header of the tunnel before the packet, whose length stands in `h` after readdress. */
static __always_inline int wrap(struct __sk_buff *skb, const struct header *h, const struct fl_way *way, __u32 spread)
{
	__u8 proto = way->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	__be16 type;

	if (way->server.family == 4) {
		struct iphdr ip;

		type = bpf_htons(ETH_P_IP);
		if (bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
			return -1;
		write_outer4(&ip, &way->server, spread, h->ip_len, h->tos, proto);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0))
			return -1;
	} else {
		struct ipv6hdr ip;

		type = bpf_htons(ETH_P_IPV6);
		if (bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
			return -1;
		write_outer6(&ip, &way->server, spread, h->ip_len, h->tos, proto);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0))
			return -1;
	}
	return bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0);
}

/* Whether a server is behind a gateway, where dsr does not reach it. */
static __always_inline _Bool behind_gateway(struct __sk_buff *skb, const struct header *h)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long error;

	if (h->family == 4) {
		fib.family = AF_INET;
		fib.ipv4_dst = h->dst.word[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_dst, &h->dst, sizeof(h->dst));
	}
	error = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT);
	if (error != BPF_FIB_LKUP_RET_SUCCESS && error != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	if (h->family == 4)
		return fib.family != AF_INET || fib.ipv4_dst != h->dst.word[3];
	return !same_addr((struct fl_addr *)fib.ipv6_dst, &h->dst);
}

static __always_inline int send(struct __sk_buff *skb, struct header *h, struct fl_way *way, __u32 mark)
{
	struct fl_asked key = { .near_port = h->sport, .port = h->dport, .proto = h->proto };
	struct fl_asker asker = { .own = h->src, .mark = mark };
	struct header to = { .family = way->family, .dst = way->vip };
	__u32 spread;

	to.src = way->family == h->family ? h->src : way->near;
	key.near = to.src;
	key.vip = way->vip;
	if (bpf_map_update_elem(&asked, &key, &asker, BPF_ANY) || readdress(skb, h, &to, 1))
		return TC_ACT_SHOT;
	if (way->forwarding == FL_TUNNEL) {
		spread = mix_flow(fold_addr(&to.src, to.family), (__u32)h->dport << 16 | h->sport);
		if (wrap(skb, h, way, spread))
			return TC_ACT_SHOT;
	}
	__sync_fetch_and_add(&way->packets, 1);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int fairlead_out(struct __sk_buff *skb)
{
	__u32 mark = skb->mark;
	struct header h = {};
	struct fl_way *way;
	int found;

	if ((mark & FL_WAY_MARKS) != FL_WAY_MARK)
		return TC_ACT_UNSPEC;
	way = bpf_map_lookup_elem(&ways, &mark);
	if (!way)
		return TC_ACT_UNSPEC;
	found = read_header(skb, ETH_HLEN, &h);
	if (found == NO_IP || h.proto != way->proto || !same_addr(&h.dst, &way->server.addr))
		return TC_ACT_UNSPEC;
	if (found == NOT_PLAIN || h.dport != way->port)
		return TC_ACT_SHOT;
	if (way->forwarding == FL_DSR && behind_gateway(skb, &h))
		return TC_ACT_SHOT;
	return send(skb, &h, way, mark);
}

/* Whether the socket that asked still waits. Others may have its port by now, and talk to the VIP themselves. */
static __always_inline _Bool still_asks(struct __sk_buff *skb, const struct header *to, __u32 mark)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sock;
	__u32 size;
	_Bool same;

	if (to->family == 4) {
		tuple.ipv4.saddr = to->src.word[3];
		tuple.ipv4.daddr = to->dst.word[3];
		tuple.ipv4.sport = to->sport;
		tuple.ipv4.dport = to->dport;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &to->src, sizeof(to->src));
		__builtin_memcpy(tuple.ipv6.daddr, &to->dst, sizeof(to->dst));
		tuple.ipv6.sport = to->sport;
		tuple.ipv6.dport = to->dport;
		size = sizeof(tuple.ipv6);
	}
	sock = to->proto == IPPROTO_TCP ? bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0) :
					  bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 0;
	same = sock->mark == mark;
	bpf_sk_release(sock);
	return same;
}

/* The way that a packet comes back by, and what it is to become in `to`; NULL: it is none of ours. */
static __always_inline struct fl_way *way_of_answer(struct __sk_buff *skb, const struct header *h, struct header *to)
{
	struct fl_asked key = { .near_port = h->dport, .port = h->sport, .proto = h->proto };
	struct fl_asker *asker;
	struct fl_way *way;
	__u32 mark;

	key.near = h->dst;
	key.vip = h->src;
	asker = bpf_map_lookup_elem(&asked, &key);
	if (!asker)
		return 0;
	mark = asker->mark;
	way = bpf_map_lookup_elem(&ways, &mark);
	if (!way)
		return 0;
	to->src = way->server.addr;
	to->dst = asker->own;
	to->sport = h->sport;
	to->dport = h->dport;
	to->family = way->server.family;
	to->proto = h->proto;
	return still_asks(skb, to, mark) ? way : 0;
}

/*
 * An ICMP error about a probe (of one family throughout): the packet it quotes gets the server's address, and so does
 * its source, if it is the VIP. Changes in a quoted IPv4 header cancel out with that of its own checksum.
 */
static __always_inline int error_in(struct __sk_buff *skb, const struct header *h)
{
	struct header quoted = {}, answer = {}, to = {};
	__u32 at = h->l4 + 8;
	struct fl_way *way;
	_Bool from_vip;
	__sum16 sum;
	__u64 change;

	if (read_header(skb, at, &quoted) != PLAIN || quoted.family != h->family)
		return TC_ACT_UNSPEC;
	answer.src = quoted.dst;
	answer.dst = quoted.src;
	answer.sport = quoted.dport;
	answer.dport = quoted.sport;
	answer.proto = quoted.proto;
	way = way_of_answer(skb, &answer, &to);
	if (!way || to.family != h->family)
		return TC_ACT_UNSPEC;
	from_vip = same_addr(&h->src, &way->vip);
	if (h->family == 4) {
		put_addresses4(skb, at, &quoted, quoted.src.word[3], to.src.word[3]);
		if (from_vip)
			put_addresses4(skb, ETH_HLEN, h, to.src.word[3], h->dst.word[3]);
		return TC_ACT_UNSPEC;
	}
	change = changed_addr(&quoted.dst, &to.src, 6);
	if (from_vip)
		change += changed_addr(&h->src, &to.src, 6);
	if (bpf_skb_load_bytes(skb, h->l4 + 2, &sum, sizeof(sum)))
		return TC_ACT_UNSPEC;
	sum = checksum_after(sum, change);
	put(skb, h->l4 + 2, &sum, sizeof(sum));
	put(skb, at + __builtin_offsetof(struct ipv6hdr, daddr), &to.src, sizeof(to.src));
	if (from_vip)
		put(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), &to.src, sizeof(to.src));
	return TC_ACT_UNSPEC;
}

static __always_inline _Bool is_error(struct __sk_buff *skb, const struct header *h)
{
	__u8 type = bpf_ntohs(h->sport) >> 8; /* it stands where others have their source port */

	if (h->family == 4)
		return h->proto == IPPROTO_ICMP &&
		       (type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB);
	return h->proto == IPPROTO_ICMPV6 && type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

SEC("tc")
int fairlead_in(struct __sk_buff *skb)
{
	struct header h = {}, to = {};

	if (read_header(skb, ETH_HLEN, &h) != PLAIN)
		return TC_ACT_UNSPEC;
	if (is_error(skb, &h))
		return error_in(skb, &h);
	if (h.proto != IPPROTO_TCP && h.proto != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	if (way_of_answer(skb, &h, &to) && readdress(skb, &h, &to, 0))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
