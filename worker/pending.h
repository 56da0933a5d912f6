/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes read from one side of a flow that the other side's socket did not take. They are kept in a buffer of their
 * exact size until written; meanwhile nothing more is read from that side.
 */
#ifndef FAIRLEAD_PENDING_H
#define FAIRLEAD_PENDING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pending {
	uint32_t offset, length;
	uint8_t data[];
};

/* NULL: no memory. */
struct pending *pending_new(const uint8_t *data, size_t length);

/* NULL is allowed. */
void pending_free(struct pending *pending);

/* Bytes in all buffers. */
size_t pending_total(void);

#endif
