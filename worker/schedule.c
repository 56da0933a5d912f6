/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Schedulers. maglev, sh, random, rr and wrr read the lookup table the agent built; lc and wlc compare the
 * connections of the live members over all workers.
 */
#include "schedule.h"

#include <string.h>
#include <sys/random.h>

#include "siphash.h"
#include "sticky.h"

/* So many slots are tried by hash or cursor before the members are scanned: with half of the servers full or tried,
 * one flow in 65536 comes to the scan. */
#define PROBES 16u

static uint64_t random_state;

void schedule_init(void)
{
	if (getrandom(&random_state, sizeof(random_state), GRND_NONBLOCK) != sizeof(random_state))
		random_state = worker.now_ms << 20 ^ worker.slot;
}

static void put_port(uint8_t *to, uint16_t port)
{
	to[0] = (uint8_t)(port >> 8);
	to[1] = (uint8_t)port;
}

uint64_t flow_hash(const struct flow *flow)
{
	size_t skip = flow->client.family == 4 && flow->vip.family == 4 ? 12 : 0, size = 16 - skip;
	uint8_t message[40] = {0};

	memcpy(message, flow->client.ip + skip, size);
	memcpy(message + size, flow->vip.ip + skip, size);
	put_port(message + 2 * size, flow->client.port);
	put_port(message + 2 * size + 2, flow->vip.port);
	message[2 * size + 4] = flow->service->spec.protocol;
	return siphash13(flow->service->spec.seed, message, 2 * size + 8);
}

uint64_t source_hash(const struct flow *flow)
{
	bool v4 = flow->client.family == 4;
	uint8_t message[16] = {0};

	memcpy(message, flow->client.ip + (v4 ? 12 : 0), v4 ? 4 : 16);
	return siphash13(flow->service->spec.seed, message, v4 ? 8 : 16);
}

static bool was_tried(const struct flow *flow, const struct server *server)
{
	if (flow->tried)
		for (uint32_t i = 0; i < flow->tried->count; i++)
			if (flow->tried->id[i] == server->spec.id)
				return true;
	return false;
}

/* Takes the server if it may be taken; notes in `why` when only its limit stood in the way. */
static bool take(struct flow *flow, struct server *server, enum reason *why)
{
	if ((server->spec.flags & FL_SERVER_RESET) || was_tried(flow, server))
		return false;
	if (flow_take_server(flow, server))
		return true;
	*why = SERVERS_FULL;
	return false;
}

static uint32_t slot_of(const struct table *table, uint64_t h)
{
	return (uint32_t)((h >> 32) * table->spec.size >> 32);
}

static uint64_t start_of(struct flow *flow, enum fl_scheduler scheduler)
{
	if (scheduler == FL_MAGLEV)
		return flow_hash(flow);
	if (scheduler == FL_SH)
		return source_hash(flow);
	random_state += 0x9E3779B97F4A7C15u;
	return splitmix64(random_state, 0);
}

static uint32_t next_turn(struct service *service)
{
	return __atomic_fetch_add(&service->shared->cursor, 1, __ATOMIC_RELAXED);
}

/* Walks the members once from a given place; the last resort of every table scheduler. */
static struct server *scan(struct flow *flow, const struct table *table, uint32_t from, enum reason *why)
{
	for (uint32_t i = 0; i < table->live; i++) {
		struct server *server = table->member[(from + i) % table->live];

		if (take(flow, server, why))
			return server;
	}
	return NULL;
}

static struct server *by_hash(struct flow *flow, const struct table *table, enum fl_scheduler scheduler,
			      enum reason *why)
{
	uint64_t h = start_of(flow, scheduler), probe = h;

	for (uint32_t k = 0; k < PROBES; k++, probe = splitmix64(h, k)) {
		struct server *server = table->member[table->slot[slot_of(table, probe)]];

		if (take(flow, server, why))
			return server;
	}
	return scan(flow, table, (uint32_t)(h % table->live), why);
}

static struct server *by_turn(struct flow *flow, const struct table *table, enum reason *why)
{
	uint32_t turn = 0;

	for (uint32_t k = 0; k < PROBES; k++) {
		struct server *server;

		turn = next_turn(flow->service);
		server = table->member[table->slot[turn % table->spec.size]];
		if (take(flow, server, why))
			return server;
	}
	return scan(flow, table, turn % table->live, why);
}

static bool lighter(const struct server *a, const struct server *b, bool weighted)
{
	uint64_t load_a = __atomic_load_n(&a->shared->active, __ATOMIC_RELAXED),
		 load_b = __atomic_load_n(&b->shared->active, __ATOMIC_RELAXED);

	if (!weighted)
		return load_a < load_b;
	/* Counting the new connection too prefers the heavier of two idle servers. */
	return (load_a + 1) * b->spec.weight < (load_b + 1) * a->spec.weight;
}

/* Equals take turns: the scan starts one member further each time and only a lighter one displaces the first. */
static struct server *by_load(struct flow *flow, const struct table *table, bool weighted, enum reason *why)
{
	uint32_t from = next_turn(flow->service);

	for (uint32_t attempt = 0; attempt < PROBES; attempt++) {
		struct server *best = NULL;

		for (uint32_t i = 0; i < table->live; i++) {
			struct server *server = table->member[(from + i) % table->live];
			uint32_t limit = server->spec.max_connections;

			if ((server->spec.flags & FL_SERVER_RESET) || was_tried(flow, server))
				continue;
			if (limit && __atomic_load_n(&server->shared->active, __ATOMIC_RELAXED) >= limit)
				*why = SERVERS_FULL;
			else if (best == NULL || lighter(server, best, weighted))
				best = server;
		}
		if (best == NULL || take(flow, best, why)) /* another worker may take the last place meanwhile */
			return best;
	}
	return scan(flow, table, from % table->live, why);
}

static struct server *fresh(struct flow *flow, const struct table *table, enum reason *why)
{
	enum fl_scheduler scheduler = flow->service->spec.scheduler;

	if (scheduler == FL_LC || scheduler == FL_WLC)
		return by_load(flow, table, scheduler == FL_WLC, why);
	if (table->spec.size == 0)
		return scan(flow, table, next_turn(flow->service) % table->live, why);
	if (scheduler == FL_RR || scheduler == FL_WRR)
		return by_turn(flow, table, why);
	return by_hash(flow, table, scheduler, why);
}

struct server *schedule(struct flow *flow, enum reason *why)
{
	const struct service *service = flow->service;
	const struct table *table = table_by_id(service->spec.table);
	struct server *server;
	struct binding binding;
	uint32_t id;

	*why = NO_SERVER;
	if (service->spec.mode != FL_FORWARD || table == NULL)
		return NULL;
	if (service->spec.persist_ms == 0)
		return fresh(flow, table, why);

	id = sticky_lookup(&binding, flow);
	server = id && table_has_live(table, id) ? server_by_id(id) : NULL;
	if (server == NULL || !take(flow, server, why))
		server = fresh(flow, table, why);
	sticky_store(&binding, flow, server ? server->spec.id : 0);
	return server;
}
