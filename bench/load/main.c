/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load for the benchmark and for tests: servers that cost little, and clients that measure.
 *
 *   load serve HOST PORT...                             answer until killed
 *   load connect HOST PORT SECONDS CONCURRENCY          connect, one request, close; again at once
 *   load requests HOST PORT SECONDS CONNECTIONS BODY    the next request on a connection as soon as it has its reply
 *   load rate HOST PORT SECONDS CONNECTIONS PER_SECOND  requests at a fixed rate on open connections
 *   load bulk HOST PORT SECONDS STREAMS                 read as fast as it comes
 *   load hold HOST PORT CONNECTIONS                     one request each, then idle until stdin ends
 *   load storm HOST PORT CONNECTIONS                    all connect at once, one request each
 *   load datagrams HOST PORT SECONDS CLIENTS WINDOW     UDP: so many questions of each client wait for their answers
 *   load echo NAME PORT                                 UDP: answer with the name and the question until killed
 *   load steady HOST PORT PER_SECOND FLOWS              UDP: ask at a fixed rate until stdin ends; what was lost
 *   load flood HOST PORT PER_SECOND COUNT FROM          SYNs from FROM and the 65535 addresses after it
 *   load frames PROGRAM MAP INTERFACE SECONDS FLOWS WINDOW  frames that a BPF program makes; see frames.c
 *
 * BODY is 64 or 1024 bytes; `rate` takes it, too, as a last argument.
 *
 * Results are one line of JSON on stdout.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOURCES 16
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int bound_socket(struct target *target, int flags)
{
	int one = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	struct sockaddr_in source = {.sin_family = AF_INET};

	if (fd < 0)
		fail("socket");
	/* Several sources: one alone would run out of ports while old connections are in TIME_WAIT. */
	source.sin_addr.s_addr = (target->address.sin_addr.s_addr & htonl(0xffff0000u)) |
				 htonl(0x101u + target->next_source++ % SOURCES);
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&source, sizeof(source)) < 0)
		fail("bind");
	return fd;
}

int dial(struct target *target)
{
	int fd = bound_socket(target, SOCK_NONBLOCK);

	if (connect(fd, (struct sockaddr *)&target->address, sizeof(target->address)) < 0 && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

int dial_wait(struct target *target)
{
	int fd = bound_socket(target, 0);

	if (connect(fd, (struct sockaddr *)&target->address, sizeof(target->address)) < 0)
		fail("connect");
	return fd;
}

void watch(int epoll, int fd, uint32_t events, void *what)
{
	struct epoll_event event = {.events = events, .data.ptr = what};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		fail("epoll_ctl");
}

struct samples samples_new(uint64_t room)
{
	struct samples samples = {.value = malloc(room * sizeof(uint64_t)), .room = room};

	if (samples.value == NULL)
		fail("malloc");
	return samples;
}

void samples_add(struct samples *samples, uint64_t ns)
{
	if (samples->count < samples->room)
		samples->value[samples->count] = ns;
	samples->count++;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

void samples_print(struct samples *samples)
{
	static const double quantile[] = {0.5, 0.9, 0.99, 0.999};
	static const char *const name[] = {"p50_us", "p90_us", "p99_us", "p999_us"};
	uint64_t kept = samples->count < samples->room ? samples->count : samples->room;

	if (kept == 0)
		return;
	qsort(samples->value, kept, sizeof(uint64_t), by_value);
	for (unsigned i = 0; i < sizeof(name) / sizeof(name[0]); i++)
		printf(", \"%s\": %.3f", name[i], (double)samples->value[(uint64_t)(quantile[i] * (double)(kept - 1))] / 1e3);
	printf(", \"max_us\": %.3f", (double)samples->value[kept - 1] / 1e3);
}

static struct exchange exchange_of(const char *body)
{
	return body != NULL && atoi(body) == LARGE_BODY ? exchange_large : exchange_keep;
}

int main(int argc, char **argv)
{
	struct target target = {.address.sin_family = AF_INET};
	struct rlimit files;

	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_TIMERSLACK, 1);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	if (argc >= 4 && strcmp(argv[1], "serve") == 0)
		return serve(argv[2], argc - 3, argv + 3);
	if (argc == 4 && strcmp(argv[1], "echo") == 0)
		return run_echo(argv[2], atoi(argv[3]));
	if (argc == 8 && strcmp(argv[1], "frames") == 0)
		return run_frames(atoi(argv[2]), atoi(argv[3]), (unsigned)atoi(argv[4]), atof(argv[5]),
				  strtoull(argv[6], NULL, 10), strtoull(argv[7], NULL, 10));
	if (argc >= 5 && inet_pton(AF_INET, argv[2], &target.address.sin_addr) == 1) {
		target.address.sin_port = htons((uint16_t)atoi(argv[3]));
		if (argc == 6 && strcmp(argv[1], "connect") == 0)
			return run_connect(&target, atof(argv[4]), atoi(argv[5]));
		if (argc == 7 && strcmp(argv[1], "requests") == 0)
			return run_requests(&target, atof(argv[4]), atoi(argv[5]), exchange_of(argv[6]));
		if ((argc == 7 || argc == 8) && strcmp(argv[1], "rate") == 0)
			return run_rate(&target, atof(argv[4]), atoi(argv[5]), atof(argv[6]), exchange_of(argv[7]));
		if (argc == 6 && strcmp(argv[1], "bulk") == 0)
			return run_bulk(&target, atof(argv[4]), atoi(argv[5]));
		if (argc == 5 && strcmp(argv[1], "storm") == 0)
			return run_storm(&target, atoi(argv[4]));
		if (argc == 7 && strcmp(argv[1], "datagrams") == 0)
			return run_datagrams(&target, atof(argv[4]), atoi(argv[5]), atoi(argv[6]));
		if (argc == 6 && strcmp(argv[1], "steady") == 0)
			return run_steady(&target, atof(argv[4]), atoi(argv[5]));
		if (argc == 7 && strcmp(argv[1], "flood") == 0)
			return run_flood(&target, atof(argv[4]), atol(argv[5]), argv[6]);
		if (argc == 5 && strcmp(argv[1], "hold") == 0)
			return run_hold(&target, atoi(argv[4]));
	}
	fprintf(stderr, "usage: load serve HOST PORT... | echo NAME PORT | connect|requests|rate|bulk|hold|storm|datagrams|steady|flood HOST PORT ... (see bench/load/main.c)\n");
	return 2;
}
