/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens to a flow: events of its sockets, its timer, and how the end of one side is passed on to the other.
 * FIN goes through as FIN in each direction by itself, an RST as RST, and nothing that was read is lost on the way.
 */
#include "relay.h"

#include <errno.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "connect.h"
#include "datagram.h"
#include "greeting.h"
#include "pump.h"

#define RESET_POLL_MS 20u
#define RESET_LIMIT_MS 30000u /* where the service has no half-close timeout */

static struct link ready = {&ready, &ready};

static void arm_by(struct flow *flow, uint64_t at_ms)
{
	if (flow->timer.at_ms > at_ms)
		timer_arm(&flow->timer, worker.now_ms, at_ms);
}

/*
 * `from` was reset and all it sent has been written. An RST to the other side would throw away what the kernel still
 * holds for it, so that has to be acknowledged first; nearly always it is.
 */
static void pass_reset(struct flow *flow, unsigned from)
{
	int unsent = 0;

	if (ioctl(flow->side[!from].fd, SIOCOUTQ, &unsent) == 0 && unsent > 0) {
		flow->phase = PHASE_RESETTING;
		flow->resetting = (uint8_t)!from;
		flow->active_ms = worker.now_ms;
		timer_arm(&flow->timer, worker.now_ms, worker.now_ms + RESET_POLL_MS);
		return;
	}
	flow_end(flow, REASON_NONE, true);
}

static bool finished(const struct side *side)
{
	return side->end == END_FIN && PASSED_ON(side);
}

/* Passes on what both directions have come to. */
static void conclude(struct flow *flow)
{
	for (unsigned from = CLIENT; from <= SERVER; from++)
		if (flow->side[from].end == END_RST && PASSED_ON(&flow->side[from])) {
			if (from == SERVER && flow->bytes[SERVER] == 0)
				connect_proved_bad(flow);
			pass_reset(flow, from);
			return;
		}
	if (finished(&flow->side[CLIENT]) && finished(&flow->side[SERVER])) {
		connect_proved_good(flow);
		flow_end(flow, REASON_NONE, false);
		return;
	}
	for (unsigned from = CLIENT; from <= SERVER; from++) {
		struct side *out = &flow->side[!from];
		uint32_t limit = flow->service->spec.half_close_ms;

		if (!finished(&flow->side[from]) || (out->flags & SHUT))
			continue;
		shutdown(out->fd, SHUT_WR);
		out->flags |= SHUT;
		flow->half_closed = true;
		flow->active_ms = worker.now_ms;
		if (limit)
			arm_by(flow, worker.now_ms + limit);
	}
}

static void relay(struct flow *flow)
{
	bool more = pump(flow, CLIENT);

	if (flow->phase == PHASE_OPEN)
		more |= pump(flow, SERVER);
	if (flow->phase == PHASE_OPEN && (flow->side[CLIENT].flags & BROKEN))
		more |= pump(flow, CLIENT); /* broken by the pump just before: read its last words */
	if (flow->phase == PHASE_OPEN)
		conclude(flow);
	if (more && flow->phase == PHASE_OPEN && link_alone(&flow->ready))
		link_append(&ready, &flow->ready);
}

static void urgent(struct side *side)
{
	static const int on = 1;

	/* Kept in the stream, the urgent byte is passed on like any other instead of being lost. */
	setsockopt(side->fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
	side->flags |= URGENT;
}

static void note(struct side *side, uint32_t events)
{
	if (unlikely(events & EPOLLPRI) && !(side->flags & URGENT))
		urgent(side);
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
		side->flags |= READABLE;
	if (events & EPOLLRDHUP)
		side->flags |= PEER_DONE;
	if (unlikely(events & EPOLLERR)) {
		side->flags |= FAILED;
		if (side->end == END_FIN)
			side->end = END_RST;
	}
}

static int socket_error(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

static void opened(struct flow *flow)
{
	uint32_t idle = flow->service->spec.idle_ms;

	connect_done(flow);
	if (idle)
		arm_by(flow, worker.now_ms + idle);
	relay(flow);
}

static void connecting_event(struct flow *flow, unsigned side, uint32_t events)
{
	if (side == CLIENT) {
		if (events & EPOLLERR)
			flow_end(flow, REASON_NONE, true); /* the client gave up */
		return;
	}
	if (likely(!(events & (EPOLLERR | EPOLLHUP)))) {
		if (events & EPOLLOUT)
			opened(flow);
		return;
	}
	switch (socket_error(flow->side[SERVER].fd)) {
	case ECONNRESET: /* it answered, perhaps even spoke, and reset before we looked: no failure to connect */
	case EPIPE:
		pump_break(&flow->side[SERVER]);
		opened(flow);
		break;
	default:
		connect_failed(flow);
		break;
	}
}

void relay_event(struct flow *flow, unsigned side, uint32_t events)
{
	if (flow->phase == PHASE_DEAD)
		return;
	note(&flow->side[side], events);
	if (likely(flow->phase == PHASE_OPEN))
		relay(flow);
	else if (flow->phase == PHASE_GREETING)
		greeting_event(flow, events);
	else if (flow->phase != PHASE_RESETTING)
		connecting_event(flow, side, events);
	else if (side == flow->resetting && (events & EPOLLERR))
		flow_end(flow, REASON_NONE, true);
}

static void open_timer(struct flow *flow)
{
	const struct fl_service *spec = &flow->service->spec;
	bool half = flow->half_closed && spec->half_close_ms;
	uint64_t limit = half ? spec->half_close_ms : spec->idle_ms, deadline = flow->active_ms + limit;

	if (limit == 0)
		return;
	if (worker.now_ms >= deadline)
		flow_end(flow, half ? HALF_CLOSE_TIMEOUT : IDLE_TIMEOUT, true);
	else
		timer_arm(&flow->timer, worker.now_ms, deadline);
}

static void resetting_timer(struct flow *flow)
{
	uint32_t limit = flow->service->spec.half_close_ms;
	int unsent = 0;

	if (ioctl(flow->side[flow->resetting].fd, SIOCOUTQ, &unsent) == 0 && unsent > 0 &&
	    worker.now_ms < flow->active_ms + (limit ? limit : RESET_LIMIT_MS))
		timer_arm(&flow->timer, worker.now_ms, worker.now_ms + RESET_POLL_MS);
	else
		flow_end(flow, REASON_NONE, true);
}

void relay_timer(struct timer *timer)
{
	struct flow *flow = container_of(timer, struct flow, timer);

	switch (flow->phase) {
	case PHASE_CONNECTING:
		if (worker.now_ms >= flow->active_ms + flow->service->spec.connect_ms)
			connect_failed(flow);
		else
			timer_arm(timer, worker.now_ms, flow->active_ms + flow->service->spec.connect_ms);
		break;
	case PHASE_WAITING:
		connect_next(flow);
		break;
	case PHASE_OPEN:
		open_timer(flow);
		break;
	case PHASE_GREETING:
		greeting_timer(flow);
		break;
	case PHASE_QUEUED:
		flow_end(flow, QUEUE_TIMEOUT, true);
		break;
	case PHASE_DATAGRAM:
		datagram_timer(flow);
		break;
	case PHASE_RESETTING:
		resetting_timer(flow);
		break;
	default:
		break;
	}
}

void relay_ready(void)
{
	struct link batch;

	link_take(&ready, &batch);
	while (!link_alone(&batch)) {
		struct flow *flow = container_of(batch.next, struct flow, ready);

		link_remove(&flow->ready);
		if (flow->phase == PHASE_OPEN)
			relay(flow);
	}
}

bool relay_busy(void)
{
	return !link_alone(&ready);
}
