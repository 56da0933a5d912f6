/* SPDX-License-Identifier: GPL-2.0-only */
/* The outer header of a tunnel, for clients' packets and for probes that take the same way. */
#ifndef FAIRLEAD_OUTER_H
#define FAIRLEAD_OUTER_H

#include "checksum.h"
#include "inet.h"

#define OUTER_TTL 64

/* Bits that vary by flow and by nothing else, for those who spread by outer header alone (as MurmurHash3 mixes). */
static __always_inline __u32 mix_flow(__u32 address, __u32 ports)
{
	__u32 mix = address * 0x9E3779B1u;

	mix = (mix ^ mix >> 15 ^ ports) * 0x85EBCA6Bu;
	return mix ^ mix >> 13;
}

/*
 * IP in IP (RFC 2003, RFC 2473): DF set, so that no router fragments; ECN copied as RFC 6040 wants it. The words are
 * made and summed in registers: bytes and halves that are read back as words are waited for, about 12 ns.
 */
static __always_inline void write_outer4(struct iphdr *ip, const struct fl_server *server, __u32 spread, __u32 ip_len,
					 __u8 tos, __u8 proto)
{
	__u32 version_length = bpf_htonl(0x45u << 24 | (__u32)tos << 16 | (__u16)(ip_len + sizeof(*ip)));
	__u32 id_fragment = bpf_htonl(IP_DF), ttl_proto = bpf_htonl(OUTER_TTL << 24 | (__u32)proto << 16);
	__u32 saddr = server->source.word[3] ^ (spread & server->spread), daddr = server->addr.word[3];
	__u32 *word = (__u32 *)ip;
	__sum16 check = ~fold((__u64)version_length + id_fragment + ttl_proto + saddr + daddr);

	word[0] = version_length;
	word[1] = id_fragment;
	word[2] = ttl_proto | (__u32)check << 16;
	word[3] = saddr;
	word[4] = daddr;
}

static __always_inline void write_outer6(struct ipv6hdr *ip, const struct fl_server *server, __u32 spread, __u32 ip_len,
					 __u8 tos, __u8 proto)
{
	/* Version, traffic class, and the flow label by which routers and servers spread (RFC 6438). */
	*(__be32 *)ip = bpf_htonl(6u << 28 | (__u32)tos << 20 | (spread & 0xfffff));
	ip->payload_len = bpf_htons(ip_len);
	ip->nexthdr = proto;
	ip->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip->saddr, &server->source, sizeof(server->source));
	ip->saddr.s6_addr32[3] ^= spread & server->spread;
	__builtin_memcpy(&ip->daddr, &server->addr, sizeof(server->addr));
}

#endif
