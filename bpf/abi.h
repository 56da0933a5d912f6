/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between the XDP program and the agent (dataplane/xdp/abi.py): keys and values of the maps.
 *
 * Addresses are in network order; IPv4 stands as ::ffff:a.b.c.d wherever both families share a map. Times are
 * jiffies (the low 32 bits) unless a name says otherwise. Every struct is padded by name, and keys have no hole.
 *
 * A packet may be in flight while the agent writes, and array values are written in 8-byte words. Therefore:
 * what must change together stands in one aligned word, and what can not be changed word by word (the endpoint
 * of a server, the forwarding of a service) keeps its id for life; another value is another id.
 */
#ifndef FAIRLEAD_XDP_ABI_H
#define FAIRLEAD_XDP_ABI_H

#include <linux/types.h>

#define FL_XDP_ABI 3u

#define FL_HOP_BITS 10u
#define FL_HOPS (1u << FL_HOP_BITS) /* next hops a CPU remembers */
#define FL_NEAR_BITS 18u
#define FL_NEAR (1u << FL_NEAR_BITS) /* bytes of the address filter */
#define FL_SNAT 32u	  /* addresses fullnat may send from, both families together */
#define FL_SLOT_UNIT 8u	  /* bytes of one element of `slots` */

struct fl_addr {
	__be32 word[4];
};

enum fl_kind {
	FL_FREE,      /* never used: no probe goes past it */
	FL_TO_SERVER, /* client to VIP */
	FL_TO_CLIENT, /* server to client (nat where the server's address does not tell the VIP) or to our own (fullnat) */
	FL_DIRECT,    /* server to client, not ours: client and server talk without a VIP, through this node */
	FL_GONE,      /* taken out by the agent */
};

/* States choose the timeout of a flow. An RST never ends a flow (it may be forged): it shortens its life. */
enum fl_state {
	FL_NEW, /* one packet seen, or SYNs alone */
	FL_OPEN,
	FL_FIN,
	FL_RST,
	FL_STATES,
};

struct fl_flow {
	__u8 proto;
	__u8 kind;
	__u8 state;
	__u8 reserved;
	__u32 seen; /* when the last packet came */
	__u32 server;
	__u16 service;
	__u16 generation; /* of the server */
	__u16 table; /* low half of fl_service.table_base when the server was chosen */
	__u16 lock;  /* odd while an entry is written; another number afterwards */
};

/*
 * flows4, flows6: open addressing in an array of 2^n blocks of two cache lines, so that a flow is found in one line
 * and the agent can read the table as memory. The first line has the entries, two of IPv4 or one of IPv6; what few
 * packets need of them stands in the second, which processors fetch along with the first.
 *
 * An entry stands in one of FL_PROBES places from its home, a block, on. Flows whose source ports differ in nothing
 * but their low bits have homes in one region, a page or two: clients take ports in turn, so the translation of its
 * address is at hand when the next one begins. Where that makes a home crowded, an entry stands in one of as many places
 * elsewhere, in blocks each a region further, and the block that is its home says so.
 */
#define FL_PROBES 8u
#define FL_PLACES4 2u		 /* entries of a block of IPv4 */
#define FL_REGION4_BITS 5u	 /* blocks of a region: 4 KiB */
#define FL_REGION6_BITS 6u	 /* 8 KiB, and as many places */
#define FL_NEIGHBOURS 0x1f00ull	 /* the low five bits of a source port, as they stand in memory */

struct fl_flow4 {
	__be32 src, dst; /* the tuple of a packet as it arrives */
	__be16 sport, dport;
	struct fl_flow flow;
};

struct fl_flow6 {
	struct fl_addr src, dst;
	__be16 sport, dport;
	struct fl_flow flow;
	__u32 reserved[2];
};

struct fl_usage {
	__u64 octets; /* octets and packets only with the switch `accounting` */
	__u32 packets;
	__u32 born;
};

/*
 * near: our side, far: the client. TO_SERVER of fullnat: near is what we send from. TO_CLIENT: near is the VIP, far
 * (fullnat) the client.
 */
