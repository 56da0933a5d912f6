/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two loops of a Maglev table, for the agent: filling one walks size * ln(size) steps, and ten thousand services
 * have as many tables. `policy/maglev.py` says what they do and why; a test compares the two slot by slot.
 */
#include <stdint.h>

#include "../worker/siphash.h"

#define FREE 0xffff /* an owner that no member has: there are at most 65535 */

enum { ORPHAN, KEPT, GIVEN };

void fairlead_populate(uint32_t *at, const uint32_t *skip, const uint32_t *order, uint32_t period, uint32_t size,
		       uint16_t *owner);
void fairlead_reassign(const uint16_t *base, uint8_t *state, uint32_t size, uint64_t seed, uint16_t *table,
		       uint32_t *work);

/*
 * Members take turns (`order`, again and again) to claim the first free slot in their order.
 * at: where each looks next, its offset to begin with. owner: `size` slots, all FREE.
 */
void fairlead_populate(uint32_t *at, const uint32_t *skip, const uint32_t *order, uint32_t period, uint32_t size,
		       uint16_t *owner)
{
	for (uint32_t turn = 0, left = size; left > 0; left--) {
		uint32_t member = order[turn], slot = at[member];

		while (owner[slot] != FREE) {
			slot += skip[member];
			if (slot >= size)
				slot -= size;
		}
		owner[slot] = (uint16_t)member;
		at[member] = slot;
		turn = turn + 1 < period ? turn + 1 : 0;
	}
}

/* x with x * scale = 1 modulo the prime `size` (Fermat). */
static uint64_t inverse_of(uint64_t scale, uint64_t size)
{
	uint64_t found = 1;

	for (uint64_t rest = size - 2; rest > 0; rest >>= 1, scale = scale * scale % size)
		if (rest & 1)
			found = found * scale % size;
	return found;
}

/*
 * Give away the slots that their owners do not have, level by level.
 * state: of each slot, KEPT or ORPHAN; at least one is KEPT. table: a copy of `base`. work: room for `size` numbers.
 */
void fairlead_reassign(const uint16_t *base, uint8_t *state, uint32_t size, uint64_t seed, uint16_t *table,
		       uint32_t *work)
{
	uint32_t givers = 0, orphans = 0, listed;

	for (uint32_t slot = 0; slot < size; slot++) {
		if (state[slot] == KEPT)
			work[givers++] = slot;
		else
			work[size - ++orphans] = slot; /* they share the room: each slot is one or the other */
	}
	listed = orphans;
	for (uint64_t level = 1; orphans > 0; level++) {
		uint64_t chance = splitmix64(seed, level);
		uint64_t scale = (chance >> 32) % (size - 1) + 1, shift = (uint32_t)chance % size;

		if (orphans < givers) {
			uint64_t inverse = inverse_of(scale, size);
			uint32_t *waiting = work + size - listed, left = 0;

			for (uint32_t i = listed; i-- > 0;) {
				uint32_t slot = waiting[i];
				uint64_t giver = (slot + size - shift) * inverse % size;

				if (state[slot] == ORPHAN && state[giver] == KEPT) {
					table[slot] = base[giver];
					state[slot] = GIVEN;
				} else if (state[slot] == ORPHAN) {
					work[size - ++left] = slot;
				}
			}
			orphans = listed = left;
		} else {
			for (uint32_t i = 0; i < givers; i++) {
				uint64_t slot = (work[i] * scale + shift) % size;

				if (state[slot] == ORPHAN) {
					table[slot] = base[work[i]];
					state[slot] = GIVEN;
					orphans--;
				}
			}
		}
	}
}
