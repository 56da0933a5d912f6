/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of pipes. One that still holds something is closed: nobody else may get it. */
#define _GNU_SOURCE
#include "splice.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "descriptors.h"

#define PIPES_MAX 64u
#define PIPE_SIZE (1 << 20) /* what an ordinary user may have */

static struct pipe *idle;
static unsigned made;

static void destroy(struct pipe *pipe)
{
	close(pipe->fd[0]);
	close(pipe->fd[1]);
	descriptors_gave_back(2);
	free(pipe);
	made--;
}

struct pipe *pipe_take(void)
{
	struct pipe *pipe = idle;

	if (pipe) {
		idle = pipe->next;
		return pipe;
	}
	if (made == PIPES_MAX || !descriptors_left() || (pipe = calloc(1, sizeof(*pipe))) == NULL)
		return NULL;
	if (pipe2(pipe->fd, O_NONBLOCK | O_CLOEXEC) < 0) {
		free(pipe);
		return NULL;
	}
	fcntl(pipe->fd[0], F_SETPIPE_SZ, PIPE_SIZE);
	descriptors_took(2);
	made++;
	return pipe;
}

void pipe_give_back(struct pipe *pipe)
{
	if (pipe == NULL)
		return;
	if (pipe->held) {
		destroy(pipe);
		return;
	}
	pipe->next = idle;
	idle = pipe;
}

ssize_t pipe_fill(struct pipe *pipe, int from)
{
	ssize_t n = splice(from, NULL, pipe->fd[1], NULL, PIPE_SIZE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (n > 0)
		pipe->held += (size_t)n;
	return n;
}

ssize_t pipe_drain(struct pipe *pipe, int to)
{
	ssize_t n = splice(pipe->fd[0], NULL, to, NULL, pipe->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (n > 0)
		pipe->held -= (size_t)n;
	return n;
}

void pipes_free(void)
{
	while (idle) {
		struct pipe *pipe = idle;

		idle = pipe->next;
		destroy(pipe);
	}
}
