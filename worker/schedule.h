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

/* Hash of a flow, or of its source alone; the message is laid out as in ARCHITECTURE.md, the same in every data plane. */
uint64_t flow_hash(const struct flow *flow);
uint64_t source_hash(const struct flow *flow);

void schedule_init(void);

#endif
