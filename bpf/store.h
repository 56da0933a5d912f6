/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A new flow takes a place that is free or whose flow has expired, from its home on or else elsewhere; else that of a
 * flow which is itself only new, else that of one that has been silent for a quarter of its timeout. So a flood of new
 * flows pushes out new flows, and established ones stay; what finds no place is forwarded by the stateless choice.
 *
 * An entry is written under its lock, which is only tried: whoever fails goes on without storing.
 */
#ifndef FAIRLEAD_STORE_H
#define FAIRLEAD_STORE_H

#include "common.h"
#include "flow.h"

#define UNNEEDED (~0u)
#define ALL_PLACES (2 * FL_PROBES) /* where an entry may stand; no such number stands for none */

/* How well an entry's place may be taken; 0: it may not. */
static __always_inline __u32 spare(const struct fl_flow *flow, __u32 at_time)
{
	__s32 age = at_time - flow->seen;
	__u32 id = flow->service, timeout;
	struct fl_service *service = bpf_map_lookup_elem(&services, &id);

	if (age < 0)
		age = 0;
	if (flow->kind == FL_GONE || !service)
		return UNNEEDED;
	timeout = service->timeout[flow->state & (FL_STATES - 1)];
	if ((__u32)age > timeout)
		return UNNEEDED;
	if (flow->state == FL_NEW)
		return (1u << 31) + age;
	return (__u32)age > timeout / 4 ? age : 0;
}

/* The lock is the upper half of a word, because atomic operations need a whole one. */
static __always_inline int lock_entry(struct fl_flow *flow)
{
	__u32 *word = (__u32 *)&flow->table, before = *(volatile __u32 *)word;

	if (before & 0x10000 || __sync_val_compare_and_swap(word, before, before + 0x10000) != before)
		return -1;
	return 0;
}

static __always_inline void unlock_entry(struct fl_flow *flow)
{
	__sync_fetch_and_add((__u32 *)&flow->table, 0x10000);
}

static __always_inline void fill_entry(struct fl_flow *to, const struct fl_flow *from, __u8 proto)
{
	to->proto = proto;
	to->kind = from->kind;
	to->state = from->state;
	to->seen = from->seen;
	to->server = from->server;
	to->service = from->service;
	to->generation = from->generation;
	to->table = from->table;
}

static __always_inline void fill_usage(struct fl_usage *to, __u32 octets, __u32 born)
{
	to->octets = octets;
	to->packets = !!octets;
	to->born = born;
}

enum { PLACE_NEXT, PLACE_DONE, PLACE_HELD };

/* Whether a flow should take place `number`, which then stands in scratch. All but the first end the search. */
static __always_inline int judge_place(struct scratch *work, const struct fl_flow *held, __u32 number, _Bool same, int absent)
{
	__u32 at_time = work->flow.entry.seen, rank;

	if (held->kind == FL_FREE) {
		if (work->rank != UNNEEDED)
			work->place = number;
		return PLACE_DONE;
	}
	if (same) {
		work->place = number;
		return absent && held->kind != FL_GONE && flow_alive(held, at_time) ? PLACE_HELD : PLACE_DONE;
	}
	rank = work->rank == UNNEEDED ? 0 : spare(held, at_time);
	if (rank > work->rank) {
		work->rank = rank;
		work->place = number;
	}
	return PLACE_NEXT;
}

/*
 * Elsewhere is looked at for the same flow, or if there is no place from home on that nobody needs. A flow that finds
 * none in either is not stored. 0: found.
 */
static __always_inline int find_place4(struct scratch *work, __u64 hash, __u64 addresses, __u64 rest, int absent)
{
	int verdict = PLACE_NEXT;

	work->rank = 0;
	work->place = ALL_PLACES;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < ALL_PLACES && verdict == PLACE_NEXT; i++) {
		struct fl_block4 *block = block4(hash, i / FL_PLACES4);
		struct fl_flow4 *entry;

		if (!block)
			return -1;
		if (i == FL_PROBES && work->rank == UNNEEDED && !stands_elsewhere4(hash))
			break;
		entry = &block->entry[i % FL_PLACES4];
		verdict = judge_place(work, &entry->flow, i, same_key4(entry, addresses, rest), absent);
	}
	return verdict == PLACE_HELD || work->place >= ALL_PLACES ? -1 : 0;
}

