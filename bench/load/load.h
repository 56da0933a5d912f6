/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the load generator share. Every function that returns int returns the exit code of the program. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <netinet/in.h>
#include <stdint.h>

#define REPLY_BODY 64
#define LARGE_BODY 1024
#define MAX_EVENTS 256

struct target {
	struct sockaddr_in address;
	unsigned next_source; /* to A.B.x.y connections leave from A.B.1.1 .. A.B.1.SOURCES in turn */
};

struct samples { /* latencies in nanoseconds; those past the room are counted but not kept */
	uint64_t *value;
	uint64_t count;
	uint64_t room;
};

/* A request and what is the whole reply to it. */
struct exchange {
	const char *request;
	int reply_length;
};

int serve(const char *host, int ports, char **port);
int run_connect(struct target *target, double seconds, int concurrency);
int run_requests(struct target *target, double seconds, int connections, struct exchange exchange);
int run_rate(struct target *target, double seconds, int connections, double per_second, struct exchange exchange);
int run_bulk(struct target *target, double seconds, int streams);
int run_hold(struct target *target, int connections);
int run_storm(struct target *target, int connections);
int run_datagrams(struct target *target, double seconds, int clients, int window);
int run_frames(int program, int map, unsigned interface, double seconds, uint64_t flows, uint64_t window);
int run_echo(const char *name, int port);
int run_steady(struct target *target, double per_second, int flows);
int run_flood(struct target *target, double per_second, long count, const char *from);

uint64_t now_ns(void);
void fail(const char *what) __attribute__((noreturn));
int dial(struct target *target);	  /* a non-blocking socket on its way to the target */
int dial_wait(struct target *target); /* the same, connected and blocking */
void watch(int epoll, int fd, uint32_t events, void *what);
struct samples samples_new(uint64_t room);
void samples_add(struct samples *samples, uint64_t ns);
void samples_print(struct samples *samples);

/* What server and clients agree on. */
extern const char request_close[], request_bulk[];
extern const int reply_close_length;
extern const struct exchange exchange_keep, exchange_large;

#endif
