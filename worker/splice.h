/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving bulk without copying it: the kernel passes pages from one socket to the other through a pipe. Each pipe is
 * worth two descriptors and what it can hold, so there are few; a direction that gets none goes on copying.
 */
#ifndef FAIRLEAD_SPLICE_H
#define FAIRLEAD_SPLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pipe {
	int fd[2];
	size_t held; /* bytes */
	struct pipe *next;
};

/* NULL: all are in use, or the host has none to give. */
struct pipe *pipe_take(void);

/* NULL is allowed. */
void pipe_give_back(struct pipe *pipe);

/* Fills an empty pipe from a socket; what splice(2) returns. */
ssize_t pipe_fill(struct pipe *pipe, int from);

/* Empties it into a socket as far as that goes. */
ssize_t pipe_drain(struct pipe *pipe, int to);

void pipes_free(void);

#endif
