/* SPDX-License-Identifier: Apache-2.0 */
/* The real server of the benchmark: one thread, one epoll, a fixed reply, or a stream without end for /bulk. */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define BULK_FILE (4u << 20)

#define BODY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n"
static const char reply_keep[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 64\r\n\r\n" BODY;
static const char reply_close[] =
	"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 64\r\nConnection: close\r\n\r\n" BODY;
static const char large_head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
static char reply_large[sizeof(large_head) - 1 + LARGE_BODY];
const int reply_close_length = sizeof(reply_close) - 1;
const struct exchange exchange_keep = {"GET / HTTP/1.1\r\nHost: bench\r\n\r\n", sizeof(reply_keep) - 1};
const struct exchange exchange_large = {"GET /large HTTP/1.1\r\nHost: bench\r\n\r\n", sizeof(reply_large)};
const char request_close[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
const char request_bulk[] = "GET /bulk HTTP/1.1\r\nHost: bench\r\n\r\n";
static const char bulk_head[] = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n";

_Static_assert(sizeof(BODY) - 1 == REPLY_BODY, "the reply says its length");

struct peer {
	int fd;
	int listening;
	int datagrams;
	int streaming;
};

static void drop(struct peer *peer)
{
	close(peer->fd);
	free(peer);
}

static void stream(struct peer *peer, int file)
{
	for (;;) {
		off_t from = 0;
		ssize_t sent = sendfile(peer->fd, file, &from, BULK_FILE);

		if (sent < 0 && errno == EAGAIN)
			return;
		if (sent <= 0) {
			drop(peer);
			return;
		}
	}
}

static void answer(struct peer *peer, int epoll, int file)
{
	char text[2048];
	ssize_t got = recv(peer->fd, text, sizeof(text) - 1, 0);

	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			drop(peer);
		return;
	}
	text[got] = 0;
	if (strncmp(text, "GET /bulk", 9) == 0) {
		struct epoll_event event = {.events = EPOLLOUT, .data.ptr = peer};

		peer->streaming = 1;
		send(peer->fd, bulk_head, sizeof(bulk_head) - 1, MSG_NOSIGNAL);
		epoll_ctl(epoll, EPOLL_CTL_MOD, peer->fd, &event);
		stream(peer, file);
	} else if (memmem(text, (size_t)got, "close\r\n", 7) != NULL) {
		send(peer->fd, reply_close, sizeof(reply_close) - 1, MSG_NOSIGNAL);
		drop(peer);
	} else if (strncmp(text, "GET /large", 10) == 0) {
		if (send(peer->fd, reply_large, sizeof(reply_large), MSG_NOSIGNAL) < 0)
			drop(peer);
	} else if (send(peer->fd, reply_keep, sizeof(reply_keep) - 1, MSG_NOSIGNAL) < 0) {
		drop(peer);
	}
}

/* Answers with the question. */
static void echo(int fd)
{
	static uint8_t text[32][2048];
	static struct sockaddr_in from[32];
	static struct iovec part[32];
	static struct mmsghdr message[32];
	int got;

	for (unsigned i = 0; i < 32; i++) {
		part[i] = (struct iovec){text[i], sizeof(text[i])};
		message[i].msg_hdr = (struct msghdr){
			.msg_name = &from[i], .msg_namelen = sizeof(from[i]), .msg_iov = &part[i], .msg_iovlen = 1};
	}
	got = recvmmsg(fd, message, 32, MSG_DONTWAIT, NULL);
	for (int i = 0; i < got; i++)
		part[i].iov_len = message[i].msg_len;
	if (got > 0)
		sendmmsg(fd, message, (unsigned)got, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void receive_on(int epoll, struct sockaddr_in address)
{
	int room = 4 << 20;
	struct peer *peer = calloc(1, sizeof(*peer));

	if (peer == NULL)
		fail("calloc");
	peer->datagrams = 1;
	peer->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) < 0)
		setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	if (bind(peer->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("bind");
	watch(epoll, peer->fd, EPOLLIN, peer);
}

static void listen_on(int epoll, const char *host, const char *port)
{
	int one = 1;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	struct peer *peer = calloc(1, sizeof(*peer));

	if (peer == NULL)
		fail("calloc");
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		fail("the address to serve");
	peer->listening = 1;
	peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(peer->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(peer->fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(peer->fd, 4096) < 0)
		fail("listen");
	watch(epoll, peer->fd, EPOLLIN, peer);
	receive_on(epoll, address);
}

int serve(const char *host, int ports, char **port)
{
	struct epoll_event event[MAX_EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int file = memfd_create("bulk", MFD_CLOEXEC);

	if (file < 0 || ftruncate(file, BULK_FILE) < 0)
		fail("memfd");
	memcpy(reply_large, large_head, sizeof(large_head) - 1);
	memset(reply_large + sizeof(large_head) - 1, 'x', LARGE_BODY);
	while (ports-- > 0)
		listen_on(epoll, host, *port++);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int ready = epoll_wait(epoll, event, MAX_EVENTS, -1);

		for (int i = 0; i < ready; i++) {
			struct peer *peer = event[i].data.ptr;
			int fd;

			if (peer->datagrams) {
				echo(peer->fd);
				continue;
			}
			if (!peer->listening) {
				if (peer->streaming)
					stream(peer, file);
				else
					answer(peer, epoll, file);
				continue;
			}
			while ((fd = accept4(peer->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
				struct peer *fresh = calloc(1, sizeof(*fresh));

				if (fresh == NULL)
					fail("calloc");
				fresh->fd = fd;
				watch(epoll, fd, EPOLLIN, fresh);
			}
		}
	}
}
