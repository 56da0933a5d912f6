/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fairlead-worker: moves the bytes of `forwarding: proxy`. It decides nothing: the agent says what to hold, and when
 * the agent is gone it goes on with what it was told last.
 *
 * A round of the loop: flows that used up their share last time, epoll events of flows and listeners, timers,
 * requests of the agent, descriptors. Requests come after all events, so that no event of a round can meet a
 * socket that a request has replaced in the same round.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "accept.h"
#include "control.h"
#include "datagram.h"
#include "describe.h"
#include "descriptors.h"
#include "flow.h"
#include "listener.h"
#include "peers.h"
#include "queue.h"
#include "relay.h"
#include "schedule.h"
#include "shm.h"
#include "unreachable.h"

#define EVENTS 256

struct worker worker = {.memfd = -1};

static uint64_t clock_ms(void)
{
	struct timespec t;

	/* COARSE: 4 ms are fine enough for every timer here, and it is cheap without a usable TSC too. */
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

bool watch(int fd, void *what, enum tag tag, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = (uintptr_t)what | tag};

	return epoll_ctl(worker.epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void dispatch(const struct epoll_event *event, uint64_t round)
{
	enum tag tag = event->data.u64 & TAG_MASK;
	void *what = (void *)(uintptr_t)(event->data.u64 & ~(uint64_t)TAG_MASK);

	switch (tag) {
	case TAG_CLIENT:
		relay_event(what, CLIENT, event->events);
		break;
	case TAG_SERVER:
		relay_event(what, SERVER, event->events);
		break;
	case TAG_LISTENER:
		accept_burst(what, round);
		break;
	case TAG_DATAGRAM_LISTENER:
		datagram_receive(what);
		break;
	case TAG_DATAGRAM:
		datagram_answered(what);
		break;
	default:
		control_event(tag, event->events);
		break;
	}
}

static int until(uint64_t at_ms)
{
	if (at_ms <= worker.now_ms)
		return 0;
	return at_ms - worker.now_ms > INT_MAX ? INT_MAX : (int)(at_ms - worker.now_ms);
}

static int wait_ms(void)
{
	int wait = relay_busy() ? 0 : timers_wait(worker.now_ms);
	uint64_t other = descriptors_look_at();

	if (queue_look_at() < other)
		other = queue_look_at();
	if (worker.draining && worker.drain_deadline_ms < other)
		other = worker.drain_deadline_ms;
	if (other != UINT64_MAX && (wait < 0 || until(other) < wait))
		wait = until(other);
	return wait;
}

static void check_drain(void)
{
	if (!worker.draining)
		return;
	if (worker.now_ms >= worker.drain_deadline_ms)
		flows_reset(NULL);
	if (flows_live() == 0)
		worker.quit = true;
}

static void loop(void)
{
	struct epoll_event events[EVENTS];
	uint64_t round = 1;

	for (; !worker.quit; round++) {
		int n = epoll_wait(worker.epoll, events, EVENTS, wait_ms());

		worker.now_ms = clock_ms();
		relay_ready();
		for (int i = 0; i < n; i++)
			dispatch(&events[i], round);
		datagram_flush();
		timers_run(worker.now_ms, relay_timer);
		queue_run();
		control_run();
		check_drain();
		flows_recycle();
		descriptors_check();
		worker.row->active = flows_live();
		count(&worker.row->loops, 1);
	}
}

static void end(void)
{
	listeners_close();
	flows_reset(NULL);
	flows_free();
	pipes_free();
	unreachable_close();
	store_free();
	worker.row->active = 0;
	worker.row->accepting = 0;
	shm_detach();
	control_close();
}

/* The agent commands, by message; a signal meant for its process group or terminal must not stop the flows. */
static void become_independent(void)
{
	static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};

	setsid();
	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		signal(ignored[i], SIG_IGN);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int fail(const char *what)
{
	fprintf(stderr, "fairlead-worker: %s: %s\n", what, strerror(errno));
	return 1;
}

static int usage(void)
{
	fprintf(stderr, "usage: fairlead-worker --control PATH [--slot N] | --control-fd FD [--slot N] | --abi\n");
	return 2;
}

static bool number(const char *text, long max, long *value)
{
	char *rest;

	errno = 0;
	*value = strtol(text, &rest, 10);
	return errno == 0 && rest != text && *rest == '\0' && *value >= 0 && *value <= max;
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	long fd = -1, slot = 0;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--abi") == 0) {
			describe_abi();
			return fflush(stdout) == 0 ? 0 : 1;
		}
		if (i + 1 == argc)
			return usage();
		if (strcmp(argv[i], "--control") == 0)
			path = argv[++i];
		else if (strcmp(argv[i], "--control-fd") != 0 && strcmp(argv[i], "--slot") != 0)
			return usage();
		else if (!number(argv[i + 1], argv[i][2] == 's' ? FL_MAX_WORKERS - 1 : INT_MAX, argv[i][2] == 's' ? &slot : &fd))
			return usage();
		else
			i++;
	}
	if ((path == NULL) == (fd < 0))
		return usage();

	become_independent();
	worker.slot = (uint32_t)slot;
	worker.now_ms = clock_ms();
	timers_init(worker.now_ms);
	schedule_init();
	peers_init();
	worker.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (worker.epoll < 0 || !shm_private())
		return fail("cannot set up");
	if (path ? !control_bind(path) : !control_inherit((int)fd))
		return fail(path ? path : "control descriptor");
	descriptors_init();
	loop();
	end();
	return 0;
}
