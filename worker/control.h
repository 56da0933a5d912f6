/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: one agent at a time, and its death changes nothing. */
#ifndef FAIRLEAD_CONTROL_H
#define FAIRLEAD_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "worker.h"

/* Binds and listens (mode 0600). */
bool control_bind(const char *path);

/* Takes over an inherited descriptor: a listening socket, or the agent's connection itself. */
bool control_inherit(int fd);

/* epoll told something; acted upon in control_run, after all flows had their events. */
void control_event(enum tag tag, uint32_t events);

/* Receives and answers a bounded number of requests. */
void control_run(void);

/* Closes, and removes the path if it is still ours. */
void control_close(void);

#endif
