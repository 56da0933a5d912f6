/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that wait because every server is at its limit: first come, first served within a worker. The length is
 * bounded over all workers. A place that another worker's flow gives back is noticed by looking.
 */
#ifndef FAIRLEAD_QUEUE_H
#define FAIRLEAD_QUEUE_H

#include "flow.h"

void queue_init(struct service *service);

/* Puts the flow behind the others; false when the service has no queue, or a full one. */
bool queue_enter(struct flow *flow);

/* Takes it out. */
void queue_leave(struct flow *flow);

/* A server that has a limit has room again: queue_run will look. */
void queue_place_freed(void);

/* Once per round: gives the first in each queue to servers that have room. */
void queue_run(void);

/* When queue_run should look although nothing happened; UINT64_MAX: no need. */
uint64_t queue_look_at(void);

#endif
