/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of the ABI (IPv4 as ::ffff:a.b.c.d) from and to the kernel's. */
#ifndef FAIRLEAD_ADDRESS_H
#define FAIRLEAD_ADDRESS_H

#include <stdbool.h>
#include <sys/socket.h>

#include "abi.h"

/* Whether a message's address is well formed: family 4 or 6, and v4-mapped exactly when it is 4. */
bool address_valid(const struct fl_address *address);

bool address_equal(const struct fl_address *a, const struct fl_address *b);

/* 0.0.0.0, :: or port 0: the socket itself must be asked where a client connected to. */
bool address_wildcard(const struct fl_address *address);

/* Clears all but the first bits of an address; IPv4 has 96 bits in front. */
void address_mask(uint8_t ip[16], unsigned bits);

/* Returns the length of the filled in socket address. */
socklen_t address_to_socket(const struct fl_address *address, uint16_t port, struct sockaddr_storage *out);

/* False when it is neither IPv4 nor IPv6. */
bool address_from_socket(const struct sockaddr_storage *from, struct fl_address *out);

/* Where fd is bound; for an accepted socket the address the client used. */
bool address_of_socket(int fd, struct fl_address *out);

#endif
