/* SPDX-License-Identifier: Apache-2.0 */
/* The clients of the benchmark. A request that does not bring the whole expected reply is an error, never a result. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct flow {
	int fd;
	int sent;
	int received;
	uint64_t since; /* when the request was due */
};

static struct flow *flows_new(int count)
{
	struct flow *flow = calloc((size_t)count, sizeof(*flow));

	if (flow == NULL)
		fail("calloc");
	return flow;
}

/* One request per connection */

static void try_send(struct flow *flow)
{
	flow->sent = send(flow->fd, request_close, strlen(request_close), MSG_NOSIGNAL) > 0;
}

static int begin(struct target *target, int epoll, struct flow *flow)
{
	flow->since = now_ns();
	flow->received = 0;
	flow->fd = dial(target);
	if (flow->fd < 0)
		return -1;
	try_send(flow); /* on loopback the handshake is often over already */
	watch(epoll, flow->fd, flow->sent ? EPOLLIN : EPOLLIN | EPOLLOUT, flow);
	return 0;
}

/* Whether the flow is over; *good: with the whole reply. */
static int advance(int epoll, struct flow *flow, int *good)
{
	char text[4096];

	if (!flow->sent) {
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = flow};

		try_send(flow);
		if (flow->sent)
			epoll_ctl(epoll, EPOLL_CTL_MOD, flow->fd, &event);
	}
	for (;;) {
		ssize_t got = recv(flow->fd, text, sizeof(text), 0);

		if (got < 0 && errno == EAGAIN)
			return 0;
		if (got <= 0) {
			*good = got == 0 && flow->received == reply_close_length;
			return 1;
		}
		flow->received += (int)got;
	}
}

int run_connect(struct target *target, double seconds, int concurrency)
{
	struct epoll_event event[MAX_EVENTS];
	struct samples latency = samples_new(4000000);
	struct flow *flow = flows_new(concurrency);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), errors = 0;
	int open = 0;

	for (; open < concurrency; open++)
		if (begin(target, epoll, &flow[open]) < 0)
			fail("connect");
	while (open > 0) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 5000);

		if (ready == 0) /* what hangs for 5 s counts as failed */
			break;
		for (int i = 0; i < ready; i++) {
			struct flow *one = event[i].data.ptr;
			uint64_t now;
			int good = 0;

			if (!advance(epoll, one, &good))
				continue;
			close(one->fd);
			now = now_ns();
			if (good && now < end)
				samples_add(&latency, now - one->since);
			errors += !good;
			if (now >= end || begin(target, epoll, one) < 0)
				open--;
		}
	}
	errors += (uint64_t)open;
	printf("{\"done\": %llu, \"errors\": %llu, \"seconds\": %.6f", (unsigned long long)latency.count,
	       (unsigned long long)errors, seconds);
	samples_print(&latency);
	printf("}\n");
	return 0;
}

/* All at once */

int run_storm(struct target *target, int connections)
{
	struct epoll_event event[MAX_EVENTS];
	struct samples latency = samples_new((uint64_t)connections);
	struct flow *flow = flows_new(connections);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t start = now_ns(), errors = 0;
	int open = 0;

	for (; open < connections; open++)
		if (begin(target, epoll, &flow[open]) < 0)
			fail("connect");
	while (open > 0) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 5000);

		if (ready == 0)
			break;
		for (int i = 0; i < ready; i++) {
			struct flow *one = event[i].data.ptr;
			int good = 0;

			if (!advance(epoll, one, &good))
				continue;
			close(one->fd);
			open--;
			errors += !good;
			if (good)
				samples_add(&latency, now_ns() - start);
		}
	}
	printf("{\"done\": %llu, \"errors\": %llu, \"seconds\": %.6f", (unsigned long long)latency.count,
	       (unsigned long long)errors + (unsigned long long)open, (double)(now_ns() - start) / 1e9);
	samples_print(&latency);
	printf("}\n");
	return 0;
}

/* As many as it takes: the next request of a connection follows its reply */

/* Whether the reply was whole; -1: there will be none. */
static int reply_whole(struct flow *flow, int length)
{
	char text[4096];
	ssize_t got = recv(flow->fd, text, sizeof(text), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return 0;
	if (got <= 0 || flow->received + got > length)
		return -1;
	flow->received += (int)got;
	return flow->received == length;
}

static int ask(struct flow *flow, const char *request)
{
	flow->since = now_ns();
	flow->received = 0;
	return send(flow->fd, request, strlen(request), MSG_NOSIGNAL) < 0 ? -1 : 0;
}

int run_requests(struct target *target, double seconds, int connections, struct exchange exchange)
{
	struct epoll_event event[MAX_EVENTS];
	struct samples latency = samples_new(4000000);
	struct flow *flow = flows_new(connections);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t start, end, errors = 0;
	int open = connections;

	for (int i = 0; i < connections; i++) {
		flow[i].fd = dial_wait(target);
		watch(epoll, flow[i].fd, EPOLLIN, &flow[i]);
	}
	start = now_ns();
	end = start + (uint64_t)(seconds * 1e9);
	for (int i = 0; i < connections; i++)
		if (ask(&flow[i], exchange.request) < 0)
			fail("send");
	while (open > 0) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 5000);

		if (ready == 0) /* what hangs for 5 s counts as failed */
			break;
		for (int i = 0; i < ready; i++) {
			struct flow *one = event[i].data.ptr;
			int whole = reply_whole(one, exchange.reply_length);
			uint64_t now = now_ns();

			if (whole == 0)
				continue;
			if (whole > 0 && now < end)
				samples_add(&latency, now - one->since);
			if (whole < 0 || now >= end || ask(one, exchange.request) < 0) {
				errors += whole < 0 || now < end;
				close(one->fd);
				open--;
			}
		}
	}
	printf("{\"done\": %llu, \"errors\": %llu, \"seconds\": %.6f", (unsigned long long)latency.count,
	       (unsigned long long)errors + (unsigned long long)open, seconds);
	samples_print(&latency);
	printf("}\n");
	return 0;
}

