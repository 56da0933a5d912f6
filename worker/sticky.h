/* SPDX-License-Identifier: Apache-2.0 */
/* Persistence: a client (by prefix) keeps its server for a time after its last connection. Shared by all workers. */
#ifndef FAIRLEAD_STICKY_H
#define FAIRLEAD_STICKY_H

#include "flow.h"

struct binding {
	struct fl_sticky *bucket;
	uint8_t ip[16];
};

/*
 * The server this client is bound to, 0: none. Its bucket stays locked until sticky_store, so that two first
 * connections of one client in two workers cannot choose two servers.
 */
uint32_t sticky_lookup(struct binding *binding, const struct flow *flow);

/* Binds the client to the server from now on (0: changes nothing) and unlocks. */
void sticky_store(struct binding *binding, const struct flow *flow, uint32_t server);

/* At the end of a flow the time starts again, unless the client was bound to another server meanwhile. */
void sticky_refresh(const struct flow *flow);

#endif
