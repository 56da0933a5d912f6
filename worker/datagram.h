/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Datagrams (UDP). A flow is what one client address and port sends to one VIP; each has a socket of its own that is
 * connected to its server, so that answers and ICMP errors find their flow without looking into them.
 *
 * A flow whose server refuses moves to another one; the first datagram is kept until the first answer and sent again.
 */
#ifndef FAIRLEAD_DATAGRAM_H
#define FAIRLEAD_DATAGRAM_H

#include "flow.h"
#include "listener.h"

/* The listener has datagrams: passes on a bounded number. */
void datagram_receive(struct listener *listener);

/* The server's socket of a flow has answers, or an error. */
void datagram_answered(struct flow *flow);

/* Sends what datagram_answered collected in this round. */
void datagram_flush(void);

/* The flow's timer fired. */
void datagram_timer(struct flow *flow);

/* The server does not take datagram flows any more unless their table says so: the others end. */
void datagram_leave(struct server *server);

void datagram_end_flows(const struct listener *listener);

/* The worker drains: flows end when they have been silent for a moment. */
void datagram_drain(void);

/* Needed where a socket is bound to a wildcard. */
bool datagram_tell_destination(int fd, uint8_t family);

#endif
