// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts the live flows of each service and each server, and tells the time as the flow table keeps it. The agent
 * calls it (BPF_PROG_TYPE_SYSCALL); it looks at a part of the tables per call and changes nothing in them.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct fl_block4);
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct fl_block6);
} flows6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct fl_service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} service_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} server_flows SEC(".maps");

/* Mirrored in dataplane/xdp/census.py. */
struct request {
	__u32 first, count; /* blocks of both tables */
	__u32 jiffies;	    /* out */
	__u32 live;	    /* out: of these blocks */
};

struct walk {
	__u32 first, time, live;
};

static __always_inline void account(struct walk *walk, const struct fl_flow *flow)
{
	__u32 service_id = flow->service, server_id = flow->server, *number;
	struct fl_service *service;

	if (flow->kind == FL_FREE || flow->kind == FL_GONE)
		return;
	service = bpf_map_lookup_elem(&services, &service_id);
	if (!service)
		return;
	if ((__s32)(walk->time - flow->seen) > (__s32)service->timeout[flow->state & (FL_STATES - 1)])
		return;
	/* A flow stands in the table once or twice; the other direction is no flow of its own. */
	if (flow->kind != FL_TO_SERVER)
		return;
	walk->live++;
	number = bpf_map_lookup_elem(&service_flows, &service_id);
	if (number)
		__sync_fetch_and_add(number, 1);
	number = bpf_map_lookup_elem(&server_flows, &server_id);
	if (number)
		__sync_fetch_and_add(number, 1);
}

static long look4(__u32 offset, struct walk *walk)
{
	__u32 index = walk->first + offset;
	struct fl_block4 *block = bpf_map_lookup_elem(&flows4, &index);

	if (!block)
		return 1;
	for (__u32 i = 0; i < FL_PLACES4; i++)
		account(walk, &block->entry[i].flow);
	return 0;
}

static long look6(__u32 offset, struct walk *walk)
{
	__u32 index = walk->first + offset;
	struct fl_block6 *block = bpf_map_lookup_elem(&flows6, &index);

	if (!block)
		return 1;
	account(walk, &block->entry.flow);
	return 0;
}

SEC("syscall")
int census(struct request *request)
{
	struct walk walk = { .first = request->first, .time = bpf_jiffies64() };

	bpf_loop(request->count, look4, &walk, 0);
	bpf_loop(request->count, look6, &walk, 0);
	request->jiffies = walk.time;
	request->live = walk.live;
	return 0;
}

char _license[] SEC("license") = "GPL";
