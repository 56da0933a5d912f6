/* SPDX-License-Identifier: Apache-2.0 */
/* The order of refusals: who may not connect at all hears nothing of limits. */
#include "admit.h"

#include <stdbool.h>

#include "acl.h"
#include "shm.h"
#include "source.h"

static bool is_denied(const struct service *service, const struct fl_address *client)
{
	const struct fl_service *spec = &service->spec;

	return (spec->flags & FL_SERVICE_ACL) && !acl_allows(service->range, spec->ranges, client->ip);
}

static enum reason enter(struct service *service, const struct fl_address *client, uint32_t *source)
{
	const struct fl_service *spec = &service->spec;

	*source = 0;
	if (spec->connections_per_source || spec->new_per_source)
		return source_enter(service, client, source);
	return REASON_NONE;
}

enum reason admit_somebody(struct service *service)
{
	const struct fl_service *spec = &service->spec;
	uint32_t before;

	if (spec->mode != FL_FORWARD)
		return NO_SERVER;
	before = __atomic_fetch_add(&service->shared->active, 1, __ATOMIC_RELAXED);
	if (spec->max_connections == 0 || before < spec->max_connections)
		return REASON_NONE;
	total_subtract(&service->shared->active, 1);
	return SERVICE_FULL;
}

enum reason admit_client(struct service *service, const struct fl_address *client, uint32_t *source)
{
	*source = 0;
	return is_denied(service, client) ? DENIED : enter(service, client, source);
}

enum reason admit(struct service *service, const struct fl_address *client, uint32_t *source)
{
	enum reason why;

	*source = 0;
	if (is_denied(service, client))
		return DENIED;
	why = admit_somebody(service);
	if (why != REASON_NONE)
		return why;
	why = enter(service, client, source);
	if (why != REASON_NONE)
		total_subtract(&service->shared->active, 1);
	return why;
}

void admit_undo(struct service *service, uint32_t source)
{
	total_subtract(&service->shared->active, 1);
	source_leave(source);
}
