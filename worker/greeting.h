/* SPDX-License-Identifier: Apache-2.0 */
/* The PROXY header that a client sends first, where its service accepts one. */
#ifndef FAIRLEAD_GREETING_H
#define FAIRLEAD_GREETING_H

#include "flow.h"

/* A new flow, whose client is watched already, waits for its header. */
void greeting_await(struct flow *flow);

/* The client's socket has news. The flow may be dead or connecting afterwards. */
void greeting_event(struct flow *flow, uint32_t events);

/* The flow's timer fired. */
void greeting_timer(struct flow *flow);

#endif
