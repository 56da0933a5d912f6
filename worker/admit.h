/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a new flow may begin: address list, limits of the service, limits of its source. */
#ifndef FAIRLEAD_ADMIT_H
#define FAIRLEAD_ADMIT_H

#include "store.h"

/*
 * Reserves a place in the service's and the source's limits; on a refusal nothing stays reserved. *source is the row
 * to give to source_leave.
 */
enum reason admit(struct service *service, const struct fl_address *client, uint32_t *source);

/* The same in two steps, where the client is known only after it has spoken. The first reserves a place. */
enum reason admit_somebody(struct service *service);
enum reason admit_client(struct service *service, const struct fl_address *client, uint32_t *source);

/* Gives back what admit, or admit_somebody, reserved for a flow that never came to be. */
void admit_undo(struct service *service, uint32_t source);

#endif
