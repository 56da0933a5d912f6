/* SPDX-License-Identifier: Apache-2.0 */
/* What the worker tells of itself: hello, dump, flows, handover. */
#include "answer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "flow.h"
#include "listener.h"

#ifndef FAIRLEAD_VERSION /* set by the build of the package */
#define FAIRLEAD_VERSION "unknown"
#endif

#define FLOWS_LIMIT 10000u /* records in one answer, whatever the request says */

static enum progress transmit(int to, struct iovec *parts, size_t n, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} ancillary = {0};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};

	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = ancillary.bytes;
		message.msg_controllen = sizeof(ancillary.bytes);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	if (sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return ANSWERED;
	return errno == EAGAIN ? BLOCKED : DISCONNECTED;
}

static enum progress record(int to, void *bytes, size_t length, int fd)
{
	struct iovec part = {bytes, length};

	return transmit(to, &part, 1, fd);
}

static struct fl_header header_of(const struct answer *answer, enum fl_type type)
{
	return (struct fl_header){.type = (uint16_t)type, .seq = answer->seq};
}

static enum progress send_hello(struct answer *answer, int to)
{
	struct fl_hello hello = {
		.header = header_of(answer, FL_HELLO),
		.abi = FL_ABI_VERSION,
		.pid = (uint32_t)getpid(),
		.slot = worker.slot,
		.attached = worker.memfd >= 0,
		.draining = worker.draining,
		.flows = flows_live(),
		.build = FAIRLEAD_VERSION,
	};

	return record(to, &hello, sizeof(hello), -1);
}

static enum progress send_server(struct answer *answer, int to, const struct server *server)
{
	struct fl_server copy = server->spec;

	copy.header = header_of(answer, FL_SERVER_PUT);
	return record(to, &copy, sizeof(copy), -1);
}

static enum progress send_table(struct answer *answer, int to, const struct table *table)
{
	struct fl_table copy = table->spec;

	copy.header = header_of(answer, FL_TABLE_PUT);
	return record(to, &copy, sizeof(copy), -1);
}

static enum progress send_service(struct answer *answer, int to, const struct service *service)
{
	struct fl_service copy = service->spec;
	struct iovec parts[2] = {{&copy, sizeof(copy)}, {service->range, copy.ranges * sizeof(struct fl_range)}};

	copy.header = header_of(answer, FL_SERVICE_PUT);
	return transmit(to, parts, 2, -1);
}

static enum progress send_listener(struct answer *answer, int to, const struct listener *listener, int fd)
{
	struct fl_listen copy = {
		.header = header_of(answer, FL_LISTEN_PUT),
		.service = listener->service->spec.id,
		.protocol = listener->service->spec.protocol,
		.address = listener->address,
	};

	return record(to, &copy, sizeof(copy), fd);
}

static enum progress send_listeners(struct answer *answer, int to, bool with_descriptors)
{
	for (; answer->listener; answer->listener = listener_next(answer->listener)) {
		int fd = with_descriptors ? answer->listener->fd : -1;
		enum progress progress = send_listener(answer, to, answer->listener, fd);

		if (progress != ANSWERED)
			return progress;
	}
	return ANSWERED;
}

static enum progress send_dump(struct answer *answer, int to)
{
	static const uint32_t ends[] = {FL_MAX_SERVERS, FL_MAX_TABLES, FL_MAX_SERVICES};

	for (; answer->stage < 3; answer->stage++, answer->next = 0)
		for (; answer->next < ends[answer->stage]; answer->next++) {
			enum progress progress = ANSWERED;
			uint32_t id = answer->next;

			if (answer->stage == 0 && server_by_id(id))
				progress = send_server(answer, to, server_by_id(id));
			else if (answer->stage == 1 && table_by_id(id))
				progress = send_table(answer, to, table_by_id(id));
			else if (answer->stage == 2 && service_by_id(id))
				progress = send_service(answer, to, service_by_id(id));
			if (progress != ANSWERED)
				return progress;
		}
	return ANSWERED;
}

static enum fl_flow_state state_of(const struct flow *flow)
{
	if (flow->phase < PHASE_OPEN)
		return FL_CONNECTING;
	if (flow->side[CLIENT].end != END_NONE)
		return FL_CLIENT_CLOSED;
	return flow->side[SERVER].end != END_NONE ? FL_SERVER_CLOSED : FL_ESTABLISHED;
}

