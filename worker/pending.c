/* SPDX-License-Identifier: Apache-2.0 */
/* The buffers and their sum, by which the relay bounds what slow readers can cost. */
#include "pending.h"

#include <stdlib.h>
#include <string.h>

static size_t total;

struct pending *pending_new(const uint8_t *data, size_t length)
{
	struct pending *pending = malloc(sizeof(*pending) + length);

	if (pending == NULL)
		return NULL;
	*pending = (struct pending){.length = (uint32_t)length};
	memcpy(pending->data, data, length);
	total += length;
	return pending;
}

void pending_free(struct pending *pending)
{
	if (pending)
		total -= pending->length;
	free(pending);
}

size_t pending_total(void)
{
	return total;
}
