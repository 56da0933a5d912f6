/* SPDX-License-Identifier: Apache-2.0 */
/* The wheel: a ring of lists, one per tick, and a bitmap of those that are not empty. */
#include "timer.h"

#include <stdbool.h>

#define TICK_MS 16u
#define SLOTS 4096u

static struct link slots[SLOTS];
static uint64_t occupied[SLOTS / 64]; /* a set bit may be stale (its list emptied), a clear one never lies */
static uint64_t done_tick;	      /* all ticks up to this one have fired */

void timers_init(uint64_t now_ms)
{
	for (unsigned i = 0; i < SLOTS; i++)
		link_init(&slots[i]);
	done_tick = now_ms / TICK_MS;
}

void timer_arm(struct timer *timer, uint64_t now_ms, uint64_t at_ms)
{
	uint64_t tick = (at_ms + TICK_MS - 1) / TICK_MS, first = done_tick + 1, last = now_ms / TICK_MS + SLOTS - 2;

	if (last > done_tick + SLOTS - 1)
		last = done_tick + SLOTS - 1;
	if (tick < first)
		tick = first;
	if (tick > last)
		tick = last;
	link_remove(&timer->link);
	link_append(&slots[tick % SLOTS], &timer->link);
	occupied[tick % SLOTS / 64] |= 1ull << (tick % 64);
	timer->at_ms = tick * TICK_MS;
}

void timer_stop(struct timer *timer)
{
	link_remove(&timer->link);
	timer->at_ms = UINT64_MAX;
}

static void run_slot(unsigned slot, void (*fire)(struct timer *))
{
	struct link due;

	occupied[slot / 64] &= ~(1ull << (slot % 64));
	link_take(&slots[slot], &due);
	while (!link_alone(&due)) {
		struct timer *timer = container_of(due.next, struct timer, link);

		timer_stop(timer);
		fire(timer);
	}
}

void timers_run(uint64_t now_ms, void (*fire)(struct timer *))
{
	uint64_t tick = now_ms / TICK_MS, from = done_tick;

	if (tick <= from)
		return;
	if (tick - from > SLOTS) /* after a long stop (SIGSTOP, a paused guest) every list is due once */
		from = tick - SLOTS;
	done_tick = tick; /* what is armed from here on lands behind the ticks that fire now */
	while (from++ < tick)
		if (occupied[from % SLOTS / 64] & 1ull << (from % 64))
			run_slot(from % SLOTS, fire);
}

int timers_wait(uint64_t now_ms)
{
	uint64_t tick = done_tick + 1;

	while (tick <= done_tick + SLOTS) {
		uint64_t word = occupied[tick % SLOTS / 64] >> (tick % 64);

		if (word == 0) {
			tick += 64 - tick % 64;
			continue;
		}
		tick += (unsigned)__builtin_ctzll(word);
		if (tick > done_tick + SLOTS)
			break;
		if (!link_alone(&slots[tick % SLOTS]))
			return tick * TICK_MS > now_ms ? (int)(tick * TICK_MS - now_ms) : 0;
		occupied[tick % SLOTS / 64] &= ~(1ull << (tick % 64));
		tick++;
	}
	return -1;
}
