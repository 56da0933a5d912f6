/* SPDX-License-Identifier: Apache-2.0 */
/* The choice of a server for a new flow. */
#ifndef FAIRLEAD_SCHEDULE_H
#define FAIRLEAD_SCHEDULE_H

#include "flow.h"

/*
 * Reserves a connection of a live server that has not failed this flow yet, and returns it. NULL: `why` is
 * SERVERS_FULL when at least one server was passed over because it is full, else NO_SERVER.
 */
struct server *schedule(struct flow *flow, enum reason *why);

/*
 * SipHash-1-3 of a flow, or of its source alone, under the service's seed: the same in every data plane, so that
 * nodes agree. A flow is client address, VIP, client port, VIP port (network order), protocol, three zero bytes:
 * 16 bytes for IPv4, 40 for IPv6. A source is its address, and four zero bytes for IPv4.
 */
uint64_t flow_hash(const struct flow *flow);
uint64_t source_hash(const struct flow *flow);

void schedule_init(void);

#endif
