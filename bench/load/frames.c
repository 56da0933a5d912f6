/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames that a BPF program makes, sent from an interface as if a network card had brought them to the other end.
 *
 * PROGRAM and MAP are inherited descriptors (see bench/net/machines.bpf.c). One system call runs the program until a
 * timer interrupts it, for each call costs tens of milliseconds; the program sends nothing while WINDOW frames are
 * under way, so that no queue overflows between here and where frames are counted.
 */
#include "load.h"

#include <errno.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define FRAME 60
#define PATIENCE_NS 1000000000u
#define LIVE_FRAMES (1u << 1) /* BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18 */

struct counters { /* as in machines.bpf.c */
	uint64_t window, flows, sent, first_ns, arrived, last_ns;
};

static void interrupt(int number)
{
	(void)number;
}

static void send_frames(int program, unsigned interface, double seconds)
{
	static uint8_t frame[FRAME];
	struct xdp_md context = {.data_end = sizeof(frame), .ingress_ifindex = interface};
	struct sigaction alarm = {.sa_handler = interrupt};
	struct itimerval timer = {.it_value = {.tv_sec = (time_t)seconds,
					       .tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)}};
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = (uint32_t)program;
	attr.test.data_in = (uint64_t)(uintptr_t)frame;
	attr.test.data_size_in = sizeof(frame);
	attr.test.ctx_in = (uint64_t)(uintptr_t)&context;
	attr.test.ctx_size_in = sizeof(context);
	attr.test.repeat = UINT32_MAX;
	attr.test.flags = LIVE_FRAMES;
	sigaction(SIGALRM, &alarm, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	if (syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attr, sizeof(attr)) < 0 && errno != EINTR)
		fail("BPF_PROG_TEST_RUN");
}

int run_frames(int program, int map, unsigned interface, double seconds, uint64_t flows, uint64_t window)
{
	volatile struct counters *counters = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
						  map, 0);
	uint64_t seen, heard;

	if (counters == MAP_FAILED)
		fail("mmap");
	counters->sent = counters->arrived = counters->first_ns = counters->last_ns = 0;
	counters->flows = flows;
	counters->window = window;
	send_frames(program, interface, seconds);
	for (seen = 0, heard = now_ns(); counters->arrived < counters->sent && now_ns() < heard + PATIENCE_NS; usleep(1000))
		if (counters->arrived != seen) {
			seen = counters->arrived;
			heard = now_ns();
		}
	printf("{\"done\": %llu, \"errors\": 0, \"lost\": %llu, \"seconds\": %.6f}\n", (unsigned long long)counters->arrived,
	       (unsigned long long)(counters->sent - counters->arrived),
	       (double)(counters->last_ns - counters->first_ns) / 1e9);
	return 0;
}
