/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which server a flow belongs to. Entries are judged by age when they are met; nothing sweeps.
 *
 * An entry is written under its lock (store.h). A reader copies what it needs and looks at the lock before and after.
 * (Loads keep their order on x86; elsewhere one packet could be sent by an entry that is being replaced at that
 * moment.)
 */
#ifndef FAIRLEAD_FLOW_H
#define FAIRLEAD_FLOW_H

#include "common.h"
#include "touched.h"

static __always_inline void tuple_of(struct tuple *t, const struct packet *p)
{
	t->src = p->src;
	t->dst = p->dst;
	t->sport = p->sport;
	t->dport = p->dport;
	t->proto = p->proto;
	t->family = p->family;
}

/*
 * Keys in registers: an IPv4 key is two words, addresses and the rest. Written to memory in parts and read back
 * whole, a key would wait for every load before it, also those of the packet before.
 */
static __always_inline __u64 two(__be32 low, __be32 high)
{
	return (__u64)high << 32 | low;
}

static __always_inline __u64 ports_proto(__be16 sport, __be16 dport, __u8 proto)
{
	return (__u64)proto << 32 | (__u32)dport << 16 | sport;
}

#define REST_MASK 0xffffffffffull /* ports and protocol; kind and state follow in the same word */

/* Secret, so that nobody can aim at a place; the multipliers are those of SplitMix64. */
#define SPREAD 0x94D049BB133111EBull

static __always_inline __u64 mix_word(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0xBF58476D1CE4E5B9ull;
	return hash ^ hash >> 32;
}

/*
 * The lower half is a key's home: a region by what it has in common with its neighbours, and a block in it by all of
 * it. The upper half is where it stands if not there, and serves touched.h.
 */
static __always_inline __u64 hash_of(__u64 common, __u64 whole, __u32 region_bits)
{
	__u32 region = common * SPREAD >> 32 & ~((1u << region_bits) - 1);

	return whole << 32 | region | whole * SPREAD >> (64 - region_bits);
}

static __always_inline __u64 hash4(__u64 addresses, __u64 rest, const struct fl_settings *set)
{
	__u64 common = mix_word(mix_word(set->secret[0], addresses) + set->secret[1], rest & ~FL_NEIGHBOURS);

	return hash_of(common, mix_word(common, rest), FL_REGION4_BITS);
}

static __always_inline __u64 hash6(const struct tuple *t, const struct fl_settings *set)
{
	__u64 hash = mix_word(set->secret[0], two(t->src.word[0], t->src.word[1])) + set->secret[1];
	__u64 rest = ports_proto(t->sport, t->dport, t->proto);

	hash = mix_word(hash, two(t->src.word[2], t->src.word[3]));
	hash = mix_word(hash, two(t->dst.word[0], t->dst.word[1]));
	hash = mix_word(hash, two(t->dst.word[2], t->dst.word[3]));
	hash = mix_word(hash, rest & ~FL_NEIGHBOURS);
	return hash_of(hash, mix_word(hash, rest), FL_REGION6_BITS);
}

#define HOME4 (FL_PROBES / FL_PLACES4) /* blocks from home on, and as many elsewhere */
#define HOME6 FL_PROBES

static __always_inline __u32 nth_block(__u64 hash, __u32 n, __u32 at_home, __u32 region_bits)
{
	return n < at_home ? (__u32)hash + n : (__u32)(hash >> 32) + ((n - at_home) << region_bits);
}

/* Blocks where a key's entry may stand: the first HOME4 from its home on, then as many elsewhere. */
static __always_inline struct fl_block4 *block4(__u64 hash, __u32 n)
{
	__u32 index = nth_block(hash, n, HOME4, FL_REGION4_BITS) & block4_mask;

	return bpf_map_lookup_elem(&flows4, &index);
}

