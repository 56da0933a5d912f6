/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where a packet goes. In this order: a flow we know, a new flow of a service, a nat server's reply. A reply to
 * this node itself is never touched: that is its own connection to the server, a health check for one.
 */
#ifndef FAIRLEAD_DECIDE_H
#define FAIRLEAD_DECIDE_H

#include "common.h"
#include "flow.h"
#include "nexthop.h"
#include "select.h"
#include "store.h"

#define PORT_TRIES 64
#define PARTNER_SHIFT 6 /* a flow's other direction is kept alive once per 64 jiffies */

static __always_inline void route_as_is(struct route *r, const struct packet *p)
{
	r->src = p->src;
	r->dst = p->dst;
	r->sport = p->sport;
	r->dport = p->dport;
}

static __always_inline int route_to_server(struct route *r, const struct packet *p, const struct fl_server *server,
					   const struct flow *flow)
{
	route_as_is(r, p);
	r->kind = FL_TO_SERVER;
	r->hop = server->addr;
	r->hop_family = server->family;
	r->generation = server->generation;
	if (r->forwarding == FL_TUNNEL)
		return ROUTED;
	if (server->family != p->family)
		return counted(FL_DROP_FAMILY, XDP_DROP);
	if (r->forwarding == FL_DSR)
		return ROUTED;
	r->dst = server->addr;
	if (server->port)
		r->dport = server->port;
	if (r->forwarding == FL_FULLNAT && flow) {
		r->src = flow->near;
		r->sport = flow->near_port;
	}
	return ROUTED;
}

static __always_inline void route_to_client(struct route *r, const struct packet *p, const struct fl_addr *vip, __be16 port)
{
	route_as_is(r, p);
	r->kind = FL_TO_CLIENT;
	r->src = *vip;
	if (port)
		r->sport = port;
	r->hop = p->dst;
	r->hop_family = p->family;
}

/* The tuple of what the server sends back. */
static __always_inline void answer_tuple(struct tuple *t, const struct route *r, const struct packet *p)
{
	t->src = r->dst;
	t->dst = r->src;
	t->sport = r->dport;
	t->dport = r->sport;
	t->proto = p->proto;
	t->family = p->family;
}

static __always_inline void flow_to_client(struct flow *flow, const struct packet *p)
{
	flow->entry.kind = FL_TO_CLIENT;
	flow->near = p->dst;
	flow->far = p->src;
	flow->near_port = p->dport;
	flow->far_port = p->sport;
}

static __always_inline void flow_to_server(struct flow *flow, const struct fl_addr *near, __be16 port)
{
	flow->entry.kind = FL_TO_SERVER;
	flow->near = *near;
	flow->near_port = port;
	__builtin_memset(&flow->far, 0, sizeof(flow->far));
	flow->far_port = 0;
}

enum { PORT_TAKEN, PORTS_USED, NO_PLACE };

/* Takes a source port of fullnat by storing the flow of the answers. NO_PLACE: a port was free, the flow table full. */
__noinline int claim_port(const struct packet *p, struct route *r, const struct fl_flow *entry)
{
	struct fl_settings *set = get_settings();
	struct scratch *work = get_scratch();
	struct fl_cpu *cpu = this_cpu();
	struct fl_usage *unused;
	__u32 span, first, addresses, offset;
	int why = PORTS_USED;

	if (!p || !r || !entry || !set || !cpu || !work || !set->cpus)
		return why;
	addresses = p->family == 4 ? set->snat4 : set->snat6;
	offset = p->family == 4 ? 0 : set->snat4;
	span = (set->snat_last - set->snat_first + 1) / set->cpus;
	first = set->snat_first + bpf_get_smp_processor_id() % set->cpus * span;
	if (!addresses || !span)
		return why;
	work->flow.entry = *entry;
	work->octets = 0;
	flow_to_client(&work->flow, p);
	answer_tuple(&work->tuple, r, p);
	for (int i = 0; i < PORT_TRIES; i++) {
		__u32 turn = cpu->rotor++, index = offset + turn / span % addresses;

		if (index >= FL_SNAT)
			continue;
		work->tuple.dst = set->snat[index];
		work->tuple.dport = bpf_htons(first + turn % span);
		if (flow_find(&work->tuple, &work->found, &unused) && flow_alive(&work->found.entry, entry->seen))
			continue;
		if (flow_store(1)) {
			why = NO_PLACE;
			continue;
		}
		r->src = work->tuple.dst;
		r->sport = work->tuple.dport;
		return PORT_TAKEN;
	}
	return why;
}

