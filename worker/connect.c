/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting. A failure is tried again on a server that has not failed this flow; when all have and tries are left,
 * the flow pauses for a second and begins a new round, so that a server which restarts loses no client.
 */
#include "connect.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "address.h"
#include "descriptors.h"
#include "queue.h"
#include "relay.h"
#include "schedule.h"
#include "transparent.h"

#define ROUND_PAUSE_MS 1000u

/* 0, or the errno value of a try that cannot even begin. */
static int begin(struct flow *flow)
{
	const struct fl_address *address = &flow->server->spec.address;
	struct sockaddr_storage to;
	socklen_t length = address_to_socket(address, address->port ? address->port : flow->vip.port, &to);
	int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error;

	if (fd < 0)
		return errno;
	descriptors_took(1);
	flow->side[SERVER] = (struct side){.fd = fd};
	error = transparent_bind(flow, fd, to.ss_family);
	if (error)
		return error;
	if (connect(fd, (struct sockaddr *)&to, length) < 0 && errno != EINPROGRESS)
		return errno;
	return watch(fd, flow, TAG_SERVER, FLOW_EVENTS) ? 0 : ENOSPC;
}

/* False when there is no memory to remember it. */
static bool remember(struct flow *flow, uint32_t server)
{
	struct tried *tried = flow->tried;

	if (tried == NULL || tried->count == tried->capacity) {
		uint32_t capacity = tried ? tried->capacity * 2 : 4, used = tried ? tried->count : 0;

		tried = realloc(tried, sizeof(*tried) + capacity * sizeof(uint32_t));
		if (tried == NULL)
			return false;
		tried->count = used;
		tried->capacity = capacity;
		flow->tried = tried;
	}
	tried->id[tried->count++] = server;
	return true;
}

/* Takes the server, which could not be reached, from the flow; false when no further try is allowed. */
static bool give_up_server(struct flow *flow)
{
	bool remembered = remember(flow, flow->server->spec.id); /* else it could be tried again, without a pause */

	flow_drop_server(flow, false);
	return remembered && flow->tries <= flow->service->spec.retries;
}

bool connect_book_failure(struct flow *flow)
{
	count(&flow->server->row->connect_failures, 1);
	count32(&flow->server->row->consecutive_failures, 1);
	return give_up_server(flow);
}

/* Nobody is left in this round. */
static void pause_or_end(struct flow *flow, enum reason why)
{
	if (why == SERVERS_FULL && queue_enter(flow))
		return;
	if (flow->tried == NULL || flow->tried->count == 0 || flow->service->spec.mode != FL_FORWARD) {
		flow_end(flow, why, true);
		return;
	}
	flow->tried->count = 0;
	flow->phase = PHASE_WAITING;
	timer_arm(&flow->timer, worker.now_ms, worker.now_ms + ROUND_PAUSE_MS);
}

void connect_next(struct flow *flow)
{
	if (!link_alone(&flow->service->queue) && queue_enter(flow)) /* behind those that came before */
		return;
	connect_now(flow);
}

void connect_now(struct flow *flow)
{
	enum reason why;
	int error;

	do {
		if (schedule(flow, &why) == NULL) {
			pause_or_end(flow, why);
			return;
		}
		flow->tries++;
		error = begin(flow);
		if (error == 0) {
			uint32_t limit = flow->service->spec.connect_ms;

			flow->phase = PHASE_CONNECTING;
			flow->active_ms = worker.now_ms;
			if (limit)
				timer_arm(&flow->timer, worker.now_ms, worker.now_ms + limit);
			return;
		}
		if (error == EMFILE || error == ENFILE) {
			descriptors_exhausted();
			flow_end(flow, NO_DESCRIPTORS, true);
			return;
		}
		if (error == EAFNOSUPPORT) { /* a PROXY header told of a client that no server can be reached from */
			flow_end(flow, CONNECT_FAILED, true);
			return;
		}
		if (error == ENOBUFS || error == ENOMEM || error == ENOSPC) {
			flow_end(flow, NO_MEMORY, true);
			return;
		}
		/* Without a local port for this server it is not the server's failure: there are ports for the others. */
	} while (error == EADDRNOTAVAIL ? give_up_server(flow) : connect_book_failure(flow));
	flow_end(flow, CONNECT_FAILED, true);
}

void connect_failed(struct flow *flow)
{
	if (connect_book_failure(flow))
		connect_next(flow);
	else
		flow_end(flow, CONNECT_FAILED, true);
}

void connect_proved_good(struct flow *flow)
{
	__atomic_store_n(&flow->server->row->consecutive_failures, 0, __ATOMIC_RELAXED);
}

void connect_proved_bad(struct flow *flow)
{
	count32(&flow->server->row->consecutive_failures, 1);
}

void connect_done(struct flow *flow)
{
	count(&flow->server->row->connections, 1);
	free(flow->tried);
	flow->tried = NULL;
	flow->introducing = flow->service->spec.send_proxy != 0;
	flow->phase = PHASE_OPEN;
	flow->active_ms = worker.now_ms;
}

void connect_elsewhere(struct server *server)
{
	struct link *node = server->flows.next;

	while (node != &server->flows) {
		struct flow *flow = container_of(node, struct flow, of_server);

		node = node->next;
		if (flow->phase != PHASE_CONNECTING)
			continue;
		flow_drop_server(flow, false);
		flow->tries--; /* it was not the server's failure */
		connect_next(flow);
	}
}
