/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Incremental checksums: HC' = ~(~HC + ~m + m') (RFC 1624, equation 3).
 *
 * A change is summed up in 64 bits, where nothing can overflow, and folded once: 2^16 and 2^32 are both 1 in
 * one's complement arithmetic, so 32-bit words may be added as they stand.
 */
#ifndef FAIRLEAD_CHECKSUM_H
#define FAIRLEAD_CHECKSUM_H

#include "inet.h"

/* `sum`: below 2^47, which is that of 32,768 words of 32 bits. Then the second result is below 2^16 + 2^15. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u64 changed32(__be32 old, __be32 new)
{
	return (__u64)(__u32)~old + new;
}

static __always_inline __u64 changed16(__be16 old, __be16 new)
{
	return (__u64)(__u16)~old + new;
}

static __always_inline __u64 changed_addr(const struct fl_addr *old, const struct fl_addr *new, __u8 family)
{
	if (family == 4)
		return changed32(old->word[3], new->word[3]);
	return changed32(old->word[0], new->word[0]) + changed32(old->word[1], new->word[1]) +
	       changed32(old->word[2], new->word[2]) + changed32(old->word[3], new->word[3]);
}

static __always_inline __u16 checksum_after(__u16 old, __u64 change)
{
	return ~fold((__u64)(__u16)~old + change);
}

/* Of a checksum that was left to the hardware: the field is a sum of the pseudo header, not complemented. */
static __always_inline __u16 seed_after(__u16 old, __u64 change)
{
	return fold((__u64)old + change);
}

/* UDP says "no checksum" by 0 (RFC 768), therefore a sum of 0 is sent as 0xffff. */
static __always_inline __u16 udp_checksum_after(__u16 old, __u64 change)
{
	__u16 sum = checksum_after(old, change);

	return sum ? sum : 0xffff;
}

#endif
