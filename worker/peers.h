/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The datagram flows by client, and by age. The table is bounded: when it is full the oldest flow gives way, and among
 * those first the ones whose client never went on after an answer, so that a flood of forged sources pushes out
 * itself before it pushes out conversations.
 */
#ifndef FAIRLEAD_PEERS_H
#define FAIRLEAD_PEERS_H

#include "batch.h"
#include "flow.h"

void peers_init(void);

/* The flow that this datagram belongs to, NULL: none. *hash is to be given to peers_add. */
struct flow *peers_find(const struct datagram *datagram, uint32_t *hash);

/* flow->datagram is filled in. */
void peers_add(struct flow *flow);
void peers_remove(struct flow *flow);

/* It is the youngest of its kind again. */
void peers_touch(struct flow *flow);

/* Ends the oldest flow other than `spared` (which may be NULL), counted; false when there is none. */
bool peers_evict(struct flow *spared);

/* Whether one must give way before another is added. */
bool peers_full(void);

#endif
