/* SPDX-License-Identifier: Apache-2.0 */
/* The slab of flows, and the accounts that every beginning and end of a flow must balance. */
#define _GNU_SOURCE
#include "flow.h"

#include <stdlib.h>
#include <unistd.h>

#include "descriptors.h"
#include "peers.h"
#include "queue.h"
#include "shm.h"
#include "source.h"
#include "sticky.h"

#define CHUNK 256u /* flows that are allocated together */

static struct flow **chunk;
static uint32_t chunks, capacity;
static struct flow *free_flows;		 /* through .of_server.next */
static struct link dead_flows = {&dead_flows, &dead_flows}; /* through .ready */
static uint32_t live;

static struct flow *at(uint32_t index)
{
	return &chunk[index / CHUNK][index % CHUNK];
}

static void push_free(struct flow *flow)
{
	flow->phase = PHASE_FREE;
	flow->of_server.next = (struct link *)free_flows;
	free_flows = flow;
}

static bool grow(void)
{
	struct flow *flow;

	if (chunks == capacity) {
		uint32_t more = capacity ? capacity * 2 : 64;
		struct flow **larger = realloc(chunk, more * sizeof(struct flow *));

		if (larger == NULL)
			return false;
		chunk = larger;
		capacity = more;
	}
	flow = calloc(CHUNK, sizeof(*flow));
	if (flow == NULL)
		return false;
	chunk[chunks] = flow;
	for (uint32_t i = CHUNK; i-- > 0;) {
		flow[i].index = chunks * CHUNK + i;
		push_free(&flow[i]);
	}
	chunks++;
	return true;
}

struct flow *flow_new(struct service *service, int fd, const struct fl_address *client, const struct fl_address *vip)
{
	struct flow *flow;
	uint32_t index;

	if (free_flows == NULL && !grow())
		return NULL;
	flow = free_flows;
	free_flows = (struct flow *)flow->of_server.next;
	index = flow->index;
	*flow = (struct flow){
		.side = {{.fd = fd}, {.fd = -1}},
		.service = service,
		.born_ms = worker.now_ms,
		.active_ms = worker.now_ms,
		.client = *client,
		.vip = *vip,
		.index = index,
		.phase = PHASE_CONNECTING,
	};
	link_init(&flow->of_server);
	link_init(&flow->ready);
	timer_init(&flow->timer);
	service->flows++;
	count(&service->row->connections, 1);
	count32(&service->row->active, 1);
	live++;
	return flow;
}

bool flow_take_server(struct flow *flow, struct server *server)
{
	uint32_t limit = server->spec.max_connections;
	uint32_t before = __atomic_fetch_add(&server->shared->active, 1, __ATOMIC_RELAXED);

	if (limit && before >= limit) {
		total_subtract(&server->shared->active, 1);
		return false;
	}
	count32(&server->row->active, 1);
	flow->server = server;
	link_append(&server->flows, &flow->of_server);
	return true;
}

static void close_side(struct side *side, bool reset)
{
	if (side->fd >= 0) {
		if (reset)
			close_with_reset(side->fd);
		else
			close(side->fd);
		descriptors_gave_back(1);
	}
	pending_free(side->pending);
	pipe_give_back(side->pipe);
	*side = (struct side){.fd = -1};
}

void flow_drop_server(struct flow *flow, bool reset)
{
	struct server *server = flow->server;

	if (server) {
		link_remove(&flow->of_server);
		total_subtract(&server->shared->active, 1);
		count32(&server->row->active, -1u);
		flow->server = NULL;
		if (server->spec.max_connections)
			queue_place_freed();
	}
	close_side(&flow->side[SERVER], reset);
}

void flow_end(struct flow *flow, enum reason reason, bool reset)
{
	struct service *service = flow->service;

	if (reason != REASON_NONE)
		reject(service, reason);
	if (flow->phase == PHASE_QUEUED)
		queue_leave(flow);
	if (service->spec.persist_ms && flow->server)
		sticky_refresh(flow);
	/* Accounts before sockets: who sees the end and comes back at once finds its place free. */
	source_leave(flow->source);
	total_subtract(&service->shared->active, 1);
	count32(&service->row->active, -1u);
	service->flows--;
	service_release(service);
	flow->service = NULL;
	flow_drop_server(flow, reset);
	close_side(&flow->side[CLIENT], reset);
	timer_stop(&flow->timer);
	free(flow->tried);
	flow->tried = NULL;
	pending_free(flow->tlvs);
	flow->tlvs = NULL;
	if (flow->datagram.listener)
		peers_remove(flow);
	link_remove(&flow->ready);
	/* epoll may still hold an event of this round for it: the memory is not reused before the round is over. */
	flow->phase = PHASE_DEAD;
	link_append(&dead_flows, &flow->ready);
	live--;
}

void flows_recycle(void)
{
	while (!link_alone(&dead_flows)) {
		struct flow *flow = container_of(dead_flows.next, struct flow, ready);

		link_remove(&flow->ready);
		push_free(flow);
	}
}

void flows_reset(struct server *server)
{
	if (server) {
		while (!link_alone(&server->flows))
			flow_end(container_of(server->flows.next, struct flow, of_server), SERVER_RESET, true);
		return;
	}
	for (struct flow *flow = flow_next(0); flow; flow = flow_next(flow->index + 1))
		flow_end(flow, SERVER_RESET, true);
}

struct flow *flow_next(uint32_t from)
{
	for (; from < chunks * CHUNK; from++)
		if (at(from)->phase != PHASE_FREE && at(from)->phase != PHASE_DEAD)
			return at(from);
	return NULL;
}

uint32_t flows_live(void)
{
	return live;
}

void flows_free(void)
{
	flows_recycle();
	while (chunks > 0)
		free(chunk[--chunks]);
	free(chunk);
	chunk = NULL;
	capacity = 0;
	free_flows = NULL;
}

void close_with_reset(int fd)
{
	static const struct linger now = {.l_onoff = 1, .l_linger = 0};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

void reject(struct service *service, enum reason reason)
{
	count(&service->row->rejected[reason], 1);
}
