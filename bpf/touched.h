/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which established flows were met a moment ago: a filter (Bloom 1970; one word per flow, Putze et al. 2007) beside
 * the flow table, so small that it stays in a cache when the table does not.
 *
 * Of a settled service every flow in the table has the server that its slot names, except for strays; so a packet of
 * a flow that was met in this epoch needs no entry: its slot says the same. The table is asked once in an epoch, for
 * its entry to stay young, and always where a word says so, because a stray's is there. While few flows are in use
 * (settings.crowded), their entries are in a cache themselves: the table is asked always, and only marks are written
 * here. The agent lets two epochs pass before it sets that again, so no word has flags of the time before.
 *
 * A flow that is taken for one that was met, because others set its bits, is sent to the same server all the same;
 * its entry is made or made younger in a later epoch, in which bits are others.
 */
#ifndef FAIRLEAD_TOUCHED_H
#define FAIRLEAD_TOUCHED_H

#include "common.h"

#define EPOCH_BITS 56		     /* above them stands the epoch a word is of */
#define MARKS (3ull << FL_MARK_BITS) /* ask the flow table: here are strays */
#define FLAGS ((1ull << FL_MARK_BITS) - 1)

struct touch {
	__u64 *word;
	__u64 raw, held; /* as it stands, and as it is in this epoch */
	__u64 bits;	 /* of the flow */
};

static __always_inline __u64 flag_of(__u64 spread)
{
	return 1ull << ((spread & 63) * FL_MARK_BITS >> 6);
}

/* `hash`: of the flow table; flows that begin near each other there are near each other here. */
static __always_inline __u64 *touch_word(__u64 hash)
{
	__u32 index = (__u32)hash / FL_BLOCKS_PER_WORD & touched_mask;

	return bpf_map_lookup_elem(&touched, &index);
}

/* `hash`: of the flow table. -1: there is no such word. */
static __always_inline int touch_find(struct touch *touch, __u64 hash, __u32 time)
{
	__u32 epoch = time >> touch_shift;
	/* Other bits in every epoch: flows that meet in one part in the next. */
	__u64 spread = (hash >> 32) * ((2ull * epoch + 1) * 0x9E3779B97F4A7C15ull) >> 46;

	touch->word = touch_word(hash);
	if (!touch->word)
		return -1;
	touch->bits = flag_of(spread) | flag_of(spread >> 6) | flag_of(spread >> 12);
	touch->raw = *(volatile __u64 *)touch->word;
	touch->held = touch->raw;
	if (touch->raw >> EPOCH_BITS != (__u8)epoch)
		touch->held = (__u64)(__u8)epoch << EPOCH_BITS | (touch->raw & MARKS);
	return 0;
}

/* Whether its slot says all there is to say of the flow, if its service is settled. */
static __always_inline _Bool touch_met(const struct touch *touch)
{
	return (touch->held & (MARKS | touch->bits)) == touch->bits;
}

/* The flow was met, and its entry is young. Whoever loses a race against another CPU is met again. */
static __always_inline void touch_set(const struct touch *touch)
{
	if ((touch->held & touch->bits) != touch->bits)
		__sync_val_compare_and_swap(touch->word, touch->raw, touch->held | touch->bits);
}

/*
 * An entry was stored: its next packet has to be seen by it. `by_slot`: its server is the one its slot names; if
 * not, the table is asked for everybody here. Marks are set by both bits, after the entry (settle.bpf.c).
 */
static __always_inline void touch_stored(__u64 hash, __u32 time, _Bool by_slot, const struct fl_settings *set)
{
	struct touch touch;

	if ((by_slot && !set->crowded) || touch_find(&touch, hash, time))
		return;
	if (!by_slot)
		__sync_fetch_and_or(touch.word, MARKS);
	else if ((touch.held & touch.bits) == touch.bits)
		__sync_val_compare_and_swap(touch.word, touch.raw, touch.held & ~touch.bits);
}

#endif