/* A fixed rate on open connections */

struct rate {
	struct flow **idle;
	int idle_count;
	uint64_t start, interval, sent, total;
	struct samples latency;
	struct exchange exchange;
	uint64_t errors;
};

/* Send all that is due and for which a connection is free. A request that has to wait keeps the moment it was due. */
static void send_due(struct rate *rate)
{
	uint64_t now = now_ns();

	while (rate->sent < rate->total && rate->idle_count > 0) {
		uint64_t due = rate->start + rate->sent * rate->interval;
		struct flow *flow;

		if (due > now)
			return;
		flow = rate->idle[--rate->idle_count];
		flow->since = due;
		flow->received = 0;
		rate->sent++;
		if (send(flow->fd, rate->exchange.request, strlen(rate->exchange.request), MSG_NOSIGNAL) < 0)
			rate->errors++;
	}
}

static void arm(int timer, const struct rate *rate)
{
	uint64_t due = rate->start + rate->sent * rate->interval;
	struct itimerspec at = {.it_value = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)}};

	if (rate->sent < rate->total && rate->idle_count > 0)
		timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void take_reply(struct rate *rate, struct flow *flow)
{
	char text[4096];
	ssize_t got = recv(flow->fd, text, sizeof(text), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		rate->errors++;
		close(flow->fd);
		return;
	}
	flow->received += (int)got;
	if (flow->received == rate->exchange.reply_length) {
		samples_add(&rate->latency, now_ns() - flow->since);
		rate->idle[rate->idle_count++] = flow;
	}
}

int run_rate(struct target *target, double seconds, int connections, double per_second, struct exchange exchange)
{
	struct epoll_event event[MAX_EVENTS];
	struct flow *flow = flows_new(connections);
	struct rate rate = {.interval = (uint64_t)(1e9 / per_second),
			    .total = (uint64_t)(seconds * per_second),
			    .exchange = exchange};
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	uint64_t expired;

	rate.latency = samples_new(rate.total);
	rate.idle = calloc((size_t)connections, sizeof(*rate.idle));
	if (rate.idle == NULL || timer < 0)
		fail("timer");
	watch(epoll, timer, EPOLLIN, NULL);
	for (int i = 0; i < connections; i++) {
		flow[i].fd = dial_wait(target);
		watch(epoll, flow[i].fd, EPOLLIN, &flow[i]);
		rate.idle[rate.idle_count++] = &flow[i];
	}
	rate.start = now_ns() + 20000000; /* let the handshakes with the real servers end */
	while (rate.latency.count + rate.errors < rate.total) {
		int ready;

		send_due(&rate);
		arm(timer, &rate);
		ready = epoll_wait(epoll, event, MAX_EVENTS, 5000);
		if (ready == 0)
			break;
		for (int i = 0; i < ready; i++) {
			if (event[i].data.ptr != NULL)
				take_reply(&rate, event[i].data.ptr);
			else if (read(timer, &expired, sizeof(expired)) < 0 && errno != EAGAIN)
				fail("timer");
		}
	}
	printf("{\"done\": %llu, \"errors\": %llu, \"seconds\": %.6f", (unsigned long long)rate.latency.count,
	       (unsigned long long)(rate.total - rate.latency.count), (double)(now_ns() - rate.start) / 1e9);
	samples_print(&rate.latency);
	printf("}\n");
	return 0;
}

/* Bulk */

int run_bulk(struct target *target, double seconds, int streams)
{
	static char sink[1 << 20];
	struct epoll_event event[MAX_EVENTS];
	struct flow *flow = flows_new(streams);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t bytes = 0, errors = 0, start, end;

	for (int i = 0; i < streams; i++) {
		flow[i].fd = dial_wait(target);
		if (send(flow[i].fd, request_bulk, strlen(request_bulk), MSG_NOSIGNAL) < 0)
			fail("send");
		watch(epoll, flow[i].fd, EPOLLIN, &flow[i]);
	}
	start = now_ns();
	end = start + (uint64_t)(seconds * 1e9);
	while (now_ns() < end && errors == 0) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 1000);

		errors += ready == 0;
		for (int i = 0; i < ready; i++) {
			/* MSG_TRUNC: the bytes are thrown away in the kernel, so that the client costs little */
			ssize_t got = recv(((struct flow *)event[i].data.ptr)->fd, sink, sizeof(sink), MSG_TRUNC | MSG_DONTWAIT);

			if (got > 0)
				bytes += (uint64_t)got;
			else if (got == 0 || errno != EAGAIN)
				errors++;
		}
	}
	printf("{\"done\": %llu, \"errors\": %llu, \"seconds\": %.6f}\n", (unsigned long long)bytes,
	       (unsigned long long)errors, (double)(now_ns() - start) / 1e9);
	return 0;
}

/* Many idle connections */

int run_hold(struct target *target, int connections)
{
	char text[4096];
	char byte;

	for (int i = 0; i < connections; i++) {
		int fd = dial_wait(target);
		int received = 0;

		if (send(fd, exchange_keep.request, strlen(exchange_keep.request), MSG_NOSIGNAL) < 0)
			fail("send");
		while (received < exchange_keep.reply_length) {
			ssize_t got = recv(fd, text, sizeof(text), 0);

			if (got <= 0)
				fail("recv");
			received += (int)got;
		}
	}
	printf("{\"done\": %d, \"errors\": 0, \"seconds\": 0}\n", connections);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}
