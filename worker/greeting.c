/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header is looked at where it lies, in the kernel's queue, and taken out when it is complete: a client that sends
 * slowly costs no buffer here, and what follows the header is read by nobody but the pump.
 */
#include "greeting.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "admit.h"
#include "connect.h"
#include "proxy.h"

#define DEADLINE_MS 3000u

void greeting_await(struct flow *flow)
{
	flow->phase = PHASE_GREETING;
	timer_arm(&flow->timer, worker.now_ms, worker.now_ms + DEADLINE_MS);
}

static void greeted(struct flow *flow, const struct proxy_header *header)
{
	enum reason why;

	flow->proxied = (uint8_t)header->kind;
	if (header->kind == PROXY_ADDRESSES) {
		flow->client = header->source;
		flow->vip = header->destination;
	}
	if (header->passed && flow->service->spec.send_proxy == 2)
		flow->tlvs = pending_new(header->tlvs, header->passed); /* without memory they are not passed on */
	why = admit_client(flow->service, &flow->client, &flow->source);
	if (why != REASON_NONE) {
		flow_end(flow, why, true);
		return;
	}
	timer_stop(&flow->timer);
	flow->side[CLIENT].flags |= READABLE;
	flow->phase = PHASE_CONNECTING;
	connect_next(flow);
}

void greeting_event(struct flow *flow, uint32_t events)
{
	static uint8_t seen[PROXY_LENGTH_MAX];
	struct proxy_header header;
	ssize_t n;

	if (events & EPOLLERR) {
		flow_end(flow, REASON_NONE, true);
		return;
	}
	n = recv(flow->side[CLIENT].fd, seen, sizeof(seen), MSG_PEEK);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR)
			flow_end(flow, REASON_NONE, true);
		return;
	}
	if (n == 0) { /* it came and went without a word */
		flow_end(flow, REASON_NONE, false);
		return;
	}
	switch (proxy_parse(seen, (size_t)n, false, &header)) {
	case PROXY_COMPLETE:
		if (recv(flow->side[CLIENT].fd, seen, header.length, 0) == (ssize_t)header.length)
			greeted(flow, &header);
		else
			flow_end(flow, PROXY_MALFORMED, true);
		break;
	case PROXY_INCOMPLETE:
		if (events & EPOLLRDHUP)
			flow_end(flow, PROXY_MALFORMED, true);
		break;
	default:
		flow_end(flow, PROXY_MALFORMED, true);
		break;
	}
}

void greeting_timer(struct flow *flow)
{
	flow_end(flow, PROXY_TIMEOUT, true);
}
