/* SPDX-License-Identifier: GPL-2.0-only */
/* Fragments follow their first fragment, the only one that carries ports. */
#ifndef FAIRLEAD_FRAGMENT_H
#define FAIRLEAD_FRAGMENT_H

#include "common.h"
#include "transmit.h"

static __always_inline void fragment_key(struct fl_fragment_key *key, const struct packet *p)
{
	key->src = p->src;
	key->dst = p->dst;
	key->id = p->fragment_id;
	*(__u32 *)&key->proto = p->family == 4 ? p->proto : 0;
}

__noinline int fragment_first(const struct packet *p, const struct route *r)
{
	struct fl_fragment_key key;
	struct fl_fragment way;

	if (!p || !r)
		return -1;
	fragment_key(&key, p);
	way.seen = now();
	way.service = r->service;
	way.server = r->server;
	way.generation = r->generation;
	way.kind = r->kind;
	way.forwarding = r->forwarding;
	way.src = r->src;
	way.dst = r->dst;
	count(FL_FRAGMENT_FIRST);
	if (bpf_map_update_elem(&fragments, &key, &way, BPF_ANY))
		count(FL_STORE_FAILED);
	return 0;
}

__noinline int fragment_later(struct xdp_md *ctx, const struct packet *p)
{
	struct fl_fragment_key key;
	struct fl_fragment *way;
	struct fl_server *server;
	struct route *r;
	struct scratch *work = get_scratch();

	if (!p || !work)
		return XDP_PASS;
	r = &work->route;
	fragment_key(&key, p);
	way = bpf_map_lookup_elem(&fragments, &key);
	if (!way || (__s32)(now() - way->seen) > (__s32)fragment_ttl) {
		if (bpf_map_lookup_elem(&vips, &p->dst))
			return counted(FL_DROP_ORPHAN, XDP_DROP);
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	}
	r->service = way->service;
	r->server = way->server;
	r->generation = way->generation;
	r->kind = way->kind;
	r->forwarding = way->forwarding;
	r->src = way->src;
	r->dst = way->dst;
	r->sport = 0;
	r->dport = 0;
	server = bpf_map_lookup_elem(&servers, &r->server);
	if (!server || server->generation != r->generation)
		return counted(FL_DROP_ORPHAN, XDP_DROP);
	r->hop = r->dst;
	r->hop_family = p->family;
	if (r->kind == FL_TO_SERVER && (r->forwarding == FL_DSR || r->forwarding == FL_TUNNEL)) {
		r->hop = server->addr;
		r->hop_family = server->family;
	}
	count(FL_FRAGMENT_LATER);
	return transmit(ctx, p, r);
}

#endif
