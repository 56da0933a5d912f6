/* SPDX-License-Identifier: Apache-2.0 */
/* From the kernel's queue to a flow: address list, limits of the service, limits of the source, then a server. */
#define _GNU_SOURCE
#include "accept.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "address.h"
#include "admit.h"
#include "connect.h"
#include "descriptors.h"
#include "flow.h"
#include "greeting.h"
#include "relay.h"

#define BURST_MAX 64u
#define REST_MAX 65536u /* more than any queue holds; a flood must not keep a closing listener open for ever */

bool set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && (flags & O_NONBLOCK || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0);
}

static void begin(struct listener *listener, int fd, const struct sockaddr_storage *peer)
{
	struct service *service = listener->service;
	bool greets = service->spec.flags & FL_SERVICE_ACCEPT_PROXY;
	struct fl_address client, vip = listener->address;
	struct flow *flow;
	enum reason why;
	uint32_t source;

	if (!address_from_socket(peer, &client) || (!listener->exact && !address_of_socket(fd, &vip))) {
		close_with_reset(fd); /* gone already */
		return;
	}
	source = 0;
	why = greets ? admit_somebody(service) : admit(service, &client, &source);
	if (why != REASON_NONE) {
		reject(service, why);
		close_with_reset(fd);
		return;
	}
	flow = flow_new(service, fd, &client, &vip);
	if (flow == NULL) {
		reject(service, NO_MEMORY);
		admit_undo(service, source);
		close_with_reset(fd);
		return;
	}
	flow->source = source;
	descriptors_took(1);
	if (!watch(fd, flow, TAG_CLIENT, FLOW_EVENTS))
		flow_end(flow, NO_MEMORY, true);
	else if (greets)
		greeting_await(flow);
	else
		connect_next(flow);
}

/* One client; false when there was none. */
static bool accept_one(struct listener *listener)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);
	int fd = accept4(listener->fd, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (likely(fd >= 0)) {
		begin(listener, fd, &peer);
		return true;
	}
	if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
		descriptors_exhausted();
		return false;
	}
	if (errno == EINVAL) { /* somebody shut the shared socket down: it would be reported for ever */
		epoll_ctl(worker.epoll, EPOLL_CTL_DEL, listener->fd, NULL);
		return false;
	}
	return errno != EAGAIN; /* else an error of the connection that waited (accept(2)): the next may be sound */
}

/*
 * Level-triggered, and the burst grows only while the queue outlasts it round by round: with one client per round,
 * which is the usual case, there is no second accept that only says EAGAIN.
 */
void accept_burst(struct listener *listener, uint64_t round)
{
	uint32_t burst = listener->burst;

	if (listener->used_up + 1 == round && burst < BURST_MAX)
		burst *= 2;
	listener->burst = burst;
	for (uint32_t i = 0; i < burst; i++) {
		if (!descriptors_left())
			return;
		if (!accept_one(listener)) {
			listener->burst = i > 1 ? i : 1;
			return;
		}
	}
	listener->used_up = round;
}

void accept_rest(struct listener *listener)
{
	for (uint32_t i = 0; i < REST_MAX && descriptors_left() && accept_one(listener); i++)
		;
}
