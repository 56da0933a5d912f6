/* SPDX-License-Identifier: Apache-2.0 */
/* Which client addresses may connect: sorted, disjoint, inclusive ranges. */
#ifndef FAIRLEAD_ACL_H
#define FAIRLEAD_ACL_H

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

bool acl_valid(const struct fl_range *range, uint32_t ranges);
bool acl_allows(const struct fl_range *range, uint32_t ranges, const uint8_t ip[16]);

#endif
