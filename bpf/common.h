/* SPDX-License-Identifier: GPL-2.0-only */
/* What every part needs: the packet and its route as we carry them, counting, time, addresses. */
#ifndef FAIRLEAD_COMMON_H
#define FAIRLEAD_COMMON_H

#include "inet.h"
#include "maps.h"

/* Switches, set at load. */
const volatile __u32 hop_ttl = 10;		/* jiffies a next hop is believed; 0: ask for every packet */
const volatile __u32 fragment_ttl = 7500;	/* jiffies a fragment's way is remembered */
const volatile _Bool multi_buffer = 0;		/* loaded with BPF_F_XDP_HAS_FRAGS: a packet may have more than one buffer */
const volatile __u32 block4_mask = 32767;	/* blocks of the flow tables, less one */
const volatile __u32 block6_mask = 65535;
const volatile __u32 touched_mask = 8191;	/* words of `touched`, less one */
const volatile __u32 touch_shift = 11;		/* an epoch of `touched` is 1 << touch_shift jiffies */
const volatile _Bool accounting = 0;		/* count packets and octets of every flow: one more cache line a packet */
const volatile _Bool resolver = 0;		/* the tc program `resolve` sees every packet that this one passes */
const volatile _Bool unfinished_sums = 0;	/* packets may come whose checksum was left to the hardware (partial.h) */
const volatile _Bool fast_path = 1;		/* off: every packet takes the general path (tests compare the two) */

/* What a function may answer instead of an XDP action. */
enum { ROUTED = 64, REFUSED, RESET, MISSED };

enum fragment { WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT };

struct packet {
	struct fl_addr src, dst; /* v4-mapped */
	__u32 ip_len;		 /* of the IP packet, header included */
	__u32 fragment_id;
	__u16 l3, l4;		 /* offsets from data */
	__be16 sport, dport;
	__u8 family;		 /* 4 or 6 */
	__u8 proto;
	__u8 tcp_flags;
	__u8 fragment;
	__u8 ttl;
	__u8 tos;
	__u8 dont_fragment;
	__u8 ihl;		 /* bytes of the IPv4 header */
	__u64 tags;		 /* VLAN tags, l3 - ETH_HLEN bytes, as they stand in the frame */
};

/* Where a packet goes and what it says then. For dsr and tunnel the addresses stay as they are. */
struct route {
	struct fl_addr src, dst;
	struct fl_addr hop; /* whose link address is wanted */
	__be16 sport, dport;
	__u32 service, server;
	__u16 generation;
	__u8 kind, forwarding;
	__u8 hop_family;
};

struct tuple {
	struct fl_addr src, dst;
	__be16 sport, dport;
	__u8 proto, family;
};

/* A flow as we work on it: a copy of its entry and of what its details say. */
struct flow {
	struct fl_flow entry;
	__be16 near_port, far_port;
	struct fl_addr near, far;
};

/* One packet at a time is worked on per CPU, and the stack of 512 bytes would not hold this. */
struct scratch {
	struct packet packet, quoted, turned;
	struct route route, outer;
	struct tuple tuple;
	struct flow flow, found, known;
	__u32 rank, place; /* the best place so far for that flow; kept here, the verifier need not tell them apart */
	__u32 octets; /* of the packet that makes the flow to be stored; 0: another packet's */
	__u32 by_slot;	/* the server of the flow to be stored is the one that its slot names */
	__u32 replaces; /* the packet's tuple has an entry, though not one that decides */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *get_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Whether a segment asks for a connection. */
static __always_inline _Bool opens(__u8 tcp_flags)
{
	return (tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

static __always_inline struct fl_cpu *this_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cpus, &zero);
}

static __always_inline void count(enum fl_counter which)
{
	struct fl_cpu *cpu = this_cpu();

	if (cpu)
		cpu->counter[which]++;
}

static __always_inline int counted(enum fl_counter which, int verdict)
{
	count(which);
	return verdict;
}

/* Of a packet that is forwarded. `opening`: it began a flow, which is stored. */
static __always_inline void count_traffic(__u32 service, __u32 server, __u8 kind, __u32 bytes, _Bool opening)
{
	struct fl_traffic *of_service = bpf_map_lookup_elem(&service_traffic, &service);
	struct fl_traffic *of_server = bpf_map_lookup_elem(&server_traffic, &server);

	if (!of_service || !of_server)
		return;
	if (opening) {
		of_service->connections++;
		of_server->connections++;
	}
	if (kind == FL_TO_SERVER) {
		of_service->packets_in++;
		of_service->bytes_in += bytes;
		of_server->packets_in++;
		of_server->bytes_in += bytes;
	} else {
		of_service->packets_out++;
		of_service->bytes_out += bytes;
		of_server->packets_out++;
		of_server->bytes_out += bytes;
	}
}

static __always_inline __u32 now(void)
{
	return bpf_jiffies64();
}

static __always_inline struct fl_settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

/*
 * Multiplicative hashing (Knuth, TAOCP 6.4): 2^64 divided by the golden ratio, and the upper bits, which depend on
 * every bit of an address. Neighbouring addresses differ in their last byte, the uppermost of `folded`.
 */
static __always_inline __u32 address_hash(__u32 folded, __u32 bits)
{
	return folded * 0x9E3779B97F4A7C15ull >> (64 - bits);
}

static __always_inline __u8 near_bits(__u32 folded)
{
	__u32 zero = 0;
	struct fl_near *all = bpf_map_lookup_elem(&near, &zero);

	if (!all)
		return 0;
	return all->bits[address_hash(folded, FL_NEAR_BITS) & (FL_NEAR - 1)];
}

#endif
