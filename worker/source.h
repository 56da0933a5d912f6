/* SPDX-License-Identifier: Apache-2.0 */
/* Limits per client address, or network: connections held and new ones per second. Exact over all workers. */
#ifndef FAIRLEAD_SOURCE_H
#define FAIRLEAD_SOURCE_H

#include "store.h"

/*
 * Admits one more connection of the client, or says why not. On REASON_NONE *row is the row to give to source_leave, or 0
 * when there was no room to track this source (counted as SOURCE_TABLE_FULL; the limits fail open).
 */
enum reason source_enter(struct service *service, const struct fl_address *client, uint32_t *row);

void source_leave(uint32_t row);

#endif