/* Stores a new flow, and its other direction where replies need it. 0: stored. */
__noinline int remember(const struct packet *p, struct route *r, const struct fl_flow *entry, int both)
{
	struct scratch *work = get_scratch();

	if (!p || !r || !entry || !work)
		return -1;
	work->flow.entry = *entry;
	work->octets = 0;
	if (both) {
		flow_to_client(&work->flow, p);
		answer_tuple(&work->tuple, r, p);
		if (flow_store(0))
			return -1;
	}
	flow_to_server(&work->flow, &r->src, r->sport);
	tuple_of(&work->tuple, p);
	work->octets = p->ip_len;
	return flow_store(0);
}

static __always_inline _Bool is_syn(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && opens(p->tcp_flags);
}

__noinline int new_flow(const struct packet *p, struct route *r, __u32 id, int lookup_only)
{
	struct fl_service *service = bpf_map_lookup_elem(&services, &id);
	struct fl_server *server;
	struct fl_traffic *traffic;
	struct scratch *work = get_scratch();
	struct fl_flow *flow;
	int hairpin = 0, stored, verdict;

	if (!p || !r || !work || !service)
		return counted(FL_PASS_NO_SERVICE, XDP_PASS);
	if (service->mode == FL_REJECT)
		return REFUSED;
	if (service->mode == FL_DROP)
		return counted(FL_DROP_SERVICE, XDP_DROP);
	if (!may_connect(service, &p->src))
		return counted(FL_DROP_DENIED, XDP_DROP);
	if (!lookup_only && (p->proto != IPPROTO_TCP || is_syn(p)) && !within_rate(p, id, service->new_per_source))
		return counted(FL_DROP_SOURCE_RATE, XDP_DROP);
	/* An entry that is there is replaced even under the brake: it would send the rest to the server of before. */
	stored = !lookup_only && !(p->proto == IPPROTO_TCP && p->tcp_flags & TCP_RST) && (work->replaces || may_store());
	r->server = choose(p, id, stored, &hairpin);
	server = bpf_map_lookup_elem(&servers, &r->server);
	if (!r->server || !server)
		return hairpin ? counted(FL_DROP_HAIRPIN, XDP_DROP) : counted(FL_DROP_NO_SERVER, XDP_DROP);
	r->service = id;
	r->forwarding = service->forwarding;
	verdict = route_to_server(r, p, server, 0);
	if (verdict != ROUTED || lookup_only)
		return r->forwarding == FL_FULLNAT && verdict == ROUTED ? counted(FL_PASS_ICMP, XDP_PASS) : verdict;
	flow = &work->known.entry;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->seen = now();
	flow->service = id;
	flow->server = r->server;
	flow->table = service->table_base;
	flow->generation = server->generation;
	flow->kind = FL_TO_SERVER;
	flow->state = p->proto == IPPROTO_TCP && p->tcp_flags & TCP_FIN ? FL_FIN : FL_NEW;
	if (r->forwarding == FL_FULLNAT) {
		if (!stored)
			return counted(FL_DROP_NOT_STORED, XDP_DROP);
		r->src = p->src;
		verdict = claim_port(p, r, flow);
		if (verdict == NO_PLACE) {
			count(FL_STORE_FAILED);
			return counted(FL_DROP_NOT_STORED, XDP_DROP);
		}
		if (verdict != PORT_TAKEN)
			return counted(FL_DROP_SNAT_FULL, XDP_DROP);
	}
	if (!stored) {
		count(FL_NEW_STATELESS);
		return ROUTED;
	}
	if (remember(p, r, flow, r->forwarding == FL_NAT && server->flags & FL_SERVER_AMBIGUOUS)) {
		count(FL_STORE_FAILED);
		if (r->forwarding == FL_FULLNAT)
			return counted(FL_DROP_NOT_STORED, XDP_DROP);
		/* The choice is not remembered, so it must be the one that needs no memory. */
		if (service->choice == FL_BY_FLOW || service->choice == FL_BY_SOURCE)
			return ROUTED;
		r->server = choose(p, id, 0, &hairpin);
		server = bpf_map_lookup_elem(&servers, &r->server);
		if (!r->server || !server)
			return counted(FL_DROP_NO_SERVER, XDP_DROP);
		return route_to_server(r, p, server, 0);
	}
	count(FL_NEW_FLOW);
	traffic = bpf_map_lookup_elem(&service_traffic, &id);
	if (traffic)
		traffic->connections++;
	traffic = bpf_map_lookup_elem(&server_traffic, &r->server);
	if (traffic)
		traffic->connections++;
	return ROUTED;
}

/*
 * Keeps the other direction of a flow as young as this one, or stores it again when it was evicted. -1: another
 * flow holds its place by now.
 */
