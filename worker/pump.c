/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving bytes. All flows read into one scratch buffer; only what a socket did not take at once is kept, and reading
 * from the other side stops until it is gone: whatever the peers do, all flows together keep no more than
 * KEPT_PLENTY, and two times FRUGAL for each flow beyond that.
 *
 * System calls are the cost here, so none is made whose answer is known: a read that came back short has emptied the
 * socket (edge-triggered epoll tells when that changes), and if epoll had reported the peer's FIN before that read,
 * the read was the last one.
 */
#include "pump.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "connect.h"
#include "proxy.h"

#define SCRATCH 262144u /* bulk through loopback costs a quarter less processor time than with 64 kB */
#define FRUGAL 16384u	/* read at once while slow readers hold more than KEPT_PLENTY */
#define KEPT_PLENTY (16u << 20)
#define BULK_AFTER 2u /* so many reads that fill the buffer are the beginning of bulk */
#define SHARE SCRATCH /* bytes a flow may move in one direction before the others have their turn */

static uint8_t scratch[PROXY_WRITTEN_MAX + SCRATCH];

void pump_break(struct side *side)
{
	if (side->end == END_FIN)
		side->end = END_RST;
	else
		side->flags |= BROKEN | READABLE | FAILED;
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
	pump_break(out);
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

	if (from == SERVER && flow->bytes[SERVER] == 0)
		connect_proved_good(flow);
	flow->bytes[from] += n;
	flow->active_ms = worker.now_ms;
	count(from == CLIENT ? &service->bytes_in : &service->bytes_out, n);
	count(from == CLIENT ? &server->bytes_in : &server->bytes_out, n);
}

/* Writes bytes that stand in front of the scratch buffer, and keeps what does not go out. False: the flow is dead. */
static bool write_out(struct flow *flow, unsigned from, const uint8_t *data, size_t length, int flags)
{
	size_t sent = put(flow, &flow->side[!from], data, length, flags);

	if (sent == length || (flow->side[from].pending = pending_new(data + sent, length - sent)))
		return true;
	flow_end(flow, NO_MEMORY, true);
	return false;
}

/* Puts the server's PROXY header to the beginning of the scratch buffer; its length. */
static size_t introduce(struct flow *flow)
{
	const struct pending *tlvs = flow->tlvs;
	size_t length = proxy_write(scratch, flow->service->spec.send_proxy == 1 ? 1 : 2, false, flow->proxied,
				    &flow->client, &flow->vip, tlvs ? tlvs->data : NULL, tlvs ? tlvs->length : 0);

	flow->introducing = false;
	pending_free(flow->tlvs);
	flow->tlvs = NULL;
	return length;
}

/* One read and one write. Returns the bytes moved. */
static size_t transfer(struct flow *flow, unsigned from)
{
	struct side *in = &flow->side[from];
	size_t room = likely(pending_total() < KEPT_PLENTY) ? SCRATCH : FRUGAL, got, head = 0;
	uint8_t *data = scratch + PROXY_WRITTEN_MAX;
	ssize_t n = recv(in->fd, data, room, 0);

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
	in->full = got == SCRATCH ? (uint8_t)(in->full + (in->full < BULK_AFTER)) : 0;
	if (got < room && !(in->flags & (URGENT | FAILED))) {
		in->flags &= (uint8_t)~READABLE;
		if (in->flags & PEER_DONE)
			in->end = END_FIN;
	}
	account(flow, from, got);
	if (unlikely(flow->introducing) && from == CLIENT) { /* the header travels with the first bytes */
		head = introduce(flow);
		memmove(data - head, scratch, head);
	}
	/* With the end known, the FIN that follows travels in the same segment. */
	write_out(flow, from, data - head, head + got, in->end == END_FIN ? MSG_MORE : 0);
	return got;
}

/* Empties the pipe; false: the other side takes no more now. */
static bool flush_pipe(struct flow *flow, struct side *in, struct side *out)
{
	while (in->pipe->held) {
		ssize_t n = pipe_drain(in->pipe, out->fd);

		if (n > 0) {
			flow->active_ms = worker.now_ms;
		} else if (n < 0 && errno == EAGAIN) {
			return false;
		} else if (n == 0 || errno != EINTR) {
			pump_break(out); /* nobody will miss what is in the pipe */
			pipe_give_back(in->pipe);
			in->pipe = NULL;
			return true;
		}
	}
	return true;
}

/* Back to copying: what comes now is not bulk, or its end. */
static void end_bulk(struct side *in)
{
	pipe_give_back(in->pipe);
	in->pipe = NULL;
	in->full = 0;
}

/* One filling of the pipe. Returns the bytes read. */
static size_t transfer_bulk(struct flow *flow, unsigned from)
{
	struct side *in = &flow->side[from];
	ssize_t n = pipe_fill(in->pipe, in->fd);

	if (n > 0) {
		account(flow, from, (uint64_t)n);
		return (size_t)n;
	}
	if (n < 0 && errno == EINTR)
		return 0;
	end_bulk(in);
	if (n == 0)
		in->end = in->flags & BROKEN ? END_RST : END_FIN;
	else if (errno == EAGAIN)
		in->flags &= (uint8_t)~READABLE;
	else if (errno != EINVAL) /* else something only recv() knows how to read */
		in->end = END_RST;
	return 0;
}

static bool is_bulk(struct side *in)
{
	if (in->pipe == NULL && unlikely(in->full >= BULK_AFTER) && !(in->flags & URGENT))
		in->pipe = pipe_take();
	return in->pipe != NULL;
}

static bool move(struct flow *flow, unsigned from)
{
	struct side *in = &flow->side[from], *out = &flow->side[!from];

	for (size_t moved = 0; moved < SHARE;) {
		if (in->pending && !flush(flow, in, out))
			return false;
		if (in->pipe && !flush_pipe(flow, in, out))
			return false;
		if (in->end != END_NONE || !(in->flags & READABLE) || (out->flags & BROKEN))
			return false;
		moved += is_bulk(in) ? transfer_bulk(flow, from) : transfer(flow, from);
		if (flow->phase != PHASE_OPEN)
			return false;
	}
	return in->end == END_NONE && (in->flags & READABLE);
}

bool pump(struct flow *flow, unsigned from)
{
	bool more = move(flow, from);

	/* A client that waits for the server to speak first: the header goes alone. */
	if (unlikely(flow->introducing) && from == CLIENT && flow->phase == PHASE_OPEN &&
	    !write_out(flow, CLIENT, scratch, introduce(flow), 0))
		return false;
	return more;
}