static __always_inline struct fl_block6 *block6(__u64 hash, __u32 n)
{
	__u32 index = nth_block(hash, n, HOME6, FL_REGION6_BITS) & block6_mask;

	return bpf_map_lookup_elem(&flows6, &index);
}

static __always_inline _Bool stands_elsewhere4(__u64 hash)
{
	struct fl_block4 *home = block4(hash, 0);

	return home && home->details[0].elsewhere;
}

static __always_inline _Bool stands_elsewhere6(__u64 hash)
{
	struct fl_block6 *home = block6(hash, 0);

	return home && home->details.elsewhere;
}

static __always_inline _Bool same_key4(const struct fl_flow4 *entry, __u64 addresses, __u64 rest)
{
	const __u64 *word = (const __u64 *)entry;

	return word[0] == addresses && (word[1] & REST_MASK) == rest;
}

static __always_inline _Bool same_key6(const struct fl_flow6 *entry, const struct tuple *t)
{
	return entry->sport == t->sport && entry->dport == t->dport && entry->flow.proto == t->proto &&
	       same_addr(&entry->src, &t->src) && same_addr(&entry->dst, &t->dst);
}

static __always_inline __u16 lock_of(const struct fl_flow *flow)
{
	return *(volatile const __u16 *)&flow->lock;
}

enum { LOOK_FURTHER, NOWHERE, FOUND };

/* Whether a block has the entry of a key. */
static __always_inline int look_in4(struct fl_block4 *block, __u64 addresses, __u64 rest, struct fl_flow4 **found,
				    struct fl_details4 **details, __u16 *before)
{
	if (!block)
		return NOWHERE;
	for (__u32 i = 0; i < FL_PLACES4; i++) {
		struct fl_flow4 *entry = &block->entry[i];

		if (entry->flow.kind == FL_FREE)
			return NOWHERE;
		*before = lock_of(&entry->flow);
		if (same_key4(entry, addresses, rest) && entry->flow.kind != FL_GONE) {
			*found = entry;
			*details = &block->details[i];
			return FOUND;
		}
	}
	return LOOK_FURTHER;
}

static __always_inline int look_in6(struct fl_block6 *block, const struct tuple *t, struct fl_flow6 **found,
				    struct fl_details6 **details, __u16 *before)
{
	if (!block || block->entry.flow.kind == FL_FREE)
		return NOWHERE;
	*before = lock_of(&block->entry.flow);
	if (!same_key6(&block->entry, t) || block->entry.flow.kind == FL_GONE)
		return LOOK_FURTHER;
	*found = &block->entry;
	*details = &block->details;
	return FOUND;
}

/* The entry of a key, what stands beside it, and its lock as it was before the key was compared. */
static __always_inline struct fl_flow4 *find4(__u64 addresses, __u64 rest, __u64 hash, struct fl_details4 **details,
					      __u16 *before)
{
	struct fl_flow4 *found = 0;
	int at = LOOK_FURTHER;

	for (__u32 n = 0; n < HOME4 && at == LOOK_FURTHER; n++)
		at = look_in4(block4(hash, n), addresses, rest, &found, details, before);
	if (at != LOOK_FURTHER || !stands_elsewhere4(hash))
		return found;
#pragma clang loop unroll(disable)
	for (__u32 n = HOME4; n < 2 * HOME4 && at == LOOK_FURTHER; n++)
		at = look_in4(block4(hash, n), addresses, rest, &found, details, before);
	return found;
}

static __always_inline struct fl_flow6 *find6(const struct tuple *t, __u64 hash, struct fl_details6 **details, __u16 *before)
{
	struct fl_flow6 *found = 0;
	int at = LOOK_FURTHER;

	for (__u32 n = 0; n < HOME6 && at == LOOK_FURTHER; n++)
		at = look_in6(block6(hash, n), t, &found, details, before);
	if (at != LOOK_FURTHER || !stands_elsewhere6(hash))
		return found;
#pragma clang loop unroll(disable)
	for (__u32 n = HOME6; n < 2 * HOME6 && at == LOOK_FURTHER; n++)
		at = look_in6(block6(hash, n), t, &found, details, before);
	return found;
}

