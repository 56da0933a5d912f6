// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stores flows that the agent read from the tables of an earlier generation, whose layout is another. The agent calls
 * it (BPF_PROG_TYPE_SYSCALL) while packets are forwarded by the same tables: places are found and locked as by the
 * program that forwards, and a flow that is there already stays as it is.
 */
#include "common.h"
#include "flow.h"
#include "store.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FL_CARRIED);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct fl_carried);
} carried SEC(".maps");

/* A function of its own, so that the verifier looks at it once and not for every flow. */
__noinline int carry_one(__u32 number)
{
	struct fl_carried *from = bpf_map_lookup_elem(&carried, &number);
	struct scratch *work = get_scratch();
	struct fl_usage *usage;

	if (!from || !work)
		return -1;
	work->tuple.src = from->src;
	work->tuple.dst = from->dst;
	work->tuple.sport = from->sport;
	work->tuple.dport = from->dport;
	work->tuple.proto = from->proto;
	work->tuple.family = from->family;
	work->flow.entry.kind = from->kind;
	work->flow.entry.state = from->state;
	work->flow.entry.seen = from->seen;
	work->flow.entry.server = from->server;
	work->flow.entry.service = from->service;
	work->flow.entry.generation = from->generation;
	work->flow.entry.table = from->table;
	work->flow.near = from->near;
	work->flow.far = from->far;
	work->flow.near_port = from->near_port;
	work->flow.far_port = from->far_port;
	work->octets = 0;
	from->stored = 0;
	if (flow_store(1))
		return 0;
	from->stored = 1;
	if (!flow_find(&work->tuple, &work->found, &usage))
		return 0;
	usage->born = from->born;
	usage->packets = from->packets;
	usage->octets = from->octets;
	return 0;
}

static long each(__u32 number, void *unused)
{
	return carry_one(number) < 0;
}

SEC("syscall")
int carry(__u32 *count)
{
	bpf_loop(*count, each, 0, 0);
	return 0;
}

char _license[] SEC("license") = "GPL";
