/* SPDX-License-Identifier: Apache-2.0 */
/* Attaching the shared memory, repairing what a killed worker left, and the bounded locks. */
#define _GNU_SOURCE
#include "shm.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "siphash.h"

#define STEAL_AFTER_NS 1000000u

static bool is_private;

static void use(struct fl_shm *shm, uint32_t slot)
{
	worker.shm = shm;
	worker.slot = slot;
	worker.row = &shm->worker[slot];
}

bool shm_private(void)
{
	void *memory = mmap(NULL, sizeof(struct fl_shm), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return false;
	is_private = true;
	use(memory, worker.slot);
	return true;
}

void total_subtract(uint32_t *total, uint32_t n)
{
	uint32_t old = __atomic_load_n(total, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(total, &old, old > n ? old - n : 0, false, __ATOMIC_RELAXED,
					    __ATOMIC_RELAXED))
		;
}

/*
 * Reading a hole of a memfd through a mapping allocates the page, so the repair walks only those parts of the file
 * that hold data: a row is 11 MB, of which a usual worker touches a few pages. `first` is the figure in the first
 * item of an array: where an item straddles two pages, only the page of the figure counts.
 */
static void each_touched(int fd, struct fl_shm *shm, const void *first, size_t item, size_t items,
			 void (*visit)(struct fl_shm *shm, uint32_t slot, size_t i), uint32_t slot)
{
	off_t start = (const char *)first - (const char *)shm, end = start + (off_t)(item * items), at = start;

	while (at < end && (at = lseek(fd, at, SEEK_DATA)) >= 0 && at < end) {
		off_t hole = lseek(fd, at, SEEK_HOLE);
		size_t i = ((size_t)(at - start) + item - 1) / item;

		for (; i < items && start + (off_t)(i * item) < hole; i++)
			visit(shm, slot, i);
		at = hole;
	}
}

static void repair_service(struct fl_shm *shm, uint32_t slot, size_t i)
{
	struct fl_service_row *row = &shm->worker[slot].service[i];

	if (row->active)
		total_subtract(&shm->service[i].active, row->active);
	if (row->queued)
		total_subtract(&shm->service[i].queued, row->queued);
	row->active = row->queued = 0;
}

static void repair_server(struct fl_shm *shm, uint32_t slot, size_t i)
{
	struct fl_server_row *row = &shm->worker[slot].server[i];

	if (row->active)
		total_subtract(&shm->server[i].active, row->active);
	row->active = 0;
}

/* The one lock it may have held is taken over by whoever needs it next. */
static void repair_source(struct fl_shm *shm, uint32_t slot, size_t i)
{
	shm->source[i].held[slot] = 0;
}

static void repair(int fd, struct fl_shm *shm, uint32_t slot)
{
	struct fl_worker_row *row = &shm->worker[slot];

	each_touched(fd, shm, &row->service[0].active, sizeof(row->service[0]), FL_MAX_SERVICES, repair_service, slot);
	each_touched(fd, shm, &row->server[0].active, sizeof(row->server[0]), FL_MAX_SERVERS, repair_server, slot);
	each_touched(fd, shm, &shm->source[0].held[slot], sizeof(shm->source[0]), FL_SOURCES, repair_source, slot);
	row->active = 0;
}

/* "(NAME) STATE" of a process out of /proc; false when there is none. */
static bool status_of(uint32_t pid, char name[32], char *state)
{
	char path[48], text[128] = {0};
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%u/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	return n > 0 && sscanf(text, "%*u (%31[^)]) %c", name, state) == 2;
}

/*
 * A pid is reused sooner or later, so only a process of our own name counts as a live worker; and a zombie, which
 * nobody may ever reap where process 1 does not, moves no bytes any more.
 */
static bool alive(uint32_t pid)
{
	char theirs[32], ours[32], state, mine;

	return pid != 0 && pid != (uint32_t)getpid() && status_of(pid, theirs, &state) &&
	       status_of((uint32_t)getpid(), ours, &mine) && strcmp(theirs, ours) == 0 && state != 'Z' && state != 'X';
}

int shm_attach(int fd, uint32_t slot)
{
	struct fl_shm *shm;
	struct stat status;
	void *memory;

	if (slot >= FL_MAX_WORKERS || fstat(fd, &status) < 0 || status.st_size < (off_t)sizeof(*shm))
		return EINVAL;
	memory = mmap(NULL, sizeof(*shm), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return errno;
	shm = memory;
	if (shm->magic != FL_SHM_MAGIC || shm->abi != FL_ABI_VERSION || shm->size != sizeof(*shm) ||
	    alive(shm->worker[slot].pid)) {
		int error = shm->magic == FL_SHM_MAGIC && shm->abi == FL_ABI_VERSION && shm->size == sizeof(*shm)
				    ? EBUSY
				    : EINVAL;

		munmap(memory, sizeof(*shm));
		return error;
	}
	if (shm->worker[slot].pid != 0)
		repair(fd, shm, slot);
	munmap(worker.shm, sizeof(*shm));
	is_private = false;
	worker.memfd = fd;
	use(shm, slot);
	__atomic_store_n(&worker.row->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
	return 0;
}

void shm_detach(void)
{
	if (!is_private)
		__atomic_store_n(&worker.row->pid, 0, __ATOMIC_RELEASE);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void bucket_lock(uint32_t *lock)
{
	uint32_t self = worker.slot + 1, owner = 0, watched = 0;
	uint64_t since = 0;

	while (!__atomic_compare_exchange_n(lock, &owner, self, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
		if (owner != watched) {
			watched = owner;
			since = now_ns();
		} else if (now_ns() - since > STEAL_AFTER_NS) {
			continue; /* `owner` is the dead holder: the next exchange takes the lock from it */
		}
		sched_yield();
		owner = 0;
	}
}

void bucket_unlock(uint32_t *lock)
{
	uint32_t self = worker.slot + 1;

	/* Not ours any more when it was stolen meanwhile. */
	__atomic_compare_exchange_n(lock, &self, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

uint32_t bucket_of(const uint64_t seed[2], uint32_t service, const uint8_t ip[16])
{
	uint8_t message[20];

	memcpy(message, &service, 4);
	memcpy(message + 4, ip, 16);
	return (uint32_t)(siphash13(seed, message, sizeof(message)) & (FL_SOURCES - 1)) & ~(BUCKET - 1);
}
