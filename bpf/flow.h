/* SPDX-License-Identifier: GPL-2.0-only */
/* The flow table: which server a flow belongs to. An LRU hash per family; entries are judged by age when met. */
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

static __always_inline void fill_key4(struct fl_key4 *key, const struct tuple *t)
{
	key->src = t->src.word[3];
	key->dst = t->dst.word[3];
	key->sport = t->sport;
	key->dport = t->dport;
	*(__u32 *)&key->proto = t->proto;
}

static __always_inline void fill_key6(struct fl_key6 *key, const struct tuple *t)
{
	key->src = t->src;
	key->dst = t->dst;
	key->sport = t->sport;
	key->dport = t->dport;
	*(__u32 *)&key->proto = t->proto;
}

/* Finds the entry of a tuple; `ends` (may be NULL) is filled from it. */
static __always_inline struct fl_flow *flow_find(const struct tuple *t, struct ends *ends)
{
	if (t->family == 4) {
		struct fl_key4 key;
		struct fl_flow4 *found;

		fill_key4(&key, t);
		found = bpf_map_lookup_elem(&flows4, &key);
		if (!found)
			return 0;
		if (ends) {
			set_addr4(&ends->near, found->near);
			set_addr4(&ends->far, found->far);
			ends->near_port = found->near_port;
			ends->far_port = found->far_port;
		}
		return &found->flow;
	}
	struct fl_key6 key;
	struct fl_flow6 *found;

	fill_key6(&key, t);
	found = bpf_map_lookup_elem(&flows6, &key);
	if (!found)
		return 0;
	if (ends) {
		ends->near = found->near;
		ends->far = found->far;
		ends->near_port = found->near_port;
		ends->far_port = found->far_port;
	}
	return &found->flow;
}

/* Stores scratch's `flow` and `ends` under its `tuple`. */
__noinline int flow_store(__u64 how)
{
	struct scratch *work = get_scratch();

	if (!work)
		return -1;
	if (work->tuple.family == 4) {
		fill_key4(&work->key4, &work->tuple);
		work->value4.flow = work->flow;
		work->value4.born = work->flow.seen;
		work->value4.near = work->ends.near.word[3];
		work->value4.far = work->ends.far.word[3];
		work->value4.near_port = work->ends.near_port;
		work->value4.far_port = work->ends.far_port;
		return bpf_map_update_elem(&flows4, &work->key4, &work->value4, how);
	}
	fill_key6(&work->key6, &work->tuple);
	work->value6.flow = work->flow;
	work->value6.born = work->flow.seen;
	work->value6.near = work->ends.near;
	work->value6.far = work->ends.far;
	work->value6.near_port = work->ends.near_port;
	work->value6.far_port = work->ends.far_port;
	return bpf_map_update_elem(&flows6, &work->key6, &work->value6, how);
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

static __always_inline void flow_touch(struct fl_flow *flow, __u8 proto, __u8 tcp_flags, __u32 bytes, __u32 at_time)
{
	if (flow->seen != at_time)
		flow->seen = at_time;
	if (proto == IPPROTO_TCP && (flow->state != FL_OPEN || tcp_flags & (TCP_FIN | TCP_RST)))
		flow->state = next_state(flow->state, tcp_flags);
	flow->packets++;
	flow->octets += bytes;
}

#endif
