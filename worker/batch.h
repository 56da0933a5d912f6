/* SPDX-License-Identifier: Apache-2.0 */
/* Many datagrams in one system call: what came in on a listener, and what goes out through it. */
#ifndef FAIRLEAD_BATCH_H
#define FAIRLEAD_BATCH_H

#ifndef _GNU_SOURCE
#error "struct in6_pktinfo needs _GNU_SOURCE before the first include"
#endif

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "abi.h"

struct datagram {
	struct fl_address peer;	       /* who sent it */
	struct fl_address local;       /* to which address and port it was sent */
	struct fl_address client, vip; /* the same, or what a PROXY header tells */
	uint8_t proxied;	       /* enum proxy_kind */
	uint32_t scope;		       /* interface of a link-local peer */
	const uint8_t *data;
	size_t length;
};

/*
 * Receives what is queued on a bound socket, up to a bounded number of datagrams, which are valid until the next call.
 * `address` is where the socket is bound; NULL: it is asked of the kernel for each datagram (batch_tell_destination).
 */
unsigned batch_receive(int fd, const struct fl_address *address, struct datagram **datagrams);

/* Asks the kernel to tell the destination of each datagram. */
bool batch_tell_destination(int fd, uint8_t family);

/*
 * Receives answers from a connected socket straight into the outgoing batch of listener socket `to`: they go to
 * `peer`, from `from` unless that is NULL. Returns the number of datagrams and their bytes in *bytes, or -1 with errno.
 */
int batch_pass(int fd, int to, const struct fl_address *peer, uint32_t scope, const struct fl_address *from,
	       size_t *bytes);

union batch_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

/* Fills in the control message that makes a datagram leave from this address, whatever the routes prefer; its length. */
size_t batch_leave_from(union batch_control *control, const struct fl_address *from, uint32_t scope);

/* Sends what batch_pass collected. */
void batch_flush(void);

#endif
