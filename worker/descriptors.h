/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The budget of file descriptors. Accepting stops before the limit, while a few are left for the control socket,
 * and goes on when descriptors came back: clients wait in the kernel's queue instead of being refused, and the loop
 * never spins on EMFILE.
 */
#ifndef FAIRLEAD_DESCRIPTORS_H
#define FAIRLEAD_DESCRIPTORS_H

#include <stdbool.h>
#include <stdint.h>

/* Raises the soft limit to the hard one and counts what is open already. */
void descriptors_init(void);

void descriptors_took(uint32_t n);
void descriptors_gave_back(uint32_t n);

/* Whether a new flow, which needs two, may begin. */
bool descriptors_left(void);

/* How many of them datagram flows may take: connections keep the other half. */
uint32_t descriptors_for_datagrams(void);

/* The kernel itself said that there are none (another process may have taken the system's). */
void descriptors_exhausted(void);

/* Once per round: stops or resumes accepting. */
void descriptors_check(void);

/* When descriptors_check should look again although nothing happened; UINT64_MAX: no need. */
uint64_t descriptors_look_at(void);

#endif
