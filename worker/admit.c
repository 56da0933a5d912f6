/* SPDX-License-Identifier: Apache-2.0 */
/* The order of refusals: who may not connect at all hears nothing of limits. */
#include "admit.h"

#include "acl.h"
#include "shm.h"
#include "source.h"

enum reason admit(struct service *service, const struct fl_address *client, uint32_t *source)
{
	const struct fl_service *spec = &service->spec;
	enum reason why = REASON_NONE;
	uint32_t before;

	*source = 0;
	if ((spec->flags & FL_SERVICE_ACL) && !acl_allows(service->range, spec->ranges, client->ip))
		return DENIED;
	if (spec->mode != FL_FORWARD)
		return NO_SERVER;
	before = __atomic_fetch_add(&service->shared->active, 1, __ATOMIC_RELAXED);
	if (spec->max_connections && before >= spec->max_connections)
		why = SERVICE_FULL;
	else if (spec->connections_per_source || spec->new_per_source)
		why = source_enter(service, client->ip, source);
	if (why != REASON_NONE)
		total_subtract(&service->shared->active, 1);
	return why;
}

void admit_undo(struct service *service, uint32_t source)
{
	total_subtract(&service->shared->active, 1);
	source_leave(source);
}
