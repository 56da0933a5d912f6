/* SPDX-License-Identifier: Apache-2.0 */
/* Moving bytes from one side of a flow to the other, as far as both sockets allow. */
#ifndef FAIRLEAD_PUMP_H
#define FAIRLEAD_PUMP_H

#include "flow.h"

/*
 * Moves one direction on; true when it used up its share of this round and there is more. How reading ended is in
 * side.end afterwards. Without memory the flow is dead afterwards.
 */
bool pump(struct flow *flow, unsigned from);

/* Notes that the peer of this side has reset: what it sent before is still to be read and passed on. */
void pump_break(struct side *side);

#endif
