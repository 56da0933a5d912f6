/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Checksums that were left to the hardware (CHECKSUM_PARTIAL). A sender on this host or beside it, behind veth, tun
 * or virtio, may leave its TCP or UDP checksum to a network card that the packet never meets: the field then holds
 * the sum of the pseudo header, not complemented, and says so in the kernel's own record of the packet alone.
 *
 * In native mode that record is lost when the packet is sent on, so the checksum is worked out here. In generic mode,
 * and where the stack gets the packet, the record stays, and somebody finishes the checksum later: then the field
 * must hold the sum of the new pseudo header. A checksum that is complete may look the same (1 in 65,536); it is told
 * by being right.
 */
#ifndef FAIRLEAD_PARTIAL_H
#define FAIRLEAD_PARTIAL_H

#include "checksum.h"
#include "common.h"
#include "parse.h"

enum { SUM_DONE, SUM_SEED, SUM_UNKNOWN };

#define SUM_CHUNK 64
#define SUM_LONGEST 0x3fff /* bytes of a frame that can be summed up: jumbo frames fit */

static __always_inline void *part_at(struct xdp_md *ctx, __u32 offset, __u32 size)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (offset > SUM_LONGEST)
		return 0;
	asm volatile("%0 &= 0x3fff" : "+r"(offset)); /* as in at() */
	data += offset;
	if (data + size > end)
		return 0;
	return data;
}

static __always_inline int sum_part(struct xdp_md *ctx, __u32 *offset, __u32 size, __u64 *sum)
{
	void *part = part_at(ctx, *offset, size);

	if (!part)
		return -1;
	*sum += (__u32)bpf_csum_diff(0, 0, part, size, 0);
	*offset += size;
	return 0;
}

/* The sum of `length` bytes, folded; -1 when the frame does not have them in reach. */
__noinline int sum_bytes(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	__u64 sum = 0;
	__u8 *rest;

	for (int i = 0; i < SUM_LONGEST / SUM_CHUNK && length >= SUM_CHUNK; i++) {
		if (sum_part(ctx, &offset, SUM_CHUNK, &sum))
			return -1;
		length -= SUM_CHUNK;
	}
	if (length >= SUM_CHUNK || (length & 32 && sum_part(ctx, &offset, 32, &sum)) ||
	    (length & 16 && sum_part(ctx, &offset, 16, &sum)) || (length & 8 && sum_part(ctx, &offset, 8, &sum)) ||
	    (length & 4 && sum_part(ctx, &offset, 4, &sum)))
		return -1;
	for (__u32 i = 0; i < 3 && i < (length & 3); i++) {
		rest = part_at(ctx, offset + i, 1);
		if (!rest)
			return -1;
		sum += bpf_htons(i & 1 ? *rest : *rest << 8);
	}
	return fold(sum);
}

static __always_inline _Bool is_generic(struct xdp_md *ctx)
{
	__u32 index = ctx->ingress_ifindex;

	return !!bpf_map_lookup_elem(&generic_ports, &index);
}

/* Whether a checksum is the sum of the pseudo header of `length` bytes. */
static __always_inline _Bool looks_unfinished(const struct packet *p, __u32 length, __u16 check)
{
	return check == fold(pseudo_header(p, length, p->proto));
}

static __always_inline __u16 *sum_field(struct xdp_md *ctx, const struct packet *p)
{
	return at(ctx, p->l4 + (p->proto == IPPROTO_TCP ? 16 : 6), sizeof(__u16));
}

/* Finishes the checksum of a packet that is sent on, or says that it is not for us to do. `stays`: the stack gets it. */
__noinline int finish_sum(struct xdp_md *ctx, const struct packet *p, int stays)
{
	__u32 length;
	__u16 *check, finished;
	int sum;

	if (!p || p->fragment != WHOLE)
		return SUM_DONE;
	length = p->ip_len - (p->l4 - p->l3);
	check = sum_field(ctx, p);
	if (!check || !looks_unfinished(p, length, *check))
		return SUM_DONE;
	/* The field itself stands for the pseudo header. */
	sum = sum_bytes(ctx, p->l4, length);
	if (sum < 0)
		return SUM_UNKNOWN;
	finished = ~sum;
	if (!finished && p->proto == IPPROTO_UDP)
		finished = 0xffff;
	check = sum_field(ctx, p);
	if (!check || *check == finished)
		return SUM_DONE;
	if (stays || is_generic(ctx))
		return SUM_SEED;
	*check = finished;
	return SUM_DONE;
}

#endif
