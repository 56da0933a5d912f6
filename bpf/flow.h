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

static __always_inline void tuple_of(struct tuple *t, const struct packet *p)
{
	t->src = p->src;
	t->dst = p->dst;
	t->sport = p->sport;
	t->dport = p->dport;
	t->proto = p->proto;
	t->family = p->family;
}

static __always_inline void fill_key6(struct fl_key6 *key, const struct tuple *t)
{
	key->src = t->src;
	key->dst = t->dst;
	key->sport = t->sport;
	key->dport = t->dport;
	*(__u32 *)&key->proto = t->proto;
}

/* Where a key's places begin. Secret, so that nobody can aim at a place; the multipliers are those of SplitMix64. */
static __always_inline __u64 mix_word(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0xBF58476D1CE4E5B9ull;
	return hash ^ hash >> 32;
}

static __always_inline __u32 home4(__u64 addresses, __u64 rest, const struct fl_settings *set)
{
	return mix_word(mix_word(set->secret[0], addresses) + set->secret[1], rest) * 0x94D049BB133111EBull >> 32;
}

static __always_inline __u32 home6(const struct fl_key6 *key, const struct fl_settings *set)
{
	const __u64 *word = (const __u64 *)key;
	__u64 hash = mix_word(mix_word(set->secret[0], word[0]) + set->secret[1], word[1]);

	hash = mix_word(mix_word(mix_word(hash, word[2]), word[3]), word[4]);
	return hash * 0x94D049BB133111EBull >> 32;
}

/*
 * An IPv4 key as two words, made in registers: written to memory in parts and read back whole it would wait for
 * every load before it, also those of the packet before.
 */
static __always_inline __u64 key4_addresses(__be32 src, __be32 dst)
{
	return (__u64)dst << 32 | src;
}

static __always_inline __u64 key4_rest(__be16 sport, __be16 dport, __u8 proto)
{
	return (__u64)proto << 32 | (__u32)dport << 16 | sport;
}

static __always_inline _Bool same_key4(const struct fl_key4 *key, __u64 addresses, __u64 rest)
{
	const __u64 *word = (const __u64 *)key;

	return word[0] == addresses && word[1] == rest;
}

