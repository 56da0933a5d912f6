/* SPDX-License-Identifier: Apache-2.0 */
/* Accepting clients and deciding whether they may come in. */
#ifndef FAIRLEAD_ACCEPT_H
#define FAIRLEAD_ACCEPT_H

#include "listener.h"

/* The socket is readable: accepts a bounded burst. */
void accept_burst(struct listener *listener, uint64_t round);

/* Accepts all that is queued, before the listener goes. */
void accept_rest(struct listener *listener);

bool set_nonblocking(int fd);

#endif