__noinline int keep_partner(const struct packet *p, const struct route *r, const struct fl_flow *entry)
{
	struct scratch *work = get_scratch();
	struct fl_flow *partner;
	struct fl_usage *unused;

	if (!p || !r || !entry || !work)
		return -1;
	work->flow.entry = *entry;
	work->octets = 0;
	work->by_slot = 0;
	if (entry->kind == FL_TO_SERVER)
		flow_to_client(&work->flow, p);
	else
		flow_to_server(&work->flow, &p->dst, p->dport);
	answer_tuple(&work->tuple, r, p);
	partner = flow_find(&work->tuple, &work->found, &unused);
	if (!partner)
		return flow_store(1);
	if (work->found.entry.kind != work->flow.entry.kind || work->found.entry.server != entry->server ||
	    work->found.far_port != work->flow.far_port || work->found.near_port != work->flow.near_port ||
	    !same_addr(&work->found.far, &work->flow.far) || !same_addr(&work->found.near, &work->flow.near))
		return -1;
	partner->seen = entry->seen;
	/* Never the other way: to a SYN that is sent again, its flow must still be new. */
	if (entry->kind == FL_TO_SERVER && work->found.entry.state == FL_NEW)
		partner->state = entry->state;
	return 0;
}

/* Once in a while, for flows that are stored in both directions. `flow` is what the entry said before this packet. */
static __always_inline int keep_both(const struct packet *p, const struct route *r, struct fl_flow *entry, struct flow *flow,
				     __u32 time)
{
	if (time >> PARTNER_SHIFT == flow->entry.seen >> PARTNER_SHIFT)
		return 0;
	flow->entry.seen = time;
	flow->entry.state = entry->state;
	return keep_partner(p, r, &flow->entry);
}

/* `lookup_only`: the packet is about the flow (ICMP) and must not change it. */
static __always_inline int known_to_server(const struct packet *p, struct route *r, struct fl_flow *entry, struct flow *flow,
					   struct fl_usage *usage, const struct fl_service *service, __u32 time,
					   int lookup_only)
{
	struct fl_server *server = bpf_map_lookup_elem(&servers, &r->server);
	_Bool both_ways;
	int verdict;

	if (!server || server->generation != flow->entry.generation)
		return MISSED;
	/* A SYN is a new flow, unless it is the SYN again and would be sent to the same server. */
	if (is_syn(p) && (flow->entry.state != FL_NEW || flow->entry.table != (__u16)service->table_base ||
			  server->flags & FL_SERVER_RESET))
		return MISSED;
	if (server->flags & FL_SERVER_RESET)
		return p->proto == IPPROTO_TCP ? RESET : MISSED;
	if (server->flags & FL_SERVER_UNPIN && p->proto == IPPROTO_UDP && flow->entry.table != (__u16)service->table_base)
		return MISSED;
	verdict = route_to_server(r, p, server, flow);
	if (verdict != ROUTED || lookup_only)
		return verdict;
	flow_touch(entry, usage, p, time);
	both_ways = r->forwarding == FL_FULLNAT || (r->forwarding == FL_NAT && server->flags & FL_SERVER_AMBIGUOUS);
	if (both_ways && keep_both(p, r, entry, flow, time) && r->forwarding == FL_FULLNAT)
		return MISSED; /* its source port went to another flow while this one was evicted */
	return ROUTED;
}

static __always_inline int known_to_client(const struct packet *p, struct route *r, struct fl_flow *entry, struct flow *flow,
					   struct fl_usage *usage, __u32 time, int lookup_only)
{
	struct fl_server *server = bpf_map_lookup_elem(&servers, &r->server);

	if (!server || server->generation != flow->entry.generation)
		return MISSED;
	route_to_client(r, p, &flow->near, flow->near_port);
	if (r->forwarding == FL_FULLNAT) {
		r->dst = flow->far;
		r->dport = flow->far_port;
		r->hop = flow->far;
	}
	if (server->flags & FL_SERVER_RESET)
		return counted(FL_DROP_SERVER_RESET, XDP_DROP);
	if (lookup_only)
		return ROUTED;
	flow_touch(entry, usage, p, time);
	keep_both(p, r, entry, flow, time);
	return ROUTED;
}

/* A flow of the table, or MISSED. */
__noinline int known_flow(const struct packet *p, struct route *r, int lookup_only)
{
	struct scratch *work = get_scratch();
	struct fl_service *service;
	struct fl_flow *entry;
	struct fl_usage *usage;
	__u32 time = now();
	struct flow *flow;

	if (!p || !r || !work)
		return MISSED;
	flow = &work->known;
	tuple_of(&work->tuple, p);
	entry = flow_find(&work->tuple, flow, &usage);
	work->replaces = !!entry;
	if (!entry)
		return MISSED;
	r->service = flow->entry.service;
	r->server = flow->entry.server;
	service = bpf_map_lookup_elem(&services, &r->service);
	if (!service)
		return MISSED;
	if (too_old(&flow->entry, service, time)) {
		count(FL_EXPIRED);
		return MISSED;
	}
	r->forwarding = service->forwarding;
	if (flow->entry.kind == FL_TO_SERVER)
		return known_to_server(p, r, entry, flow, usage, service, time, lookup_only);
	if (flow->entry.kind == FL_TO_CLIENT)
		return known_to_client(p, r, entry, flow, usage, time, lookup_only);
	if (!lookup_only)
		entry->seen = time;
	return counted(FL_PASS_DIRECT, XDP_PASS);
}

