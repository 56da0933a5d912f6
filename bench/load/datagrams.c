/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP clients. Each keeps a window of questions under way; what is not answered while nothing comes for a tenth of a
 * second is lost, and a new window begins. An answer must be the question, of the present window.
 */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_NS 100000000u
#define QUESTION 64

struct client {
	int fd;
	int waiting;
	uint64_t window; /* its number, in every question */
	uint64_t heard;
};

static void ask(struct client *client)
{
	uint64_t text[QUESTION / sizeof(uint64_t)] = {client->window};

	if (send(client->fd, text, sizeof(text), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(text))
		client->waiting++;
}

/* Answers that came, each of which makes room for the next question. */
static uint64_t hear(struct client *client, int going_on)
{
	uint64_t text[QUESTION / sizeof(uint64_t)], good = 0;
	ssize_t got;

	while ((got = recv(client->fd, text, sizeof(text), MSG_DONTWAIT)) > 0 || (got < 0 && errno == ECONNREFUSED)) {
		if (got != sizeof(text) || text[0] != client->window)
			continue;
		good++;
		client->waiting--;
		if (going_on)
			ask(client);
	}
	client->heard = now_ns();
	return good;
}

static uint64_t give_up(struct client *client, int window)
{
	uint64_t lost = (uint64_t)client->waiting;

	client->window++;
	client->waiting = 0;
	client->heard = now_ns();
	for (int i = 0; i < window; i++)
		ask(client);
	return lost;
}

static int connected(const struct target *target)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (const struct sockaddr *)&target->address, sizeof(target->address)) < 0)
		fail("connect");
	return fd;
}

int run_datagrams(struct target *target, double seconds, int clients, int window)
{
	struct epoll_event event[MAX_EVENTS];
	struct client *client = calloc((size_t)clients, sizeof(*client));
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), now, done = 0, lost = 0;

	if (client == NULL)
		fail("calloc");
	for (int i = 0; i < clients; i++) {
		client[i].fd = connected(target);
		watch(epoll, client[i].fd, EPOLLIN, &client[i]);
		give_up(&client[i], window);
	}
	while ((now = now_ns()) < end) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, 20);

		for (int i = 0; i < ready; i++)
			done += hear(event[i].data.ptr, 1);
		for (int i = 0; i < clients && ready < MAX_EVENTS; i++)
			if (now > client[i].heard + PATIENCE_NS)
				lost += give_up(&client[i], window);
	}
	printf("{\"done\": %llu, \"errors\": 0, \"lost\": %llu, \"seconds\": %.6f}\n", (unsigned long long)done,
	       (unsigned long long)lost, seconds);
	return 0;
}
