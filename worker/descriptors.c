/* SPDX-License-Identifier: Apache-2.0 */
/* Counting our own descriptors costs nothing; asking the kernel by failing would lose an accepted client. */
#include "descriptors.h"

#include <dirent.h>
#include <sys/resource.h>

#include "listener.h"
#include "worker.h"

#define SYSTEM_PAUSE_MS 100u /* after EMFILE or ENFILE although our own count has room */

static uint32_t used, limit, reserve;
static bool paused;
static uint64_t not_before_ms;

static uint32_t open_now(void)
{
	DIR *directory = opendir("/proc/self/fd");
	uint32_t n = 0;

	if (directory == NULL)
		return 16;
	while (readdir(directory))
		n++;
	closedir(directory);
	return n - 3; /* ".", ".." and the directory itself */
}

void descriptors_init(void)
{
	struct rlimit files = {1024, 1024};

	getrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_cur != files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
		getrlimit(RLIMIT_NOFILE, &files);
	}
	limit = files.rlim_cur > UINT32_MAX ? UINT32_MAX : (uint32_t)files.rlim_cur;
	reserve = limit / 4 < 32 ? limit / 4 : 32; /* listeners, the agent's connection, what it passes us */
	used = open_now();
	worker.row->descriptors_limit = limit;
}

void descriptors_took(uint32_t n)
{
	used += n;
}

void descriptors_gave_back(uint32_t n)
{
	used -= n;
}

bool descriptors_left(void)
{
	return used + 2 + reserve <= limit;
}

uint32_t descriptors_for_datagrams(void)
{
	return (limit - reserve) / 2;
}

void descriptors_exhausted(void)
{
	not_before_ms = worker.now_ms + SYSTEM_PAUSE_MS;
}

static bool may_resume(void)
{
	uint32_t some = limit / 32 < 2 ? 2 : limit / 32; /* so that accepting does not stop again at once */

	return worker.now_ms >= not_before_ms && used + some + reserve <= limit;
}

void descriptors_check(void)
{
	if (!paused && (!descriptors_left() || worker.now_ms < not_before_ms)) {
		paused = true;
		count(&worker.row->accept_pauses, 1);
		listeners_pause(true);
	} else if (paused && may_resume()) {
		paused = false;
		listeners_pause(false);
	}
	worker.row->descriptors_used = used;
	worker.row->descriptors_limit = limit;
	worker.row->accepting = !paused && !worker.draining;
}

uint64_t descriptors_look_at(void)
{
	return paused && worker.now_ms < not_before_ms ? not_before_ms : UINT64_MAX;
}
