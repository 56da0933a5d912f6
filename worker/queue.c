/* SPDX-License-Identifier: Apache-2.0 */
/* Nothing here costs anything while no connection waits. */
#include "queue.h"

#include "connect.h"
#include "shm.h"

#define LOOK_MS 20u

static struct link waiting = {&waiting, &waiting}; /* struct service .waiting */
static bool freed;
static uint64_t look_ms;

void queue_init(struct service *service)
{
	link_init(&service->queue);
	link_init(&service->waiting);
}

bool queue_enter(struct flow *flow)
{
	struct service *service = flow->service;
	const struct fl_service *spec = &service->spec;

	if (spec->queue == 0)
		return false;
	if (__atomic_fetch_add(&service->shared->queued, 1, __ATOMIC_RELAXED) >= spec->queue) {
		total_subtract(&service->shared->queued, 1);
		return false;
	}
	count32(&service->row->queued, 1);
	if (link_alone(&waiting))
		look_ms = worker.now_ms + LOOK_MS;
	flow->phase = PHASE_QUEUED;
	link_append(&service->queue, &flow->ready);
	if (link_alone(&service->waiting))
		link_append(&waiting, &service->waiting);
	if (spec->queue_ms)
		timer_arm(&flow->timer, worker.now_ms, flow->born_ms + spec->queue_ms);
	return true;
}

void queue_leave(struct flow *flow)
{
	struct service *service = flow->service;

	link_remove(&flow->ready);
	if (link_alone(&service->queue))
		link_remove(&service->waiting);
	total_subtract(&service->shared->queued, 1);
	count32(&service->row->queued, -1u);
	timer_stop(&flow->timer);
	flow->phase = PHASE_CONNECTING;
}

void queue_place_freed(void)
{
	freed = true;
}

/* Serves one queue as far as there is room. A flow that finds none goes back to the front. */
static void serve(struct service *service)
{
	while (!link_alone(&service->queue)) {
		struct flow *flow = container_of(service->queue.next, struct flow, ready);

		queue_leave(flow);
		connect_now(flow);
		if (flow->phase != PHASE_QUEUED)
			continue;
		link_remove(&flow->ready);
		link_append(service->queue.next, &flow->ready); /* before the first: it is the next one again */
		return;
	}
}

void queue_run(void)
{
	struct link batch;

	if (link_alone(&waiting) || (!freed && worker.now_ms < look_ms))
		return;
	freed = false;
	look_ms = worker.now_ms + LOOK_MS;
	link_take(&waiting, &batch);
	while (!link_alone(&batch)) {
		struct service *service = container_of(batch.next, struct service, waiting);

		link_remove(&service->waiting);
		service->flows++; /* so that the last flow's end does not free it under us */
		serve(service);
		if (!link_alone(&service->queue) && link_alone(&service->waiting))
			link_append(&waiting, &service->waiting);
		service->flows--;
		service_release(service);
	}
}

uint64_t queue_look_at(void)
{
	return link_alone(&waiting) ? UINT64_MAX : look_ms;
}