struct fl_details4 {
	struct fl_usage usage;
	__be32 near, far;
	__be16 near_port, far_port;
	__u32 elsewhere; /* in the first of a block: flows whose home it is stand elsewhere */
};

struct fl_details6 {
	struct fl_usage usage;
	struct fl_addr near, far;
	__be16 near_port, far_port;
	__u32 elsewhere;
	__u32 reserved[2];
};

struct fl_block4 {
	struct fl_flow4 entry[FL_PLACES4];
	struct fl_details4 details[FL_PLACES4];
};

struct fl_block6 {
	struct fl_flow6 entry;
	struct fl_details6 details;
};

/*
 * touched: a word per FL_BLOCKS_PER_WORD blocks of flows4, see touched.h. From the lowest bit on: flags of flows,
 * two marks, and the epoch in the upper eight bits.
 */
#define FL_BLOCKS_PER_WORD 4u
#define FL_MARK_BITS 54u

/*
 * carried: flows of a table of another layout, read by the agent, which the program `carry` stores in this one. Not
 * a map of the program that forwards. What an IPv4 entry lacks stands here as in the maps of both families.
 */
#define FL_CARRIED 256u

struct fl_carried {
	struct fl_addr src, dst, near, far;
	__u64 octets;
	__u32 packets;
	__u32 seen, born;
	__u32 server;
	__be16 sport, dport, near_port, far_port;
	__u16 service, generation, table;
	__u8 proto, family;
	__u8 kind, state;
	__u8 stored; /* out: whether it is in the table now */
	__u8 reserved[5];
};

