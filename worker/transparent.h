/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting to a server from the client's own address. The agent sets up the routes that bring the server's answers
 * back to this host's sockets.
 */
#ifndef FAIRLEAD_TRANSPARENT_H
#define FAIRLEAD_TRANSPARENT_H

#include "flow.h"

/* Whether this process may do so; false with errno. */
bool transparent_permitted(void);

/*
 * Binds a new socket for the flow's server to the client's address, where the service wants that. Returns 0 or an
 * errno value; EAFNOSUPPORT when client and server are of different families.
 */
int transparent_bind(const struct flow *flow, int fd, int family);

#endif
