/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every part of the worker shares: the process itself, its clock and its counters.
 *
 * One thread, one epoll instance. Whatever an epoll event can mean is told by a tag in the low bits of the
 * pointer it carries, so that the hot path needs no lookup.
 */
#ifndef FAIRLEAD_WORKER_H
#define FAIRLEAD_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum tag { TAG_CLIENT, TAG_SERVER, TAG_LISTENER, TAG_CONTROL_LISTENER, TAG_CONTROL, TAG_DATAGRAM_LISTENER,
	   TAG_DATAGRAM, TAG_MASK = 7 };

struct worker {
	uint64_t now_ms; /* CLOCK_MONOTONIC, read once per loop */
	struct fl_shm *shm;
	struct fl_worker_row *row;
	int epoll;
	int memfd; /* -1 until FL_ATTACH: counters live in private memory until then */
	uint32_t slot;
	bool quit;
	bool draining;
	uint64_t drain_deadline_ms;
};

extern struct worker worker;

/* Adds fd to epoll; false when the kernel has no memory for it. */
bool watch(int fd, void *what, enum tag tag, uint32_t events);

/* A counter that the agent reads while we write: one plain store, never torn. */
static inline void count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static inline void count32(uint32_t *counter, uint32_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/* Numbers of model/reasons.py RejectReason. */
enum reason {
	REASON_NONE = -1,
	NO_SERVER = 0,
	CONNECT_FAILED,
	SERVICE_FULL,
	SERVERS_FULL,
	DENIED,
	SOURCE_CONNECTIONS,
	SOURCE_RATE,
	NO_DESCRIPTORS,
	NO_MEMORY,
	IDLE_TIMEOUT,
	HALF_CLOSE_TIMEOUT,
	SERVER_RESET,
	SOURCE_TABLE_FULL,
	FLOW_EVICTED,
	PROXY_MALFORMED,
	PROXY_TIMEOUT,
	QUEUE_TIMEOUT,
};

#endif