static __always_inline struct fl_flow *flow_find4(const struct tuple *t, struct flow *copy, const struct fl_settings *set,
						  struct fl_usage **usage)
{
	__u64 addresses = two(t->src.word[3], t->dst.word[3]), rest = ports_proto(t->sport, t->dport, t->proto);
	struct fl_details4 *details;
	struct fl_flow4 *found;
	__u16 before;

	found = find4(addresses, rest, hash4(addresses, rest, set), &details, &before);
	if (!found)
		return 0;
	*usage = &details->usage;
	copy->entry = found->flow;
	set_addr4(&copy->near, details->near);
	set_addr4(&copy->far, details->far);
	copy->near_port = details->near_port;
	copy->far_port = details->far_port;
	return before & 1 || lock_of(&found->flow) != before ? 0 : &found->flow;
}

static __always_inline struct fl_flow *flow_find6(const struct tuple *t, struct flow *copy, const struct fl_settings *set,
						  struct fl_usage **usage)
{
	struct fl_details6 *details;
	struct fl_flow6 *found;
	__u16 before;

	found = find6(t, hash6(t, set), &details, &before);
	if (!found)
		return 0;
	*usage = &details->usage;
	copy->entry = found->flow;
	copy->near = details->near;
	copy->far = details->far;
	copy->near_port = details->near_port;
	copy->far_port = details->far_port;
	return before & 1 || lock_of(&found->flow) != before ? 0 : &found->flow;
}

/* Finds the entry of a tuple and copies it; NULL also when it is being written. */
static __always_inline struct fl_flow *flow_find(const struct tuple *t, struct flow *copy, struct fl_usage **usage)
{
	struct fl_settings *set = get_settings();

	if (!set)
		return 0;
	return t->family == 4 ? flow_find4(t, copy, set, usage) : flow_find6(t, copy, set, usage);
}

/* Signed: another CPU may have seen the flow at a later moment than ours. */
static __always_inline _Bool too_late(__u32 seen, __u8 state, const struct fl_service *service, __u32 at_time)
{
	return (__s32)(at_time - seen) > (__s32)service->timeout[state & (FL_STATES - 1)];
}

static __always_inline _Bool too_old(const struct fl_flow *flow, const struct fl_service *service, __u32 at_time)
{
	return too_late(flow->seen, flow->state, service, at_time);
}

/* Whether an entry may still be believed. Its service's record outlives it (ids are not reused meanwhile). */
static __always_inline _Bool flow_alive(const struct fl_flow *flow, __u32 at_time)
{
	__u32 id = flow->service;
	struct fl_service *service = bpf_map_lookup_elem(&services, &id);

	return service && !too_old(flow, service, at_time);
}

static __always_inline __u8 state_after(__u8 state, __u8 proto, __u8 tcp_flags)
{
	if (proto != IPPROTO_TCP)
		return FL_OPEN;
	if (tcp_flags & TCP_RST)
		return FL_RST;
	if (tcp_flags & TCP_FIN)
		return FL_FIN;
	if (tcp_flags & TCP_SYN)
		return state;
	return state == FL_FIN ? FL_FIN : FL_OPEN;
}

static __always_inline void account(struct fl_usage *usage, __u32 bytes)
{
	if (!accounting)
		return;
	usage->packets++;
	usage->octets += bytes;
}

static __always_inline void flow_touch(struct fl_flow *flow, struct fl_usage *usage, const struct packet *p, __u32 at_time)
{
	if (flow->seen != at_time)
		flow->seen = at_time;
	if (flow->state != FL_OPEN || p->tcp_flags & (TCP_FIN | TCP_RST))
		flow->state = state_after(flow->state, p->proto, p->tcp_flags);
	account(usage, p->ip_len);
}

#endif
