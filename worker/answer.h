/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers: records, then FL_DONE. They are produced one by one as the agent reads them, so a dump of any size needs
 * no memory and never blocks the flows.
 */
#ifndef FAIRLEAD_ANSWER_H
#define FAIRLEAD_ANSWER_H

#include "store.h"

struct answer {
	uint16_t type;
	uint32_t seq;
	uint32_t stage, next;		 /* the next object of a dump, or flow */
	const struct listener *listener; /* the next one; no request can change the set before the answer is out */
	struct fl_flows flows;
	uint32_t sent; /* flows */
	struct fl_done done;
};

enum progress { ANSWERED, BLOCKED, DISCONNECTED };

/* An answer of FL_DONE alone. */
void answer_verdict(struct answer *answer, const struct fl_header *request, struct verdict verdict);

/* True for HELLO, HANDOVER, DUMP and FLOWS, which have records; begins the answer. */
bool answer_begin(struct answer *answer, const struct fl_header *request, size_t length);

/* Sends on. */
enum progress answer_go_on(struct answer *answer, int socket);

#endif
