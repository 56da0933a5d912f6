/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay. All flows read into one scratch buffer; only what a socket did not take at once is kept, and reading
 * from the other side stops until it is gone: whatever the peers do, all flows together keep no more than
 * KEPT_PLENTY, and two times FRUGAL for each flow beyond that.
 *
 * System calls are the cost here, so none is made whose answer is known: a read that came back short has emptied the
 * socket (edge-triggered epoll tells when that changes), and if epoll had reported the peer's FIN before that read,
 * the read was the last one.
 */
#include "relay.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

#include "connect.h"

#define SCRATCH 262144u /* bulk through loopback costs a quarter less processor time than with 64 kB */
#define FRUGAL 16384u	/* read at once while slow readers hold more than KEPT_PLENTY */
#define KEPT_PLENTY (16u << 20)
#define SHARE SCRATCH /* bytes a flow may move in one direction before the others have their turn */
#define RESET_POLL_MS 20u
#define RESET_LIMIT_MS 30000u /* where the service has no half-close timeout */

static uint8_t scratch[SCRATCH];
static struct link ready = {&ready, &ready};

static void arm_by(struct flow *flow, uint64_t at_ms)
{
	if (flow->timer.at_ms > at_ms)
		timer_arm(&flow->timer, worker.now_ms, at_ms);
}

static void break_side(struct side *side)
{
	if (side->end == END_FIN)
		side->end = END_RST;
	else /* what it sent before it reset is still to be read and passed on */
		side->flags |= BROKEN | READABLE | FAILED;
}

static int socket_error(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

/* Returns how many bytes the socket took; a peer that is gone takes all of them, for nobody will miss them. */
static size_t put(struct flow *flow, struct side *out, const uint8_t *data, size_t length, int flags)
{
	ssize_t n;

	if (out == &flow->side[SERVER] && (out->flags & (WROTE | NODELAY)) == WROTE) {
		/* Nagle holds back only what follows an unanswered write: a flow of one request never needs this. */
		static const int on = 1;

		setsockopt(out->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		out->flags |= NODELAY;
	}
	out->flags |= WROTE;
	do
		n = send(out->fd, data, length, flags | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return (size_t)n;
	if (errno == EAGAIN)
		return 0;
	break_side(out);
	return length;
}

/* Whether nothing is pending any more. */
static bool flush(struct flow *flow, struct side *in, struct side *out)
{
	struct pending *pending = in->pending;
	size_t sent = put(flow, out, pending->data + pending->offset, pending->length - pending->offset, 0);

	if (sent > 0)
		flow->active_ms = worker.now_ms;
	pending->offset += (uint32_t)sent;
	if (pending->offset < pending->length)
		return false;
	pending_free(pending);
	in->pending = NULL;
	return true;
}

static void account(struct flow *flow, unsigned from, uint64_t n)
{
	struct fl_service_row *service = flow->service->row;
	struct fl_server_row *server = flow->server->row;

	flow->bytes[from] += n;
	flow->active_ms = worker.now_ms;
	count(from == CLIENT ? &service->bytes_in : &service->bytes_out, n);
	count(from == CLIENT ? &server->bytes_in : &server->bytes_out, n);
}

/* One read and one write. Returns the bytes moved. */
static size_t transfer(struct flow *flow, unsigned from)
{
	struct side *in = &flow->side[from], *out = &flow->side[!from];
	size_t room = likely(pending_total() < KEPT_PLENTY) ? SCRATCH : FRUGAL, got, sent;
	ssize_t n = recv(in->fd, scratch, room, 0);

	if (n < 0) {
		if (errno == EAGAIN)
			in->flags &= (uint8_t)~READABLE;
		else if (errno != EINTR)
			in->end = END_RST;
		return 0;
	}
	if (n == 0) {
		in->end = in->flags & BROKEN ? END_RST : END_FIN;
		return 0;
	}
	got = (size_t)n;
	if (got < room && !(in->flags & (URGENT | FAILED))) {
		in->flags &= (uint8_t)~READABLE;
		if (in->flags & PEER_DONE)
			in->end = END_FIN;
	}
	account(flow, from, got);
	/* With the end known, the FIN that follows travels in the same segment. */
	sent = put(flow, out, scratch, got, in->end == END_FIN ? MSG_MORE : 0);
	if (sent < got && (in->pending = pending_new(scratch + sent, got - sent)) == NULL)
		flow_end(flow, NO_MEMORY, true);
	return got;
}

/* Moves one direction on; true when it used up its share of this round. */
static bool pump(struct flow *flow, unsigned from)
{
	struct side *in = &flow->side[from], *out = &flow->side[!from];

	for (size_t moved = 0; moved < SHARE;) {
		if (in->pending && !flush(flow, in, out))
			return false;
		if (in->end != END_NONE || !(in->flags & READABLE) || (out->flags & BROKEN))
			return false;
		moved += transfer(flow, from);
		if (flow->phase != PHASE_OPEN)
			return false;
	}
	return in->end == END_NONE && (in->flags & READABLE);
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
	return side->end == END_FIN && side->pending == NULL;
}

/* Passes on what both directions have come to. */
static void conclude(struct flow *flow)
{
	for (unsigned from = CLIENT; from <= SERVER; from++)
		if (flow->side[from].end == END_RST && flow->side[from].pending == NULL) {
			pass_reset(flow, from);
			return;
		}
	if (finished(&flow->side[CLIENT]) && finished(&flow->side[SERVER])) {
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
		break_side(&flow->side[SERVER]);
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