static __always_inline _Bool same_key6(const struct fl_key6 *a, const struct fl_key6 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[4] == y[4] && x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline struct fl_flow4 *entry4(__u32 home, __u32 probe)
{
	__u32 index = (home + probe) & flow4_mask;

	return bpf_map_lookup_elem(&flows4, &index);
}

static __always_inline struct fl_flow6 *entry6(__u32 home, __u32 probe)
{
	__u32 index = (home + probe) & flow6_mask;

	return bpf_map_lookup_elem(&flows6, &index);
}

static __always_inline __u32 lock_of(const struct fl_flow *flow)
{
	return *(volatile const __u32 *)&flow->lock;
}

static __always_inline struct fl_flow4 *find4(__u64 addresses, __u64 rest, const struct fl_settings *set, __u32 *before)
{
	__u32 home = home4(addresses, rest, set);

	for (__u32 i = 0; i < FL_PROBES; i++) {
		struct fl_flow4 *entry = entry4(home, i);

		if (!entry || entry->flow.kind == FL_FREE)
			return 0;
		*before = lock_of(&entry->flow);
		if (same_key4(&entry->key, addresses, rest) && entry->flow.kind != FL_GONE)
			return entry;
	}
	return 0;
}

static __always_inline struct fl_flow6 *find6(const struct fl_key6 *key, const struct fl_settings *set, __u32 *before)
{
	__u32 home = home6(key, set);

	for (__u32 i = 0; i < FL_PROBES; i++) {
		struct fl_flow6 *entry = entry6(home, i);

		if (!entry || entry->flow.kind == FL_FREE)
			return 0;
		*before = lock_of(&entry->flow);
		if (same_key6(&entry->key, key) && entry->flow.kind != FL_GONE)
			return entry;
	}
	return 0;
}

/* Finds the entry of a tuple and copies it; NULL also when it is being written. */
static __always_inline struct fl_flow *flow_find(struct scratch *work, const struct tuple *t, struct fl_flow *copy,
						 struct ends *ends)
{
	struct fl_settings *set = get_settings();
	__u32 before;

	if (!set)
		return 0;
	if (t->family == 4) {
		struct fl_flow4 *found;

		found = find4(key4_addresses(t->src.word[3], t->dst.word[3]), key4_rest(t->sport, t->dport, t->proto), set,
			      &before);
		if (!found)
			return 0;
		*copy = found->flow;
		set_addr4(&ends->near, found->near);
		set_addr4(&ends->far, found->far);
		if (before & 1 || lock_of(&found->flow) != before)
			return 0;
		return &found->flow;
	}
	struct fl_flow6 *found;

	fill_key6(&work->key6, t);
	found = find6(&work->key6, set, &before);
	if (!found)
		return 0;
	*copy = found->flow;
	ends->near = found->near;
	ends->far = found->far;
	if (before & 1 || lock_of(&found->flow) != before)
		return 0;
	return &found->flow;
}

/* Signed: another CPU may have seen the flow at a later moment than ours. */
static __always_inline _Bool too_old(const struct fl_flow *flow, const struct fl_service *service, __u32 at_time)
{
	return (__s32)(at_time - flow->seen) > (__s32)service->timeout[flow->state & (FL_STATES - 1)];
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

static __always_inline int lock_entry(struct fl_flow *flow)
{
	__u32 before = lock_of(flow);

	if (before & 1 || __sync_val_compare_and_swap(&flow->lock, before, before + 1) != before)
		return -1;
	return 0;
}

static __always_inline void unlock_entry(struct fl_flow *flow)
{
	__sync_fetch_and_add(&flow->lock, 1);
}

static __always_inline void fill_flow(struct fl_flow *to, const struct fl_flow *from)
{
	to->seen = from->seen;
	to->server = from->server;
	to->born = from->seen;
	to->service = from->service;
	to->generation = from->generation;
	to->table = from->table;
	to->kind = from->kind;
	to->state = from->state;
	to->octets = from->octets;
	to->packets = from->packets;
	to->near_port = from->near_port;
	to->far_port = from->far_port;
}

static __always_inline int store4(struct scratch *work, const struct fl_settings *set, int absent)
{
	const struct tuple *t = &work->tuple;
	__u64 addresses = key4_addresses(t->src.word[3], t->dst.word[3]), rest = key4_rest(t->sport, t->dport, t->proto);
	__u32 home = home4(addresses, rest, set), best = 0, rank;
	struct fl_flow4 *place = 0, *entry;

	for (__u32 i = 0; i < FL_PROBES; i++) {
		entry = entry4(home, i);
		if (!entry)
			return -1;
		if (entry->flow.kind == FL_FREE) {
			if (best != ~0u)
				place = entry;
			break;
		}
		if (same_key4(&entry->key, addresses, rest)) {
			if (absent && entry->flow.kind != FL_GONE && flow_alive(&entry->flow, work->flow.seen))
				return -1;
			place = entry;
			break;
		}
		rank = spare(&entry->flow, work->flow.seen);
		if (rank > best) {
			best = rank;
			place = entry;
		}
	}
	if (!place || lock_entry(&place->flow))
		return -1;
	((__u64 *)&place->key)[0] = addresses;
	((__u64 *)&place->key)[1] = rest;
	fill_flow(&place->flow, &work->flow);
	place->near = work->ends.near.word[3];
	place->far = work->ends.far.word[3];
	unlock_entry(&place->flow);
	return 0;
}

static __always_inline int store6(struct scratch *work, const struct fl_settings *set, int absent)
{
	struct fl_flow6 *place = 0, *entry;
	__u32 home, best = 0, rank;

	fill_key6(&work->key6, &work->tuple);
	home = home6(&work->key6, set);
	for (__u32 i = 0; i < FL_PROBES; i++) {
		entry = entry6(home, i);
		if (!entry)
			return -1;
		if (entry->flow.kind == FL_FREE) {
			if (best != ~0u)
				place = entry;
			break;
		}
		if (same_key6(&entry->key, &work->key6)) {
			if (absent && entry->flow.kind != FL_GONE && flow_alive(&entry->flow, work->flow.seen))
				return -1;
			place = entry;
			break;
		}
		rank = spare(&entry->flow, work->flow.seen);
		if (rank > best) {
			best = rank;
			place = entry;
		}
	}
	if (!place || lock_entry(&place->flow))
		return -1;
	place->key = work->key6;
	fill_flow(&place->flow, &work->flow);
	place->near = work->ends.near;
	place->far = work->ends.far;
	unlock_entry(&place->flow);
	return 0;
}

/* Stores scratch's `flow` and `ends` under its `tuple`; `absent`: only if no live flow has that tuple. 0: stored. */
__noinline int flow_store(int absent)
{
	struct scratch *work = get_scratch();
	struct fl_settings *set = get_settings();

	if (!work || !set)
		return -1;
	return work->tuple.family == 4 ? store4(work, set, absent) : store6(work, set, absent);
}

static __always_inline __u8 next_state(__u8 state, __u8 tcp_flags)
{
	if (tcp_flags & TCP_RST)
		return FL_RST;
	if (tcp_flags & TCP_FIN)
		return FL_FIN;
	if (tcp_flags & TCP_SYN)
		return state;
	return state == FL_FIN ? FL_FIN : FL_OPEN;
}

static __always_inline void flow_touch(struct fl_flow *flow, __u8 proto, __u8 tcp_flags, __u32 bytes, __u32 at_time)
{
	if (flow->seen != at_time)
		flow->seen = at_time;
	if (flow->state != FL_OPEN || tcp_flags & (TCP_FIN | TCP_RST))
		flow->state = proto == IPPROTO_TCP ? next_state(flow->state, tcp_flags) : FL_OPEN;
	flow->packets++;
	flow->octets += bytes;
}

#endif