/* listeners4, listeners6 -> service id */
struct fl_listen4 {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

struct fl_listen6 {
	struct fl_addr addr;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

/* ranges -> service id: port ranges (as prefixes of the port) and any port (prefix_bits 144) */
struct fl_range {
	__u32 prefix_bits; /* 144 .. 160 of what follows */
	struct fl_addr addr;
	__u8 proto;
	__u8 zero;
	__be16 port;
};

/* access -> 1: a source that may connect, per list */
struct fl_access {
	__u32 prefix_bits; /* 32 + prefix length of the v4-mapped address */
	__be32 list;
	struct fl_addr addr;
};

enum fl_forwarding { FL_NAT = 1, FL_FULLNAT, FL_DSR, FL_TUNNEL };
enum fl_choice {
	FL_BY_FLOW,   /* maglev */
	FL_BY_SOURCE, /* sh */
	FL_BY_TURN,   /* rr, wrr */
	FL_BY_CHANCE, /* random */
};
enum fl_mode { FL_FORWARD, FL_REJECT, FL_DROP };

#define FL_SETTLED 0x80000000u /* no flow but those marked in `touched` has another server than its slot names */

/* Other slots that are tried when the server of the first is of no use: of two servers one is met but for 1 in 2^16. */
#define FL_TRIES 16u

/* services, by id; id 0 is never used, ids fit 16 bits. Each line is one word. */
struct fl_service {
	__u32 table_base, table_size; /* units of `slots`, number of slots and FL_SETTLED */
	__u8 forwarding, choice, mode, reserved;
	__u32 access; /* 0: everybody may connect */
	__u64 seed[2];
	__u32 timeout[FL_STATES]; /* at most half of what 32 bits hold */
	__u32 new_per_source, reserved2; /* per second, burst of the same size; 0: no limit */
	__u64 reserved3;
};

#define FL_SERVER_RESET 1u     /* established flows are answered with RST (TCP) or go elsewhere (UDP) */
#define FL_SERVER_AMBIGUOUS 2u /* nat: its replies do not tell the VIP, so flows are stored in both directions */
#define FL_SERVER_UNPIN 4u     /* UDP flows leave, unless the table their service has now chose it */

/* servers, by id; id 0 is never used */
struct fl_server {
	struct fl_addr addr;
	__be16 port; /* 0: the port the client used */
	__u16 generation;
	__u8 family; /* 4 or 6 */
	__u8 flags;
	__u16 reserved;
	struct fl_addr source; /* tunnel: outer source address */
	__be32 spread; /* tunnel: bits of source.word[3] that vary by flow, so that servers spread what they receive */
	__u32 reserved2[5];
};

#define FL_REPLY_AMBIGUOUS 1u /* several VIPs or ports lead to this server: the flow table decides */
#define FL_REPLY_GUESS 2u     /* ... and if it does not know: this VIP (set while flows older than the ambiguity live) */

/* replies4, replies6: which VIP answers for a nat server's address and port (keys as in listeners) */
struct fl_reply {
	struct fl_addr vip;
	__be16 port; /* 0: the port the server used */
	__u16 flags;
	__u32 service;
	__u32 server;
	__u32 direct; /* when a client was last seen talking to the server without the VIP; 0: never */
};

/* vips -> 1: addresses that answer echo requests and own their fragments; key fl_addr */

/* generic_ports -> 1: index of an interface that carries the program in generic mode */

/* sources -> theoretical arrival time in ns (GCRA, ITU-T I.371) */
struct fl_source {
	__u32 service;
	struct fl_addr addr;
};

/* fragments: where the first fragment went */
struct fl_fragment_key {
	struct fl_addr src, dst;
	__u32 id;
	__u8 proto; /* 0 for IPv6 */
	__u8 zero[3];
};

struct fl_fragment {
	__u32 seen;
	__u32 service;
	__u32 server;
	__u16 generation;
	__u8 kind;
	__u8 forwarding;
	struct fl_addr src, dst; /* as rewritten */
};

/*
 * slots: memory of all slot tables, mapped by the agent. A table of n slots at unit b: n 16-bit member numbers
 * from unit b on, then, from the next whole unit on, the 32-bit server ids of the members. A table is written
 * once, before a service points to it, and its memory is reused no earlier than a second after none does.
 */

/* near: one byte per hash of an address, so that unrelated packets pass without any lookup. Stale bits only cost. */
#define FL_NEAR_VIP 1u	  /* a VIP, or an address fullnat sends from */
#define FL_NEAR_SERVER 2u /* a server of a nat service */

/* settings[0] */
struct fl_settings {
	__u32 abi;
	__u32 wide;    /* number of entries in `ranges` */
	__u32 brake;   /* flows a CPU may store per window; 0: no limit */
	__u32 answers; /* RST, ICMP errors a CPU may send per window; 0: no limit */
	__u32 cpus;    /* that share the source ports of fullnat */
	__u16 snat_first, snat_last; /* source ports of fullnat, inclusive */
	__u32 snat4, snat6; /* how many addresses: IPv4 ones first in snat[] */
	__u32 crowded; /* 1: the flow table has more flows in use than a cache holds (touched.h) */
	__u32 reserved;
	__u64 secret[2]; /* of the flow table's hash: lives as long as the table */
	struct fl_addr snat[FL_SNAT];
};

/* Before a packet (its metadata) that `resolve` is to take from the XDP program; other values are not ours. */
#define FL_UNRESOLVED 0xfa1e41adu

#define FL_WINDOW_SHIFT 4u /* a window of `brake` and `answers` is 1 << FL_WINDOW_SHIFT jiffies */

/* traffic of services and of servers, per CPU */
struct fl_traffic {
	__u64 connections;
	__u64 packets_in, bytes_in; /* client to server */
	__u64 packets_out, bytes_out;
};

/*
 * Counters. PASS_x: given to the stack, DROP_x: dropped, SENT_x: answered by us, the rest: what else happened.
 * Every packet counts in `traffic` when it is forwarded, and otherwise in exactly one PASS_x, DROP_x or SENT_x.
 */
enum fl_counter {
	FL_PASS_UNRELATED,    /* neither for a VIP nor from a server */
	FL_PASS_NO_SERVICE,   /* for a VIP, but no service there */
	FL_PASS_MALFORMED,    /* the stack judges it */
	FL_PASS_OWN,	      /* a server's answer to this node itself */
	FL_PASS_DIRECT,	      /* client and server talk without the VIP */
	FL_PASS_ICMP,	      /* ICMP that concerns no flow of ours */
	FL_PASS_UNRESOLVED,   /* rewritten; the kernel resolves the neighbour and sends it on */
	FL_PASS_RESOLVING,    /* turned into a harmless packet that makes the stack resolve the neighbour */
	FL_DROP_DENIED,
	FL_DROP_SOURCE_RATE,
	FL_DROP_SERVICE,      /* the service's mode is drop */
	FL_DROP_NO_SERVER,
	FL_DROP_HAIRPIN,      /* nat: the only server is the client itself */
	FL_DROP_TTL,
	FL_DROP_NO_ROUTE,
	FL_DROP_FORWARDING_OFF, /* ip_forward is 0 on the interface it came in by */
	FL_DROP_OFF_LINK,     /* dsr: the server is behind a gateway */
	FL_DROP_TOO_BIG,      /* does not fit, and may not be answered */
	FL_DROP_ORPHAN,	      /* a fragment whose first fragment was not seen */
	FL_DROP_SNAT_FULL,    /* fullnat: no source port is free */
	FL_DROP_NOT_STORED,   /* fullnat: the flow can not be remembered (brake, or the table refused) */
	FL_DROP_REPLY_UNKNOWN, /* a reply of which only the flow table knows the VIP, and it does not */
	FL_DROP_SERVER_RESET, /* from a server whose flows are being reset */
	FL_DROP_UNANSWERABLE, /* refused, and of a kind that must not be answered: an RST, a fragment, from a group */
	FL_DROP_ANSWER_LIMIT, /* more answers than settings.answers */
	FL_DROP_FAMILY,	      /* the server's address family does not fit the forwarding */
	FL_DROP_FAULT,	      /* the kernel refused to resize the packet */
	FL_DROP_MERGED,	      /* larger than the interface it came by lets in: made of several by GRO, LRO or GSO */
	FL_DROP_CHECKSUM,     /* its checksum was left to the hardware, and it is too long to be summed up here */
	FL_SENT_ECHO,
	FL_SENT_RESET,
	FL_SENT_UNREACHABLE,
	FL_SENT_TOO_BIG,
	FL_SENT_PATH_MTU,     /* likewise, because a router between us and the server said so of the tunnelled packet */
	FL_NEW_FLOW,	      /* a server was chosen, and that was stored */
	FL_NEW_STATELESS,     /* a server was chosen and not stored: the brake was on, or it was an RST */
	FL_STORE_FAILED,      /* a server was chosen, and the flow table refused to store it */
	FL_EXPIRED,	      /* a flow was found, but too old */
	FL_FRAGMENT_FIRST,
	FL_FRAGMENT_LATER,
	FL_ICMP_FORWARDED,
	FL_COUNTERS,
};

struct fl_cpu {
	__u64 counter[FL_COUNTERS];
	__u32 brake_window, brake_count;
	__u32 answer_window, answer_count;
	__u32 rotor; /* of fullnat's source ports */
	__u32 reserved;
};

/*
 * Probes that take the way of a service's packets (ways.bpf.c, which shares no map with the XDP program). Such a
 * probe is addressed to the server itself, so that the stack finds the next hop, and its packets bear a mark: the
 * number of their way. They leave as the XDP program would send them; what the VIP answers is turned back.
 */
#define FL_WAY_MARK 0x464c0000u /* "FL", and the number in the lower half */
#define FL_WAY_MARKS 0xffff0000u

/* ways, by mark */
struct fl_way {
	struct fl_server server; /* without port, generation and flags */
	struct fl_addr vip;
	struct fl_addr near; /* what a probe comes from if the VIP is of the other address family than the server */
	__be16 port;	     /* of the VIP; probes have it from the start */
	__u8 family;	     /* of the VIP */
	__u8 proto;
	__u8 forwarding;
	__u8 zero[3];
	__u64 packets; /* that took it */
};

/* asked -> fl_asker: whose answer it is that the VIP sends there */
struct fl_asked {
	struct fl_addr near, vip;
	__be16 near_port, port;
	__u8 proto;
	__u8 zero[3];
};

struct fl_asker {
	struct fl_addr own; /* the probe's address as its socket knows it */
	__u32 mark;
};

struct fl_hop { /* what bpf_fib_lookup said of an address */
	struct fl_addr dst;
	__u32 asked;
	__u32 ifindex; /* 0: free */
	__u8 dmac[6], smac[6];
	__u16 mtu;
	__u16 gateway; /* not 0: the address is not on this link */
};

#endif
