/* SPDX-License-Identifier: Apache-2.0 */
/* The persistence table: buckets of rows; a full bucket gives up the binding that would end first. */
#include "sticky.h"

#include <string.h>

#include "address.h"
#include "shm.h"

/* The live row of the client, else the one to give up for it. */
static struct fl_sticky *find(const struct binding *binding, uint32_t service, bool *found)
{
	struct fl_sticky *row = &binding->bucket[0], *other;

	*found = false;
	for (other = row; other < binding->bucket + BUCKET; other++) {
		*found = other->service == service && other->expires_ms > worker.now_ms &&
			 memcmp(other->ip, binding->ip, 16) == 0;
		if (*found)
			return other;
		if (other->expires_ms < row->expires_ms)
			row = other;
	}
	return row;
}

static void lock_for(struct binding *binding, const struct flow *flow)
{
	const struct fl_service *spec = &flow->service->spec;

	memcpy(binding->ip, flow->client.ip, 16);
	address_mask(binding->ip, flow->client.family == 4 ? 96u + spec->persist_v4 : spec->persist_v6);
	binding->bucket = &worker.shm->sticky[bucket_of(spec->seed, spec->id, binding->ip)];
	bucket_lock(&binding->bucket->lock);
}

uint32_t sticky_lookup(struct binding *binding, const struct flow *flow)
{
	const struct fl_sticky *row;
	bool found;

	lock_for(binding, flow);
	row = find(binding, flow->service->spec.id, &found);
	return found ? row->server : 0;
}

void sticky_store(struct binding *binding, const struct flow *flow, uint32_t server)
{
	const struct fl_service *spec = &flow->service->spec;
	bool found;

	if (server) {
		struct fl_sticky *row = find(binding, spec->id, &found);

		memcpy(row->ip, binding->ip, 16);
		row->service = spec->id;
		row->server = server;
		row->expires_ms = worker.now_ms + spec->persist_ms;
	}
	bucket_unlock(&binding->bucket->lock);
}

void sticky_refresh(const struct flow *flow)
{
	struct binding binding;
	uint32_t bound = sticky_lookup(&binding, flow), ours = flow->server->spec.id;

	sticky_store(&binding, flow, bound == 0 || bound == ours ? ours : 0);
}
