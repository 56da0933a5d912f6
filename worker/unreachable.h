/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ICMP port unreachable, which is to a UDP client what an RST is to a TCP client (RFC 792; RFC 4443 section 3.1). Needs
 * CAP_NET_RAW; without it clients hear nothing.
 */
#ifndef FAIRLEAD_UNREACHABLE_H
#define FAIRLEAD_UNREACHABLE_H

#include <stddef.h>
#include <stdint.h>

#include "abi.h"

/* Tells `peer` that nobody takes what it sent to `local`: `length` bytes. A bounded number of times a second. */
void unreachable_tell(const struct fl_address *peer, uint32_t scope, const struct fl_address *local, size_t length);

void unreachable_close(void);

#endif
