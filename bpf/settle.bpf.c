// SPDX-License-Identifier: GPL-2.0-only
/*
 * Marks where strays are: flows whose server is not the one that their slot names (touched.h). The agent calls it
 * (BPF_PROG_TYPE_SYSCALL), for a part of a map per call, while packets are forwarded.
 *
 * There are two marks, and a word with either is heeded. One is taken out everywhere, strays are given it, and then
 * the other is taken out. The program that forwards gives a new stray both, after it was stored: so whenever that
 * is, it has the mark that stays.
 */
#include "common.h"
#include "flow.h"
#include "select.h"

/* Mirrored in dataplane/xdp/settle.py. */
struct request {
	__u32 first, count; /* words, or blocks of flows4 */
	__u32 mark;	    /* 0 or 1 */
	__u32 found;	    /* out: strays, or flows */
};

struct walk {
	__u64 mark;
	__u32 first, time, found;
};

static __always_inline void walk_start(struct walk *walk, const struct request *request)
{
	walk->mark = 1ull << (FL_MARK_BITS + (request->mark & 1));
	walk->first = request->first;
	walk->time = now();
	walk->found = 0;
}

static long clear_word(__u32 offset, struct walk *walk)
{
	__u32 index = walk->first + offset;
	__u64 *word = bpf_map_lookup_elem(&touched, &index);

	if (!word)
		return 1;
	if (*word & walk->mark)
		__sync_fetch_and_and(word, ~walk->mark);
	return 0;
}

/* The server that would be chosen for a packet of this flow by its slot alone, of whatever service is there now; 0: none. */
static __always_inline __u32 named_by_slot(const struct fl_flow4 *entry, __u32 *service_id)
{
	struct fl_listen4 key = { .addr = entry->dst, .port = entry->dport, .proto = IPPROTO_TCP };
	__u32 *id = bpf_map_lookup_elem(&listeners4, &key), size;
	struct fl_service *service;
	__u64 word, hash;

	if (!id)
		return 0;
	*service_id = *id;
	service = bpf_map_lookup_elem(&services, service_id);
	if (!service || service->choice != FL_BY_FLOW || service->forwarding == FL_FULLNAT)
		return 0;
	word = *(volatile __u64 *)&service->table_base;
	size = slots_of(word);
	hash = flow_hash4(service->seed, entry->src, entry->dst, (__u32)entry->dport << 16 | entry->sport, IPPROTO_TCP);
	return server_in_slot(word, size, slot_of(hash, size));
}

static __always_inline void mark_entry(const struct fl_flow4 *entry, const struct fl_settings *set, struct walk *walk)
{
	_Bool to_server = entry->flow.kind == FL_TO_SERVER; /* or without the VIP, from when its address was none */
	__u32 service_id = 0, server_id;
	__u64 *word;

	if (!(to_server || entry->flow.kind == FL_DIRECT) || entry->flow.proto != IPPROTO_TCP ||
	    !flow_alive(&entry->flow, walk->time))
		return;
	server_id = named_by_slot(entry, &service_id);
	if (!server_id || (to_server && entry->flow.service == service_id && entry->flow.server == server_id))
		return;
	word = touch_word(hash4(two(entry->src, entry->dst), ports_proto(entry->sport, entry->dport, IPPROTO_TCP), set));
	if (word)
		__sync_fetch_and_or(word, walk->mark);
	walk->found++;
}

static long mark_block(__u32 offset, struct walk *walk)
{
	struct fl_settings *set = get_settings();
	__u32 index = walk->first + offset;
	struct fl_block4 *block = bpf_map_lookup_elem(&flows4, &index);

	if (!block || !set)
		return 1;
	for (__u32 i = 0; i < FL_PLACES4; i++)
		mark_entry(&block->entry[i], set, walk);
	return 0;
}

SEC("syscall")
int unmark(struct request *request)
{
	struct walk walk;

	walk_start(&walk, request);
	bpf_loop(request->count, clear_word, &walk, 0);
	return 0;
}

SEC("syscall")
int mark(struct request *request)
{
	struct walk walk;

	walk_start(&walk, request);
	bpf_loop(request->count, mark_block, &walk, 0);
	request->found = walk.found;
	return 0;
}

static long count_block(__u32 offset, struct walk *walk)
{
	__u32 index = walk->first + offset;
	struct fl_block4 *block = bpf_map_lookup_elem(&flows4, &index);

	if (!block)
		return 1;
	for (__u32 i = 0; i < FL_PLACES4; i++) {
		const struct fl_flow *flow = &block->entry[i].flow;

		walk->found += flow->kind == FL_TO_SERVER && walk->time - flow->seen < 1u << touch_shift;
	}
	return 0;
}

/* Counts the flows that were met within an epoch. */
SEC("syscall")
int in_use(struct request *request)
{
	struct walk walk;

	walk_start(&walk, request);
	bpf_loop(request->count, count_block, &walk, 0);
	request->found = walk.found;
	return 0;
}

char _license[] SEC("license") = "GPL";
