/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A steady stream of datagrams in which not one may be lost: flows from the ports 30000 and up ask in turn at a fixed
 * rate until stdin ends, and every answer must name the server that answered the flow before. And the server for it,
 * which answers with its name and the question.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_PORT 30000
#define QUESTION 64
#define NAME 16
#define MEMORY (8 << 20)	/* of a socket: nothing is lost at the ends */
#define UNDER_WAY 200u		/* questions without an answer: fewer than the smallest ring on the way holds */
#define PATIENCE_NS 100000000u	/* then one more goes out all the same */
#define LAST_NS 1000000000u	/* answers are waited for after the last question */

struct flow {
	int fd;
	char server[NAME];
	int moved;
};

struct stream {
	struct flow *flow;
	int flows;
	uint64_t sent, answered, last_at, room;
	unsigned char *heard; /* by number of the question */
};

static int udp_socket(int family, const void *address, socklen_t length)
{
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), size = MEMORY, one = 1;

	if (fd < 0)
		fail("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	if (bind(fd, address, length) < 0)
		fail("bind");
	return fd;
}

/* Answers at a port of both families. */
int run_echo(const char *name, int port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)}, peer;
	int fd = udp_socket(AF_INET6, &address, sizeof(address));
	char text[NAME + 2048] = "";

	strncpy(text, name, NAME - 1);
	for (;;) {
		socklen_t length = sizeof(peer);
		ssize_t got = recvfrom(fd, text + NAME, sizeof(text) - NAME, 0, (struct sockaddr *)&peer, &length);

		if (got >= 0)
			sendto(fd, text, NAME + (size_t)got, 0, (struct sockaddr *)&peer, length);
		else if (errno != ECONNREFUSED && errno != EINTR)
			fail("recvfrom");
	}
}

static void ask_next(struct stream *stream)
{
	uint64_t text[QUESTION / sizeof(uint64_t)] = {stream->sent};

	if (stream->sent == stream->room) {
		stream->room *= 2;
		stream->heard = realloc(stream->heard, stream->room);
		if (stream->heard == NULL)
			fail("realloc");
	}
	stream->heard[stream->sent] = 0;
	/* What can not even be sent counts as lost. */
	send(stream->flow[stream->sent % (uint64_t)stream->flows].fd, text, sizeof(text), MSG_DONTWAIT | MSG_NOSIGNAL);
	stream->sent++;
	stream->last_at = now_ns();
}

static void hear(struct stream *stream, struct flow *flow)
{
	char text[NAME + QUESTION];
	uint64_t number;
	ssize_t got;

	while ((got = recv(flow->fd, text, sizeof(text), MSG_DONTWAIT)) > 0 || (got < 0 && errno == ECONNREFUSED)) {
		memcpy(&number, text + NAME, sizeof(number));
		if (got != sizeof(text) || number >= stream->sent || stream->heard[number])
			continue;
		stream->heard[number] = 1;
		stream->answered++;
		if (flow->server[0] == 0)
			memcpy(flow->server, text, NAME);
		else if (memcmp(flow->server, text, NAME) != 0)
			flow->moved = 1;
	}
}

/* As many as are due, but never more under way than arrive for sure. */
static void ask_due(struct stream *stream, uint64_t start, double per_second)
{
	while ((double)stream->sent < (double)(now_ns() - start) * per_second / 1e9 &&
	       (stream->sent - stream->answered < UNDER_WAY || now_ns() > stream->last_at + PATIENCE_NS))
		ask_next(stream);
}

int run_steady(struct target *target, double per_second, int flows)
{
	struct stream stream = {.flow = calloc((size_t)flows, sizeof(struct flow)), .flows = flows, .room = 1 << 20};
	struct epoll_event event[MAX_EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC), going_on = 1, moved = 0;
	uint64_t start, end = UINT64_MAX;

	stream.heard = malloc(stream.room);
	if (stream.flow == NULL || stream.heard == NULL)
		fail("malloc");
	for (int i = 0; i < flows; i++) {
		struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(FIRST_PORT + i))};

		stream.flow[i].fd = udp_socket(AF_INET, &own, sizeof(own));
		if (connect(stream.flow[i].fd, (const struct sockaddr *)&target->address, sizeof(target->address)) < 0)
			fail("connect");
		watch(epoll, stream.flow[i].fd, EPOLLIN, &stream.flow[i]);
	}
	watch(epoll, STDIN_FILENO, EPOLLIN, NULL);
	puts("ready");
	fflush(stdout);
	start = now_ns();
	while (now_ns() < end && (going_on || stream.answered < stream.sent)) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 1);

		for (int i = 0; i < ready; i++) {
			if (event[i].data.ptr != NULL) {
				hear(&stream, event[i].data.ptr);
				continue;
			}
			epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
			going_on = 0;
			end = now_ns() + LAST_NS;
		}
		if (going_on)
			ask_due(&stream, start, per_second);
	}
	for (int i = 0; i < flows; i++)
		moved += stream.flow[i].moved;
	printf("{\"sent\": %llu, \"lost\": %llu, \"moved\": %d, \"per_second\": %.1f}\n", (unsigned long long)stream.sent,
	       (unsigned long long)(stream.sent - stream.answered), moved,
	       (double)stream.sent / ((double)(stream.last_at - start) / 1e9));
	return 0;
}
