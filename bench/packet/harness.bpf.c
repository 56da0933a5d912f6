// SPDX-License-Identifier: GPL-2.0-only
/*
 * The reset harness: restores the packet before every run, gives it the next flow's address and port, and jumps to
 * the program under test. So one test run may repeat a program that encapsulates, and it meets as many flows as wanted.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TEMPLATE 128 /* bytes copied at most; frames are at least as long */

const volatile __u32 frame_bytes = 64;
const volatile __u32 template_words = 8; /* 8-byte words that are restored */
const volatile __u32 flows = 1;
/* From flow to flow; shares no factor with `flows`. In order (1) a table that fills up in order would be read in order. */
const volatile __u32 stride = 1;
const volatile __u32 address_at = 26; /* where the low word of the varied address stands */
const volatile __u32 port_at = 34;
const volatile __u32 base_address = 0; /* host order */
const volatile __u32 base_port = 1024;
const volatile __u32 ports = 4096; /* a power of two: flows that share an address */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8[TEMPLATE]);
} template SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

__u32 turn;

SEC("xdp")
int reset(struct xdp_md *ctx)
{
	__u32 zero = 0, flow = turn;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long grown = end - data;
	__u64 *from;

	/* A 64-bit difference must stay one: clang would subtract 32-bit halves of pointers, which is refused. */
	asm volatile("" : "+r"(grown));
	if (bpf_xdp_adjust_head(ctx, (int)grown - (int)frame_bytes))
		return XDP_ABORTED;
	from = bpf_map_lookup_elem(&template, &zero);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (!from || data + (template_words == 8 ? 64 : TEMPLATE) > end)
		return XDP_ABORTED;
	/* In words that begin two bytes later: so the addresses are written as one, and can be read as one at once. */
	*(__u16 *)data = *(__u16 *)from;
	from = (void *)from + 2;
	data += 2;
	if (template_words == 8)
		__builtin_memcpy(data, from, 62);
	else
		__builtin_memcpy(data, from, TEMPLATE - 2);
	data -= 2;
	if (flows > 1) {
		*(__be32 *)(data + (address_at & 63)) = bpf_htonl(base_address + flow / ports);
		*(__be16 *)(data + (port_at & 63)) = bpf_htons(base_port + flow % ports);
		flow += stride;
		turn = flow < flows ? flow : flow - flows;
	}
	bpf_tail_call_static(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int pass_all(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int drop_all(struct xdp_md *ctx)
{
	return XDP_DROP;
}

static __always_inline int swap(struct xdp_md *ctx)
{
	__u16 *words = (void *)(long)ctx->data, saved[3];

	if ((void *)(words + 7) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(saved, words, 6);
	__builtin_memcpy(words, words + 3, 6);
	__builtin_memcpy(words + 3, saved, 6);
	return XDP_TX;
}

SEC("xdp")
int swap_macs(struct xdp_md *ctx)
{
	return swap(ctx);
}

/* An entry of a flow table, and as many as that has. */
struct place {
	__u64 word[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct place);
} memory SEC(".maps");

const volatile __u32 memory_mask = 65535;

/* The floor of whatever remembers flows: one entry that the flow chooses says what becomes of the packet. */
SEC("xdp")
int one_access(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct place *place;
	__u64 hash;
	__u32 index;

	if (address_at > 60 || port_at > 62 || data + 64 > (void *)(long)ctx->data_end)
		return XDP_DROP;
	hash = (__u64)*(__u32 *)(data + address_at) << 16 | *(__u16 *)(data + port_at);
	hash = hash * 0xBF58476D1CE4E5B9ull;
	hash = (hash ^ hash >> 32) * 0x94D049BB133111EBull;
	index = hash >> 32 & memory_mask;
	place = bpf_map_lookup_elem(&memory, &index);
	if (!place || place->word[1])
		return XDP_DROP;
	place->word[0]++;
	return swap(ctx);
}

char _license[] SEC("license") = "GPL";
