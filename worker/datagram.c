/* SPDX-License-Identifier: Apache-2.0 */
/* From a datagram to its flow, to a server, and back. */
#define _GNU_SOURCE
#include "datagram.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "address.h"
#include "admit.h"
#include "batch.h"
#include "connect.h"
#include "descriptors.h"
#include "peers.h"
#include "proxy.h"
#include "schedule.h"
#include "source.h"
#include "transparent.h"
#include "unreachable.h"

#define KEEP_MAX 2048u		 /* a first datagram up to this size is kept for another try */
#define KEEP_TOTAL (8u << 20) /* all of them */
#define DRAIN_SILENCE_MS 1000u	 /* by then a server has answered what it was asked */

bool datagram_tell_destination(int fd, uint8_t family)
{
	return batch_tell_destination(fd, family);
}

static void forget_kept(struct flow *flow)
{
	pending_free(flow->side[CLIENT].pending);
	flow->side[CLIENT].pending = NULL;
}

static int try_to_open(struct flow *flow, const struct sockaddr_storage *to, socklen_t length)
{
	int fd = socket(to->ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error;

	if (fd < 0)
		return errno;
	descriptors_took(1);
	flow->side[SERVER] = (struct side){.fd = fd};
	error = transparent_bind(flow, fd, to->ss_family);
	if (error)
		return error;
	if (connect(fd, (const struct sockaddr *)to, length) < 0)
		return errno;
	return watch(fd, flow, TAG_DATAGRAM, EPOLLIN) ? 0 : ENOSPC;
}

static void close_server_socket(struct flow *flow)
{
	if (flow->side[SERVER].fd >= 0) {
		close(flow->side[SERVER].fd);
		descriptors_gave_back(1);
	}
	flow->side[SERVER] = (struct side){.fd = -1};
}

/* 0, or the errno value of a server that cannot be reached at all. */
static int open_server_socket(struct flow *flow)
{
	const struct fl_address *address = &flow->server->spec.address;
	struct sockaddr_storage to;
	socklen_t length = address_to_socket(address, address->port ? address->port : flow->vip.port, &to);
	int error = try_to_open(flow, &to, length);

	if (error == EAGAIN) { /* no port is left */
		close_server_socket(flow);
		error = peers_evict(flow) ? try_to_open(flow, &to, length) : EMFILE;
	}
	return error;
}

static bool is_local(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM || error == ENOSPC ||
	       error == EAGAIN;
}

/* Gives the flow to a server; REASON_NONE, or why nobody takes it. */
static enum reason place(struct flow *flow)
{
	enum reason why;

	while (schedule(flow, &why)) {
		int error;

		flow->tries++;
		error = open_server_socket(flow);
		if (error == 0) {
			count(&flow->server->row->connections, 1);
			return REASON_NONE;
		}
		if (error == EAFNOSUPPORT)
			return CONNECT_FAILED;
		if (is_local(error))
			return error == ENOBUFS || error == ENOMEM || error == ENOSPC ? NO_MEMORY : NO_DESCRIPTORS;
		if (!connect_book_failure(flow))
			return CONNECT_FAILED;
	}
	return flow->tried ? CONNECT_FAILED : why;
}

/* Ends a flow that no server takes. When the servers themselves refused, the client hears what they said. */
static void refuse(struct flow *flow, enum reason why)
{
	const struct datagram_flow *of = &flow->datagram;

	if (why == CONNECT_FAILED)
		unreachable_tell(&of->peer, of->scope, &of->local, 0);
	flow_end(flow, why, false);
}

/* A flow for the client that sent this, NULL: refused, and counted. */
static struct flow *begin(struct listener *listener, const struct datagram *datagram, uint32_t hash)
{
	struct service *service = listener->service;
	uint32_t source, idle = service->spec.idle_ms;
	enum reason why = admit(service, &datagram->client, &source);
	struct flow *flow;

	if (why != REASON_NONE) {
		if (service->spec.mode == FL_REJECT && why == NO_SERVER)
			unreachable_tell(&datagram->peer, datagram->scope, &datagram->local, datagram->length);
		reject(service, why);
		return NULL;
	}
	if (peers_full() || !descriptors_left())
		peers_evict(NULL);
	flow = descriptors_left() ? flow_new(service, -1, &datagram->client, &datagram->vip) : NULL;
	if (flow == NULL) {
		reject(service, descriptors_left() ? NO_MEMORY : NO_DESCRIPTORS);
		admit_undo(service, source);
		return NULL;
	}
	flow->source = source;
	flow->phase = PHASE_DATAGRAM;
	flow->proxied = datagram->proxied;
	flow->datagram = (struct datagram_flow){.listener = listener,
						.peer = datagram->peer,
						.local = datagram->local,
						.scope = datagram->scope,
						.hash = hash};
	peers_add(flow);
	why = place(flow);
	if (why != REASON_NONE) {
		refuse(flow, why);
		return NULL;
	}
	if (idle)
		timer_arm(&flow->timer, worker.now_ms, worker.now_ms + idle);
	return flow;
}

/* Whether the server, from which datagram flows shall leave, is not the choice of the flow's table either. */
static bool must_leave(const struct flow *flow)
{
	const struct table *table = table_by_id(flow->service->spec.table);

	return (flow->server->spec.flags & FL_SERVER_UNPIN) && !(table && table_has_live(table, flow->server->spec.id));
}

static void account(struct flow *flow, unsigned from, size_t n)
{
	flow->bytes[from] += n;
	flow->active_ms = worker.now_ms;
	count(from == CLIENT ? &flow->service->row->bytes_in : &flow->service->row->bytes_out, n);
	count(from == CLIENT ? &flow->server->row->bytes_in : &flow->server->row->bytes_out, n);
}

/* With a PROXY header in front where the service wants that: in every datagram, for any of them may be lost. */
static ssize_t transmit_introduced(const struct flow *flow, const uint8_t *data, size_t length)
{
	uint8_t head[PROXY_WRITTEN_MAX];
	struct iovec parts[2] = {{head, 0}, {(void *)(uintptr_t)data, length}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	parts[0].iov_len = proxy_write(head, 2, true, flow->proxied, &flow->client, &flow->vip, NULL, 0);
	return sendmsg(flow->side[SERVER].fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* 0, or the errno value of an ICMP error that told about an earlier datagram. */
static int transmit(struct flow *flow, const uint8_t *data, size_t length)
{
	ssize_t n = unlikely(flow->service->spec.send_proxy)
			    ? transmit_introduced(flow, data, length)
			    : send(flow->side[SERVER].fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n >= 0 || errno == EAGAIN || errno == ENOBUFS || errno == EMSGSIZE || errno == EINTR)
		return 0; /* sent, or lost as on any link */
	return errno;
}

/* The server refused: another one gets the flow, and what the former one cannot have read. False: the flow is dead. */
static bool move(struct flow *flow)
{
	enum reason why = CONNECT_FAILED;

	while (connect_book_failure(flow) && (why = place(flow)) == REASON_NONE) {
		const struct pending *kept = flow->side[CLIENT].pending;

		flow->datagram.answered = false;
		if (kept == NULL || transmit(flow, kept->data, kept->length) == 0)
			return true;
		why = CONNECT_FAILED;
	}
	refuse(flow, why);
	return false;
}

static void keep(struct flow *flow, const struct datagram *datagram)
{
	bool first = flow->bytes[CLIENT] == 0 && !flow->datagram.answered;

	forget_kept(flow);
	if (first && datagram->length <= KEEP_MAX && pending_total() < KEEP_TOTAL)
		flow->side[CLIENT].pending = pending_new(datagram->data, datagram->length);
}

static void pass(struct flow *flow, const struct datagram *datagram)
{
	if (flow->datagram.answered)
		flow->datagram.lasting = true;
	while (transmit(flow, datagram->data, datagram->length) != 0)
		if (!move(flow))
			return;
	keep(flow, datagram);
	account(flow, CLIENT, datagram->length);
	peers_touch(flow);
}

/* Takes the PROXY header off and notes what it says; false: there is none. */
static bool take_header(struct datagram *datagram)
{
	struct proxy_header header;

	if (proxy_parse(datagram->data, datagram->length, true, &header) != PROXY_COMPLETE)
		return false;
	datagram->data += header.length;
	datagram->length -= header.length;
	datagram->proxied = (uint8_t)header.kind;
	if (header.kind == PROXY_ADDRESSES) {
		datagram->client = header.source;
		datagram->vip = header.destination;
	}
	return true;
}

static void receive(struct listener *listener, struct datagram *datagram)
{
	struct flow *flow;
	uint32_t hash;

	if (unlikely(listener->service->spec.flags & FL_SERVICE_ACCEPT_PROXY) && !take_header(datagram)) {
		reject(listener->service, PROXY_MALFORMED);
		return;
	}
	flow = peers_find(datagram, &hash);
	if (flow && must_leave(flow)) {
		flow_end(flow, REASON_NONE, false);
		flow = NULL;
	}
	if (flow == NULL)
		flow = begin(listener, datagram, hash);
	if (flow)
		pass(flow, datagram);
}

void datagram_receive(struct listener *listener)
{
	struct datagram *datagram;
	unsigned n = batch_receive(listener->fd, listener->exact ? &listener->address : NULL, &datagram);

	for (; n > 0; n--, datagram++)
		receive(listener, datagram);
}

static void note_answer(struct flow *flow)
{
	if (flow->datagram.answered)
		return;
	flow->datagram.answered = true;
	flow->tries = 0;
	free(flow->tried);
	flow->tried = NULL;
	forget_kept(flow);
	__atomic_store_n(&flow->server->row->consecutive_failures, 0, __ATOMIC_RELAXED);
}

void datagram_answered(struct flow *flow)
{
	const struct fl_address *from;
	size_t bytes;
	int n;

	if (flow->phase != PHASE_DATAGRAM)
		return;
	from = flow->datagram.listener->exact ? NULL : &flow->datagram.local;
	n = batch_pass(flow->side[SERVER].fd, flow->datagram.listener->fd, &flow->datagram.peer, flow->datagram.scope,
		       from, &bytes);
	if (n > 0) {
		note_answer(flow);
		account(flow, SERVER, bytes);
		peers_touch(flow);
	} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
		move(flow);
	}
}

void datagram_flush(void)
{
	batch_flush();
}

void datagram_timer(struct flow *flow)
{
	uint32_t idle = flow->service->spec.idle_ms, limit = worker.draining ? DRAIN_SILENCE_MS : idle;
	uint64_t deadline = flow->active_ms + limit;

	if (limit == 0)
		return;
	if (worker.now_ms >= deadline)
		flow_end(flow, REASON_NONE, false);
	else
		timer_arm(&flow->timer, worker.now_ms, deadline);
}

void datagram_leave(struct server *server)
{
	struct link *node = server->flows.next;

	while (node != &server->flows) {
		struct flow *flow = container_of(node, struct flow, of_server);

		node = node->next;
		if (flow->phase == PHASE_DATAGRAM && must_leave(flow))
			flow_end(flow, REASON_NONE, false);
	}
}

void datagram_end_flows(const struct listener *listener)
{
	for (struct flow *flow = flow_next(0); flow; flow = flow_next(flow->index + 1))
		if (flow->datagram.listener == listener)
			flow_end(flow, REASON_NONE, false);
}

void datagram_drain(void)
{
	for (struct flow *flow = flow_next(0); flow; flow = flow_next(flow->index + 1))
		if (flow->phase == PHASE_DATAGRAM)
			timer_arm(&flow->timer, worker.now_ms, worker.now_ms + DRAIN_SILENCE_MS);
}
