/* SPDX-License-Identifier: GPL-2.0-only */
/* Which service a packet is for, whether its source may connect, and which server takes a new flow. */
#ifndef FAIRLEAD_SELECT_H
#define FAIRLEAD_SELECT_H

#include "common.h"
#include "flow.h"
#include "siphash.h"

static __always_inline __u32 service_at(const struct packet *p)
{
	struct fl_settings *set = get_settings();
	struct fl_range wide;
	__u32 *id;

	if (p->family == 4) {
		struct fl_listen4 key = { .addr = p->dst.word[3], .port = p->dport, .proto = p->proto };

		id = bpf_map_lookup_elem(&listeners4, &key);
	} else {
		struct fl_listen6 key = { .addr = p->dst, .port = p->dport, .proto = p->proto };

		id = bpf_map_lookup_elem(&listeners6, &key);
	}
	if (id)
		return *id;
	if (!set || !set->wide)
		return 0;
	wide.prefix_bits = 160;
	wide.addr = p->dst;
	wide.proto = p->proto;
	wide.zero = 0;
	wide.port = p->dport;
	id = bpf_map_lookup_elem(&ranges, &wide);
	return id ? *id : 0;
}

/* The VIP for which a nat server answers from this address and port. */
static __always_inline struct fl_reply *reply_of(const struct fl_addr *addr, __be16 port, __u8 proto, __u8 family)
{
	struct fl_reply *found;

	if (family == 4) {
		struct fl_listen4 key = { .addr = addr->word[3], .port = port, .proto = proto };

		found = bpf_map_lookup_elem(&replies4, &key);
		if (found)
			return found;
		key.port = 0;
		return bpf_map_lookup_elem(&replies4, &key);
	}
	struct fl_listen6 key = { .addr = *addr, .port = port, .proto = proto };

	found = bpf_map_lookup_elem(&replies6, &key);
	if (found)
		return found;
	key.port = 0;
	return bpf_map_lookup_elem(&replies6, &key);
}

/* Whether a client talked to the server without the VIP lately: the flow table tells then whose reply it is. */
static __always_inline _Bool direct_lately(const struct fl_reply *reply, __u32 time)
{
	struct fl_service *service;
	__u32 id = reply->service;

	if (!reply->direct)
		return 0;
	service = bpf_map_lookup_elem(&services, &id);
	return !service || time - reply->direct < service->timeout[FL_OPEN];
}

static __always_inline _Bool may_connect(const struct fl_service *service, const struct fl_addr *source)
{
	struct fl_access key = { .prefix_bits = 160, .list = bpf_htonl(service->access), .addr = *source };

	return !service->access || bpf_map_lookup_elem(&access, &key);
}

/*
 * Per-source limit of new connections: the generic cell rate algorithm. One word per source holds the time at
 * which the source would have used up what it may; it is moved by compare-and-swap, so that CPUs agree.
 */
__noinline int within_rate(const struct packet *p, __u32 service, __u32 per_second)
{
	__u64 clock = bpf_ktime_get_ns(), step, *arrival, first;
	struct fl_source key;

	if (!p || !per_second)
		return 1;
	step = 1000000000ull / per_second;
	key.service = service;
	key.addr = p->src;
	arrival = bpf_map_lookup_elem(&sources, &key);
	if (!arrival) {
		first = clock + step;
		bpf_map_update_elem(&sources, &key, &first, BPF_NOEXIST);
		return 1;
	}
	for (int i = 0; i < 4; i++) {
		__u64 seen = *(volatile __u64 *)arrival, from = seen > clock ? seen : clock;

		/* A whole second's worth may come at once. */
		if (from - clock > 1000000000ull - step)
			return 0;
		if (__sync_val_compare_and_swap(arrival, seen, from + step) == seen)
			return 1;
	}
	return 0;
}

static __always_inline _Bool window_allows(__u32 *window, __u32 *used, __u32 limit)
{
	__u32 present = now() >> FL_WINDOW_SHIFT;

	if (*window != present) {
		*window = present;
		*used = 0;
	}
	return !limit || (*used)++ < limit;
}

/* The brake: under a flood of new flows this CPU stores no more of them, and established ones stay. */
static __always_inline _Bool may_store(void)
{
	struct fl_settings *set = get_settings();
	struct fl_cpu *cpu = this_cpu();

	return set && cpu && window_allows(&cpu->brake_window, &cpu->brake_count, set->brake);
}

/* Whether this CPU has stored what it may; nothing is taken from that. */
static __always_inline _Bool brake_is_on(const struct fl_settings *set)
{
	struct fl_cpu *cpu = this_cpu();

	return set->brake && cpu && cpu->brake_window == now() >> FL_WINDOW_SHIFT && cpu->brake_count >= set->brake;
}

static __always_inline __u32 server_in_slot(__u32 base, __u32 size, __u32 slot)
{
	__u32 unit = base + slot / 4, member;
	__u16 *four;
	__u32 *two;

	four = bpf_map_lookup_elem(&slots, &unit);
	if (!four)
		return 0;
	member = four[slot & 3];
	unit = base + (size + 3) / 4 + member / 2;
	two = bpf_map_lookup_elem(&slots, &unit);
	return two ? two[member & 1] : 0;
}

/* `word`: table_base and table_size of a service. */
static __always_inline __u32 slots_of(__u64 word)
{
	return word >> 32 & ~FL_SETTLED;
}

static __always_inline __u32 slot_of(__u64 hash, __u32 size)
{
	return (hash >> 32) * size >> 32;
}

static __always_inline __u64 starting_hash(struct fl_service *service, __u32 id, const struct packet *p, _Bool stored,
					   _Bool *by_turn)
{
	*by_turn = 0;
	/* Only a choice that is remembered may differ from one packet to the next. */
	if (stored && service->choice == FL_BY_TURN) {
		__u64 *turn = bpf_map_lookup_elem(&turns, &id);

		if (turn) {
			*by_turn = 1;
			return __sync_fetch_and_add(turn, 1);
		}
	}
	if (stored && service->choice == FL_BY_CHANCE)
		return (__u64)bpf_get_prandom_u32() << 32;
	return flow_hash(service->seed, p, service->choice == FL_BY_SOURCE);
}

/*
 * The server of a new flow: 0 when there is none. `stored`: the choice will be remembered. `hairpin` is set when
 * servers were passed over because they are the client itself.
 */
__noinline int choose(const struct packet *p, __u32 id, int stored, int *hairpin)
{
	struct fl_service *service = bpf_map_lookup_elem(&services, &id);
	struct scratch *work = get_scratch();
	__u32 base, size;
	_Bool by_turn;
	__u64 hash, word;

	if (!service || !p || !hairpin || !work)
		return 0;
	/* One load: the agent flips both at once. */
	word = *(volatile __u64 *)&service->table_base;
	base = word;
	size = slots_of(word);
	if (!size)
		return 0;
	hash = starting_hash(service, id, p, stored, &by_turn);
	for (__u32 i = 0; i <= FL_TRIES; i++) {
		__u32 slot = by_turn ? (hash + i) % size : slot_of(i ? splitmix64(hash + i * SPLITMIX_GAMMA) : hash, size);
		__u32 chosen = server_in_slot(base, size, slot);
		struct fl_server *server = bpf_map_lookup_elem(&servers, &chosen);

		if (!server || !server->family || server->flags & FL_SERVER_RESET)
			continue;
		if (service->forwarding == FL_NAT && same_addr(&server->addr, &p->src)) {
			*hairpin = 1;
			continue;
		}
		work->by_slot = !i && service->choice == FL_BY_FLOW;
		return chosen;
	}
	return 0;
}

#endif
