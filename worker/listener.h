/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets, which the agent binds and hands over, and the admission of clients. */
#ifndef FAIRLEAD_LISTENER_H
#define FAIRLEAD_LISTENER_H

#include "store.h"

struct listener {
	struct service *service;
	struct listener *next;	   /* of the same service */
	struct fl_address address; /* as the agent names it */
	int fd;
	bool datagrams;	  /* UDP */
	bool exact;	  /* the address is where clients connected to; else each socket is asked */
	uint32_t burst;	  /* accepts in the next round */
	uint64_t used_up; /* the round in which the whole burst was used */
};

/* Takes over fd on success; a listener that is held already is left as it is and fd is closed. */
struct verdict listener_put(const struct fl_listen *message, int fd);

/* Accepts what is queued, then closes. Datagram flows end, because nobody could answer their clients any more. */
struct verdict listener_delete(const struct fl_listen *message);

/* The beginning of a drain: the same for all listeners, but those of datagrams stay for answers. */
void listeners_drain(void);

/* Closes all at once, at the end. */
void listeners_close(void);

void listeners_pause(bool pause);

/* SYNs vanish in mode FL_DROP. False with errno when the kernel refuses the filter. */
bool listeners_follow_mode(const struct service *service);

/* The next listener in an order that is stable between changes: the first for NULL. */
struct listener *listener_next(const struct listener *listener);

#endif
