/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A timer wheel. Timers are lazy: activity only moves a time stamp in the flow; when the timer fires, the flow
 * computes its real deadline and arms itself again. So moving a byte costs no list operation.
 */
#ifndef FAIRLEAD_TIMER_H
#define FAIRLEAD_TIMER_H

#include <stdint.h>

#include "list.h"

struct timer {
	struct link link;
	uint64_t at_ms; /* when it will fire, to about one tick; UINT64_MAX: not armed */
};

void timers_init(uint64_t now_ms);

static inline void timer_init(struct timer *timer)
{
	link_init(&timer->link);
	timer->at_ms = UINT64_MAX;
}

/* Fires at or shortly after at_ms, or earlier when that is beyond the wheel's horizon (about a minute). */
void timer_arm(struct timer *timer, uint64_t now_ms, uint64_t at_ms);

void timer_stop(struct timer *timer);

/* Calls fire for each timer that is due, after disarming it. */
void timers_run(uint64_t now_ms, void (*fire)(struct timer *));

/* Milliseconds until the next timer may be due, -1 when none is armed. */
int timers_wait(uint64_t now_ms);

#endif
