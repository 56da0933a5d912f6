/* SPDX-License-Identifier: Apache-2.0 */
/* One request: checked for its length, then carried out. */
#ifndef FAIRLEAD_REQUEST_H
#define FAIRLEAD_REQUEST_H

#include "store.h"

/*
 * Carries out a request of one answer (all but those of answer.h). `fd` is the descriptor that came along or -1;
 * it is set to -1 when the request keeps or closes it.
 */
struct verdict request_run(const struct fl_header *message, size_t length, int *fd);

#endif