static __always_inline int find_place6(struct scratch *work, __u64 hash, int absent)
{
	int verdict = PLACE_NEXT;

	work->rank = 0;
	work->place = ALL_PLACES;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < ALL_PLACES && verdict == PLACE_NEXT; i++) {
		struct fl_block6 *block = block6(hash, i);

		if (!block)
			return -1;
		if (i == FL_PROBES && work->rank == UNNEEDED && !stands_elsewhere6(hash))
			break;
		verdict = judge_place(work, &block->entry.flow, i, same_key6(&block->entry, &work->tuple), absent);
	}
	return verdict == PLACE_HELD || work->place >= ALL_PLACES ? -1 : 0;
}

static __always_inline int store4(struct scratch *work, const struct fl_settings *set, int absent)
{
	const struct tuple *t = &work->tuple;
	__u64 addresses = two(t->src.word[3], t->dst.word[3]), rest = ports_proto(t->sport, t->dport, t->proto);
	__u64 hash = hash4(addresses, rest, set);
	struct fl_block4 *block, *home = block4(hash, 0);
	struct fl_details4 *details;
	struct fl_flow4 *entry;
	__u32 place;

	if (find_place4(work, hash, addresses, rest, absent))
		return -1;
	place = work->place;
	block = block4(hash, place / FL_PLACES4);
	if (!home || !block)
		return -1;
	entry = &block->entry[place % FL_PLACES4];
	details = &block->details[place % FL_PLACES4];
	if (lock_entry(&entry->flow))
		return -1;
	if (place >= FL_PROBES)
		home->details[0].elsewhere = 1;
	entry->src = t->src.word[3];
	entry->dst = t->dst.word[3];
	entry->sport = t->sport;
	entry->dport = t->dport;
	fill_entry(&entry->flow, &work->flow.entry, t->proto);
	fill_usage(&details->usage, work->octets, work->flow.entry.seen);
	details->near = work->flow.near.word[3];
	details->far = work->flow.far.word[3];
	details->near_port = work->flow.near_port;
	details->far_port = work->flow.far_port;
	unlock_entry(&entry->flow);
	if (work->flow.entry.kind == FL_TO_SERVER && t->proto == IPPROTO_TCP)
		touch_stored(hash, work->flow.entry.seen, work->by_slot, set);
	return 0;
}

static __always_inline int store6(struct scratch *work, const struct fl_settings *set, int absent)
{
	const struct tuple *t = &work->tuple;
	__u64 hash = hash6(t, set);
	struct fl_block6 *block, *home = block6(hash, 0);

	if (find_place6(work, hash, absent))
		return -1;
	block = block6(hash, work->place);
	if (!home || !block || lock_entry(&block->entry.flow))
		return -1;
	if (work->place >= FL_PROBES)
		home->details.elsewhere = 1;
	block->entry.src = t->src;
	block->entry.dst = t->dst;
	block->entry.sport = t->sport;
	block->entry.dport = t->dport;
	fill_entry(&block->entry.flow, &work->flow.entry, t->proto);
	fill_usage(&block->details.usage, work->octets, work->flow.entry.seen);
	block->details.near = work->flow.near;
	block->details.far = work->flow.far;
	block->details.near_port = work->flow.near_port;
	block->details.far_port = work->flow.far_port;
	unlock_entry(&block->entry.flow);
	return 0;
}

/* Stores scratch's `flow` and `octets` under its `tuple`; `absent`: only if no live flow has that tuple. 0: stored. */
__noinline int flow_store(int absent)
{
	struct scratch *work = get_scratch();
	struct fl_settings *set = get_settings();

	if (!work || !set)
		return -1;
	return work->tuple.family == 4 ? store4(work, set, absent) : store6(work, set, absent);
}

#endif
