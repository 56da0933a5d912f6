/* SPDX-License-Identifier: Apache-2.0 */
/* Finding a server that answers: connect, time out, try others, give up. */
#ifndef FAIRLEAD_CONNECT_H
#define FAIRLEAD_CONNECT_H

#include "flow.h"

/* Gives a new flow (or one that paused) to a server. The flow may be dead afterwards. */
void connect_next(struct flow *flow);

/* The same for one that was first in its service's queue; it may be queued again, in its place. */
void connect_now(struct flow *flow);

/* The present try failed; another server is next, or the end. */
void connect_failed(struct flow *flow);

/* Books the failed try and takes the server from the flow; false when no further try is allowed. */
bool connect_book_failure(struct flow *flow);

/* The server answered. */
/*
 * What passive checking goes by: a server that answered, or ended in order, is good; one that resets before its first
 * byte is as bad as one that refuses. To be connected says little: a process that hangs still accepts.
 */
void connect_proved_good(struct flow *flow);
void connect_proved_bad(struct flow *flow);

void connect_done(struct flow *flow);

/* Flows that are still connecting to the server start again with another one; established ones are not touched. */
void connect_elsewhere(struct server *server);

#endif
