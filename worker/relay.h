/* SPDX-License-Identifier: Apache-2.0 */
/* Moving bytes between the two sides of a flow, and passing on how each side ends. */
#ifndef FAIRLEAD_RELAY_H
#define FAIRLEAD_RELAY_H

#include <sys/epoll.h>

#include "flow.h"

/* A flow's descriptors are registered once, for everything, edge-triggered: no epoll_ctl after the first. */
#define FLOW_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET)

/* epoll told something about one side of the flow. */
void relay_event(struct flow *flow, unsigned side, uint32_t events);

/* The flow's timer fired. */
void relay_timer(struct timer *timer);

/* Goes on with flows that used up their share of the last round; relay_busy: there are such. */
void relay_ready(void);
bool relay_busy(void);

#endif
