/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fast path of a packet that opens a TCP connection over IPv4: its service chooses by flow and asks nothing of
 * the client, and the server of its slot is of use. The flow table is gone through once, for an entry with the same
 * ports and for a place. As in fast.h, what is not plain is left unchanged to the general path.
 */
#ifndef FAIRLEAD_OPENING_H
#define FAIRLEAD_OPENING_H

#include "fast.h"
#include "store.h"

/* The service and the server of a new flow; -1: it is not plain. */
static __always_inline int plain_choice(struct plain_flow *flow, const struct plain *p)
{
	const struct fl_service *service;

	if (plain_service(flow, p))
		return -1;
	service = flow->service;
	if (service->mode != FL_FORWARD || service->choice != FL_BY_FLOW || service->access || service->new_per_source)
		return -1;
	plain_slot(flow);
	return 0;
}

/*
 * Whether a new flow may have the entry's place; `replaced`: it is there already, of an earlier connection. A SYN that
 * is sent again keeps its server, which the general path sees to.
 */
static __always_inline _Bool plain_place(const struct fl_flow4 *entry, const struct plain_flow *flow, __u32 time,
					 _Bool *replaced)
{
	__u32 id = entry->flow.service;
	struct fl_service *before;

	*replaced = 0;
	if (entry->flow.kind == FL_FREE || !same_key4(entry, flow->addresses, flow->rest))
		return 1;
	if (entry->flow.kind != FL_TO_SERVER || entry->flow.state == FL_NEW)
		return 0;
	*replaced = 1;
	before = bpf_map_lookup_elem(&services, &id);
	if (before && too_old(&entry->flow, before, time))
		count(FL_EXPIRED);
	return 1;
}

/*
 * Under the brake: whether an entry of an earlier connection, if there is one, has the server that the slot names, so
 * that it need not be replaced, nor looked for. In a flood of SYNs that look was half the time of each.
 */
static __always_inline _Bool plain_needs_none(const struct plain_flow *flow, const struct fl_settings *set)
{
	__u64 *word;

	if (!(flow->word >> 32 & FL_SETTLED) || !brake_is_on(set))
		return 0;
	word = touch_word(flow->hash);
	return word && !(*(volatile __u64 *)word & MARKS);
}

/* Stores a new flow if the brake lets it; -1: its place is just being written, or its SYN was sent again. */
static __always_inline int plain_remember(const struct plain_flow *flow, const struct plain *p,
					  const struct fl_server *server, struct scratch *work,
					  const struct fl_settings *set, _Bool *stored)
{
	struct fl_block4 *block, *home = block4(flow->hash, 0);
	struct fl_details4 *details;
	struct fl_flow4 *entry;
	_Bool replaced;

	*stored = 0;
	if (plain_needs_none(flow, set))
		return 0;
	work->flow.entry.seen = p->time;
	if (!home || find_place4(work, flow->hash, flow->addresses, flow->rest, 0))
		return -1;
	block = block4(flow->hash, work->place / FL_PLACES4);
	if (!block)
		return -1;
	entry = &block->entry[work->place % FL_PLACES4];
	details = &block->details[work->place % FL_PLACES4];
	if (lock_entry(&entry->flow))
		return -1;
	if (!plain_place(entry, flow, p->time, &replaced)) {
		unlock_entry(&entry->flow);
		return -1;
	}
	*stored = replaced || may_store();
	if (*stored) {
		if (work->place >= FL_PROBES)
			home->details[0].elsewhere = 1;
		entry->src = flow->addresses;
		entry->dst = flow->addresses >> 32;
		entry->sport = flow->rest;
		entry->dport = flow->rest >> 16;
		entry->flow.proto = IPPROTO_TCP;
		entry->flow.kind = FL_TO_SERVER;
		entry->flow.state = FL_NEW;
		entry->flow.seen = p->time;
		entry->flow.server = flow->server_id;
		entry->flow.service = flow->service_id;
		entry->flow.generation = server->generation;
		entry->flow.table = flow->word;
		fill_usage(&details->usage, p->ip_len, p->time);
		details->near = flow->addresses;
		details->near_port = flow->rest;
		details->far = 0;
		details->far_port = 0;
	}
	unlock_entry(&entry->flow);
	if (*stored)
		touch_stored(flow->hash, p->time, 1, set);
	return 0;
}

/* An XDP action, or NOT_PLAIN. */
__noinline int opening(struct xdp_md *ctx)
{
	struct fl_settings *set = get_settings();
	struct scratch *work = get_scratch();
	struct plain_flow flow = {};
	struct fl_server *server;
	struct fl_hop *hop;
	__u8 forwarding;
	struct plain p;
	_Bool stored;

	if (!set || !work || plain_parse(ctx, &p))
		return NOT_PLAIN;
	flow.addresses = two(p.ip->saddr, p.ip->daddr);
	flow.rest = (__u64)IPPROTO_TCP << 32 | plain_ports(&p);
	if (plain_choice(&flow, &p))
		return NOT_PLAIN;
	server = bpf_map_lookup_elem(&servers, &flow.server_id);
	if (!server)
		return NOT_PLAIN;
	forwarding = flow.service->forwarding;
	hop = plain_hop(server, forwarding, 4, p.ip_len, p.time);
	if (!hop || plain_unfinished(&p))
		return NOT_PLAIN;
	if (forwarding == FL_NAT && (p.ip->ttl <= 1 || server->addr.word[3] == p.ip->saddr))
		return NOT_PLAIN;
	flow.hash = hash4(flow.addresses, flow.rest, set);
	if (plain_remember(&flow, &p, server, work, set, &stored))
		return NOT_PLAIN;
	count(stored ? FL_NEW_FLOW : FL_NEW_STATELESS);
	count_traffic(flow.service_id, flow.server_id, FL_TO_SERVER, p.ip_len, stored);
	return plain_send(ctx, &p, server, forwarding, hop);
}

#endif
