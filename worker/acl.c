/* SPDX-License-Identifier: Apache-2.0 */
/* Allow and deny lists were merged into plain ranges by the agent: here it is one binary search. */
#include "acl.h"

#include <string.h>

bool acl_valid(const struct fl_range *range, uint32_t ranges)
{
	for (uint32_t i = 0; i < ranges; i++)
		if (memcmp(range[i].low, range[i].high, 16) > 0 ||
		    (i > 0 && memcmp(range[i - 1].high, range[i].low, 16) >= 0))
			return false;
	return true;
}

bool acl_allows(const struct fl_range *range, uint32_t ranges, const uint8_t ip[16])
{
	uint32_t low = 0, high = ranges;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (memcmp(ip, range[middle].low, 16) < 0)
			high = middle;
		else if (memcmp(ip, range[middle].high, 16) > 0)
			low = middle + 1;
		else
			return true;
	}
	return false;
}
