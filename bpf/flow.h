/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which server a flow belongs to. Entries are judged by age when they are met; nothing sweeps.
 *
 * A new flow takes a place that is free or whose flow has expired, else that of a flow which is itself only new,
 * else that of one that has been silent for a quarter of its timeout. So a flood of new flows pushes out new
 * flows, and established ones stay; what finds no place is forwarded by the stateless choice.
 *
 * An entry is written under its lock, which is only tried: whoever fails goes on without storing. A reader copies
 * what it needs and looks at the lock before and after. (Loads keep their order on x86; elsewhere one packet could
 * be sent by an entry that is being replaced at that moment.)
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

/* Where a key's places begin. Secret, so that nobody can aim at a place; the multipliers are those of SplitMix64. */
static __always_inline __u64 mix_word(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0xBF58476D1CE4E5B9ull;
	return hash ^ hash >> 32;
}

static __always_inline __u32 home_of(__u64 hash)
{
	return hash * 0x94D049BB133111EBull >> 32 & ~1u;
}

static __always_inline __u64 hash4(__u64 addresses, __u64 rest, const struct fl_settings *set)
{
	return mix_word(mix_word(set->secret[0], addresses) + set->secret[1], rest);
}

static __always_inline __u32 home6(const struct tuple *t, const struct fl_settings *set)
{
	__u64 hash = mix_word(set->secret[0], two(t->src.word[0], t->src.word[1])) + set->secret[1];

	hash = mix_word(hash, two(t->src.word[2], t->src.word[3]));
	hash = mix_word(hash, two(t->dst.word[0], t->dst.word[1]));
	hash = mix_word(hash, two(t->dst.word[2], t->dst.word[3]));
	return home_of(mix_word(hash, ports_proto(t->sport, t->dport, t->proto)));
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

/* The entry of a key, its index, and its lock as it was before the key was compared. */
static __always_inline struct fl_flow4 *find4(__u64 addresses, __u64 rest, __u64 hash, __u32 *index, __u16 *before)
{
	__u32 home = home_of(hash);

	for (__u32 i = 0; i < FL_PROBES; i++) {
		__u32 place = (home + i) & flow4_mask;
		struct fl_flow4 *entry = bpf_map_lookup_elem(&flows4, &place);

		if (!entry || entry->flow.kind == FL_FREE)
			return 0;
		*before = lock_of(&entry->flow);
		*index = place;
		if (same_key4(entry, addresses, rest) && entry->flow.kind != FL_GONE)
			return entry;
	}
	return 0;
}

static __always_inline struct fl_flow6 *find6(const struct tuple *t, const struct fl_settings *set, __u32 *index,
					      __u16 *before)
{
	__u32 home = home6(t, set);

	for (__u32 i = 0; i < FL_PROBES; i++) {
		__u32 place = (home + i) & flow6_mask;
		struct fl_flow6 *entry = bpf_map_lookup_elem(&flows6, &place);

		if (!entry || entry->flow.kind == FL_FREE)
			return 0;
		*before = lock_of(&entry->flow);
		*index = place;
		if (same_key6(entry, t) && entry->flow.kind != FL_GONE)
			return entry;
	}
	return 0;
}

static __always_inline struct fl_flow *flow_find4(const struct tuple *t, struct flow *copy, const struct fl_settings *set,
						  __u32 *index)
{
	__u64 addresses = two(t->src.word[3], t->dst.word[3]), rest = ports_proto(t->sport, t->dport, t->proto);
	struct fl_details4 *details;
	struct fl_flow4 *found;
	__u16 before;

	found = find4(addresses, rest, hash4(addresses, rest, set), index, &before);
	details = found ? bpf_map_lookup_elem(&details4, index) : 0;
	if (!found || !details)
		return 0;
	copy->entry = found->flow;
	set_addr4(&copy->near, details->near);
	set_addr4(&copy->far, details->far);
	copy->near_port = details->near_port;
	copy->far_port = details->far_port;
	return before & 1 || lock_of(&found->flow) != before ? 0 : &found->flow;
}

static __always_inline struct fl_flow *flow_find6(const struct tuple *t, struct flow *copy, const struct fl_settings *set,
						  __u32 *index)
{
	struct fl_details6 *details;
	struct fl_flow6 *found;
	__u16 before;

	found = find6(t, set, index, &before);
	details = found ? bpf_map_lookup_elem(&details6, index) : 0;
	if (!found || !details)
		return 0;
	copy->entry = found->flow;
	copy->near = details->near;
	copy->far = details->far;
	copy->near_port = details->near_port;
	copy->far_port = details->far_port;
	return before & 1 || lock_of(&found->flow) != before ? 0 : &found->flow;
}

/* Finds the entry of a tuple and copies it; NULL also when it is being written. */
static __always_inline struct fl_flow *flow_find(const struct tuple *t, struct flow *copy, __u32 *index)
{
	struct fl_settings *set = get_settings();

	if (!set)
		return 0;
	return t->family == 4 ? flow_find4(t, copy, set, index) : flow_find6(t, copy, set, index);
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

/* How well an entry's place may be taken; 0: it may not. */
static __always_inline __u32 spare(const struct fl_flow *flow, __u32 at_time)
{
	__s32 age = at_time - flow->seen;
	__u32 id = flow->service, timeout;
	struct fl_service *service = bpf_map_lookup_elem(&services, &id);

	if (age < 0)
		age = 0;
	if (flow->kind == FL_GONE || !service)
		return ~0u;
	timeout = service->timeout[flow->state & (FL_STATES - 1)];
	if ((__u32)age > timeout)
		return ~0u;
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

enum { PLACE_WORSE, PLACE_BETTER, PLACE_TAKE, PLACE_ENOUGH, PLACE_HELD };

/* Whether a flow should take this place. All but the first two end the search. */
static __always_inline int judge_place(const struct fl_flow *held, _Bool same, __u32 *best, __u32 at_time, int absent)
{
	__u32 rank;

	if (held->kind == FL_FREE)
		return *best == ~0u ? PLACE_ENOUGH : PLACE_TAKE;
	if (same)
		return absent && held->kind != FL_GONE && flow_alive(held, at_time) ? PLACE_HELD : PLACE_TAKE;
	rank = spare(held, at_time);
	if (rank <= *best)
		return PLACE_WORSE;
	*best = rank;
	return PLACE_BETTER;
}

static __always_inline int store4(struct scratch *work, const struct fl_settings *set, int absent)
{
	const struct tuple *t = &work->tuple;
	__u64 addresses = two(t->src.word[3], t->dst.word[3]), rest = ports_proto(t->sport, t->dport, t->proto);
	__u64 hash = hash4(addresses, rest, set);
	__u32 home = home_of(hash), best = 0, chosen = 0;
	struct fl_details4 *details;
	struct fl_flow4 *place = 0;

	for (__u32 i = 0; i < FL_PROBES; i++) {
		__u32 index = (home + i) & flow4_mask;
		struct fl_flow4 *entry = bpf_map_lookup_elem(&flows4, &index);
		int verdict;

		if (!entry)
			return -1;
		verdict = judge_place(&entry->flow, same_key4(entry, addresses, rest), &best, work->flow.entry.seen, absent);
		if (verdict == PLACE_HELD)
			return -1;
		if (verdict == PLACE_BETTER || verdict == PLACE_TAKE) {
			place = entry;
			chosen = index;
		}
		if (verdict >= PLACE_TAKE)
			break;
	}
	details = bpf_map_lookup_elem(&details4, &chosen);
	if (!place || !details || lock_entry(&place->flow))
		return -1;
	place->src = t->src.word[3];
	place->dst = t->dst.word[3];
	place->sport = t->sport;
	place->dport = t->dport;
	fill_entry(&place->flow, &work->flow.entry, t->proto);
	details->octets = work->octets;
	details->packets = !!work->octets;
	details->born = work->flow.entry.seen;
	details->near = work->flow.near.word[3];
	details->far = work->flow.far.word[3];
	details->near_port = work->flow.near_port;
	details->far_port = work->flow.far_port;
	unlock_entry(&place->flow);
	if (work->flow.entry.kind == FL_TO_SERVER && t->proto == IPPROTO_TCP)
		touch_stored(hash, work->flow.entry.seen, work->by_slot);
	return 0;
}

static __always_inline int store6(struct scratch *work, const struct fl_settings *set, int absent)
{
	const struct tuple *t = &work->tuple;
	__u32 home = home6(t, set), best = 0, chosen = 0;
	struct fl_details6 *details;
	struct fl_flow6 *place = 0;

	for (__u32 i = 0; i < FL_PROBES; i++) {
		__u32 index = (home + i) & flow6_mask;
		struct fl_flow6 *entry = bpf_map_lookup_elem(&flows6, &index);
		int verdict;

		if (!entry)
			return -1;
		verdict = judge_place(&entry->flow, same_key6(entry, t), &best, work->flow.entry.seen, absent);
		if (verdict == PLACE_HELD)
			return -1;
		if (verdict == PLACE_BETTER || verdict == PLACE_TAKE) {
			place = entry;
			chosen = index;
		}
		if (verdict >= PLACE_TAKE)
			break;
	}
	details = bpf_map_lookup_elem(&details6, &chosen);
	if (!place || !details || lock_entry(&place->flow))
		return -1;
	place->src = t->src;
	place->dst = t->dst;
	place->sport = t->sport;
	place->dport = t->dport;
	fill_entry(&place->flow, &work->flow.entry, t->proto);
	details->octets = work->octets;
	details->packets = !!work->octets;
	details->born = work->flow.entry.seen;
	details->near = work->flow.near;
	details->far = work->flow.far;
	details->near_port = work->flow.near_port;
	details->far_port = work->flow.far_port;
	unlock_entry(&place->flow);
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

static __always_inline void account(__u32 index, __u8 family, __u32 bytes)
{
	if (!accounting)
		return;
	if (family == 4) {
		struct fl_details4 *details = bpf_map_lookup_elem(&details4, &index);

		if (details) {
			details->packets++;
			details->octets += bytes;
		}
	} else {
		struct fl_details6 *details = bpf_map_lookup_elem(&details6, &index);

		if (details) {
			details->packets++;
			details->octets += bytes;
		}
	}
}

static __always_inline void flow_touch(struct fl_flow *flow, const struct packet *p, __u32 index, __u32 at_time)
{
	if (flow->seen != at_time)
		flow->seen = at_time;
	if (flow->state != FL_OPEN || p->tcp_flags & (TCP_FIN | TCP_RST))
		flow->state = state_after(flow->state, p->proto, p->tcp_flags);
	account(index, p->family, p->ip_len);
}

#endif
