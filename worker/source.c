/* SPDX-License-Identifier: Apache-2.0 */
/* The source table: per (service, address) a count for each worker and a token bucket of one second. */
#include "source.h"

#include <string.h>

#include "address.h"
#include "flow.h"
#include "shm.h"

static uint32_t held_by_all(const struct fl_source *row)
{
	uint32_t sum = 0;

	for (uint32_t i = 0; i < FL_MAX_WORKERS; i++)
		sum += __atomic_load_n(&row->held[i], __ATOMIC_RELAXED);
	return sum;
}

/* A row that holds nothing and has had a second to refill says no more than a missing one. */
static bool is_spent(const struct fl_source *row)
{
	return row->service == 0 || (worker.now_ms - row->refilled_ms >= 1000 && held_by_all(row) == 0);
}

static struct fl_source *find(struct fl_source *bucket, const struct service *service, const uint8_t ip[16])
{
	struct fl_source *spent = NULL;

	for (uint32_t i = 0; i < BUCKET; i++) {
		struct fl_source *row = &bucket[i];

		if (row->service == service->spec.id && memcmp(row->ip, ip, 16) == 0)
			return row;
		if (spent == NULL && is_spent(row))
			spent = row;
	}
	if (spent == NULL)
		return NULL;
	spent->service = service->spec.id;
	memcpy(spent->ip, ip, 16);
	spent->refilled_ms = worker.now_ms;
	spent->tokens_milli = UINT32_MAX; /* cut to the burst by the first refill */
	return spent;
}

static uint32_t refill(struct fl_source *row, uint32_t per_second)
{
	uint64_t burst = per_second * 1000ull, tokens = row->tokens_milli;

	if (burst > UINT32_MAX)
		burst = UINT32_MAX;
	if (worker.now_ms > row->refilled_ms) { /* another worker's clock reading may be a little ahead of ours */
		uint64_t elapsed = worker.now_ms - row->refilled_ms;

		tokens += (elapsed > 1000 ? 1000 : elapsed) * per_second;
		row->refilled_ms = worker.now_ms;
	}
	return (uint32_t)(tokens > burst ? burst : tokens);
}

static enum reason admit(struct fl_source *row, const struct fl_service *spec)
{
	if (spec->connections_per_source && held_by_all(row) >= spec->connections_per_source)
		return SOURCE_CONNECTIONS;
	if (spec->new_per_source) {
		row->tokens_milli = refill(row, spec->new_per_source);
		if (row->tokens_milli < 1000)
			return SOURCE_RATE;
		row->tokens_milli -= 1000;
	}
	count32(&row->held[worker.slot], 1);
	return REASON_NONE;
}

enum reason source_enter(struct service *service, const struct fl_address *client, uint32_t *index)
{
	struct fl_source *table = worker.shm->source, *row;
	enum reason why = REASON_NONE;
	uint32_t first;
	uint8_t ip[16];

	*index = 0;
	memcpy(ip, client->ip, sizeof(ip));
	address_mask(ip, client->family == 4 ? 96u + service->spec.source_v4 : service->spec.source_v6);
	first = bucket_of(service->spec.seed, service->spec.id, ip);
	bucket_lock(&table[first].lock);
	row = find(&table[first], service, ip);
	if (row) {
		why = admit(row, &service->spec);
		*index = why == REASON_NONE ? (uint32_t)(row - table) + 1 : 0;
	}
	bucket_unlock(&table[first].lock);
	if (row == NULL)
		reject(service, SOURCE_TABLE_FULL);
	return why;
}

void source_leave(uint32_t index)
{
	/* No lock: only this worker writes its own count, and a row that holds something is never given away. */
	if (index)
		count32(&worker.shm->source[index - 1].held[worker.slot], -1u);
}