/* A reply of a nat server, turned back by nothing but the server's address and port, or else MISSED. */
static __always_inline int stateless_reply(struct xdp_md *ctx, const struct packet *p, struct route *r, int lookup_only)
{
	struct fl_reply *reply;
	struct fl_server *server;
	struct fl_hop *hop;
	int known;

	if (!p || !r || is_syn(p))
		return MISSED;
	reply = reply_of(&p->src, p->sport, p->proto, p->family);
	if (!reply)
		return MISSED;
	r->service = reply->service;
	r->server = reply->server;
	server = bpf_map_lookup_elem(&servers, &r->server);
	if (!server)
		return MISSED;
	if (reply->flags & FL_REPLY_AMBIGUOUS || direct_lately(reply, now())) {
		known = known_flow(p, r, lookup_only);
		if (known != MISSED)
			return known;
	}
	r->service = reply->service;
	r->server = reply->server;
	r->forwarding = FL_NAT;
	r->generation = server->generation;
	route_to_client(r, p, &reply->vip, reply->port);
	if ((reply->flags & (FL_REPLY_AMBIGUOUS | FL_REPLY_GUESS)) == FL_REPLY_AMBIGUOUS) {
		if (may_be_own(hop_find(ctx, &p->dst, p->family, &hop)))
			return counted(FL_PASS_OWN, XDP_PASS);
		return counted(FL_DROP_REPLY_UNKNOWN, XDP_DROP);
	}
	if (server->flags & FL_SERVER_RESET) {
		if (may_be_own(hop_find(ctx, &p->dst, p->family, &hop)))
			return counted(FL_PASS_OWN, XDP_PASS);
		return counted(FL_DROP_SERVER_RESET, XDP_DROP);
	}
	return ROUTED;
}

/*
 * A client that talks to a nat server without the VIP: remember that, so that the replies stay untouched. An RST has
 * none, and may be no more than the answer to a SYN-ACK that came back while only one of the interfaces was ours.
 */
__noinline int direct(const struct packet *p)
{
	struct scratch *work = get_scratch();
	struct fl_reply *reply;
	struct fl_usage *unused;
	struct fl_flow *found;
	__u32 time = now();

	if (!p || !work)
		return XDP_PASS;
	reply = reply_of(&p->dst, p->dport, p->proto, p->family);
	if (!reply)
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	if (p->proto == IPPROTO_TCP && p->tcp_flags & TCP_RST)
		return counted(FL_PASS_DIRECT, XDP_PASS);
	reply->direct = time ? time : 1;
	work->tuple.src = p->dst;
	work->tuple.dst = p->src;
	work->tuple.sport = p->dport;
	work->tuple.dport = p->sport;
	work->tuple.proto = p->proto;
	work->tuple.family = p->family;
	found = flow_find(&work->tuple, &work->found, &unused);
	if (found && work->found.entry.kind == FL_DIRECT) {
		found->seen = time;
	} else if ((!found || !flow_alive(&work->found.entry, time)) && may_store()) {
		__builtin_memset(&work->flow, 0, sizeof(work->flow));
		work->octets = 0;
		work->flow.entry.seen = time;
		work->flow.entry.service = reply->service;
		work->flow.entry.server = reply->server;
		work->flow.entry.kind = FL_DIRECT;
		work->flow.entry.state = FL_OPEN;
		flow_store(0);
	}
	return counted(FL_PASS_DIRECT, XDP_PASS);
}

__noinline int decide(struct xdp_md *ctx, const struct packet *p, struct route *r, int lookup_only)
{
	__u8 to, from;
	int verdict;
	__u32 id;

	if (!p || !r)
		return XDP_PASS;
	to = near_bits(fold_addr(&p->dst, p->family));
	if (to & FL_NEAR_VIP) {
		verdict = known_flow(p, r, lookup_only);
		if (verdict != MISSED)
			return verdict;
		id = service_at(p);
		if (id)
			return new_flow(p, r, id, lookup_only);
	}
	from = near_bits(fold_addr(&p->src, p->family));
	if (from & FL_NEAR_SERVER) {
		verdict = stateless_reply(ctx, p, r, lookup_only);
		if (verdict != MISSED)
			return verdict;
	}
	if (to & FL_NEAR_VIP)
		return counted(FL_PASS_NO_SERVICE, XDP_PASS);
	if (to & FL_NEAR_SERVER && !lookup_only)
		return direct(p);
	return counted(FL_PASS_UNRELATED, XDP_PASS);
}

#endif
