/* SPDX-License-Identifier: Apache-2.0 */
/* The memory shared by all workers and the agent: counters, totals, per-source rows. */
#ifndef FAIRLEAD_SHM_H
#define FAIRLEAD_SHM_H

#include <stdbool.h>
#include <stdint.h>

#include "worker.h"

/* Private memory of the same shape, so that a worker counts before it is attached. */
bool shm_private(void);

/*
 * Maps fd and takes row `slot`, after taking what a dead predecessor held out of the totals. Returns 0 or an errno
 * value: EINVAL for a file that is not ours or of another ABI, EBUSY while another live worker has the row.
 * On success fd is kept.
 */
int shm_attach(int fd, uint32_t slot);

/* Gives the row back at exit. All flows are gone by then, so nothing of ours is left in the totals. */
void shm_detach(void);

/*
 * Locks of the shared tables guard one bucket each. They are bounded: a lock whose holder stays the same for a
 * millisecond belongs to a dead (or stopped) worker and is taken over. The worst a theft from a live holder can do
 * is one inexact count.
 */
void bucket_lock(uint32_t *lock);
void bucket_unlock(uint32_t *lock);

/* Takes n out of a shared total, never below zero. */
void total_subtract(uint32_t *total, uint32_t n);

#define BUCKET 16u /* rows of a shared table that one lock guards and one key may be in */

/* First row of the bucket of (service, ip). Keyed by the service's seed, so that clients cannot aim at a bucket. */
uint32_t bucket_of(const uint64_t seed[2], uint32_t service, const uint8_t ip[16]);

#endif