static uint32_t since(uint64_t then_ms)
{
	uint64_t ms = worker.now_ms - then_ms;

	return ms > UINT32_MAX ? UINT32_MAX : (uint32_t)ms;
}

static enum progress send_flow(struct answer *answer, int to, const struct flow *flow)
{
	struct fl_flow copy = {
		.header = header_of(answer, FL_FLOW),
		.service = flow->service->spec.id,
		.server = flow->server ? flow->server->spec.id : 0,
		.client = flow->client,
		.vip = flow->vip,
		.state = state_of(flow),
		.age_ms = since(flow->born_ms),
		.idle_ms = since(flow->active_ms),
		.bytes_in = flow->bytes[CLIENT],
		.bytes_out = flow->bytes[SERVER],
	};

	return record(to, &copy, sizeof(copy), -1);
}

/* The cursor is an index of the slab: flows that come and go meanwhile are seen or not, the others exactly once. */
static enum progress send_flows(struct answer *answer, int to)
{
	const struct fl_flows *filter = &answer->flows;
	uint32_t limit = filter->limit && filter->limit < FLOWS_LIMIT ? filter->limit : FLOWS_LIMIT;
	const struct flow *flow;

	for (flow = flow_next(answer->next); flow; flow = flow_next(flow->index + 1)) {
		enum progress progress;

		answer->next = flow->index;
		if (filter->service && flow->service->spec.id != filter->service)
			continue;
		if (filter->server && (flow->server == NULL || flow->server->spec.id != filter->server))
			continue;
		if (answer->sent == limit)
			break;
		progress = send_flow(answer, to, flow);
		if (progress != ANSWERED)
			return progress;
		answer->sent++;
	}
	answer->done.cursor = flow ? flow->index : 0; /* never 0 with a flow left: one was sent before it */
	return ANSWERED;
}

static enum progress send_memory(struct answer *answer, int to)
{
	struct fl_attach attach = {.header = header_of(answer, FL_ATTACH), .slot = worker.slot};

	return worker.memfd < 0 ? ANSWERED : record(to, &attach, sizeof(attach), worker.memfd);
}

static enum progress send_records(struct answer *answer, int to)
{
	enum progress progress;

	switch (answer->type) {
	case FL_HELLO:
		return send_hello(answer, to);
	case FL_FLOWS:
		return send_flows(answer, to);
	case FL_DUMP:
		progress = send_dump(answer, to);
		return progress == ANSWERED ? send_listeners(answer, to, false) : progress;
	case FL_HANDOVER:
		progress = send_listeners(answer, to, true);
		return progress == ANSWERED ? send_memory(answer, to) : progress;
	default:
		return ANSWERED;
	}
}

void answer_verdict(struct answer *answer, const struct fl_header *request, struct verdict verdict)
{
	*answer = (struct answer){.type = FL_DONE, .seq = request->seq};
	answer->done.error = verdict.error;
	snprintf(answer->done.message, sizeof(answer->done.message), "%s", verdict.message);
}

bool answer_begin(struct answer *answer, const struct fl_header *request, size_t length)
{
	size_t size = request->type == FL_FLOWS ? sizeof(struct fl_flows) : sizeof(struct fl_header);

	if (request->type != FL_HELLO && request->type != FL_FLOWS && request->type != FL_DUMP &&
	    request->type != FL_HANDOVER)
		return false;
	answer_verdict(answer, request, length == size ? DONE : REFUSE(EINVAL, "message has the wrong length"));
	if (length != size)
		return true;
	answer->type = request->type;
	answer->listener = listener_next(NULL);
	if (request->type == FL_FLOWS) {
		memcpy(&answer->flows, request, sizeof(answer->flows));
		answer->next = answer->flows.cursor;
	}
	return true;
}

enum progress answer_go_on(struct answer *answer, int to)
{
	enum progress progress = send_records(answer, to);

	if (progress != ANSWERED)
		return progress;
	answer->type = FL_DONE; /* all records are out: when this blocks, only it is sent again */
	answer->done.header = header_of(answer, FL_DONE);
	return record(to, &answer->done, sizeof(answer->done), -1);
}
