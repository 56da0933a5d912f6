/* SPDX-License-Identifier: Apache-2.0 */
/* Conversion of addresses. IPv4 inside IPv6 is always treated as IPv4: one client is one source, however it came. */
#include "address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
static const uint8_t zero[16];

static bool is_mapped(const uint8_t ip[16])
{
	return memcmp(ip, mapped, sizeof(mapped)) == 0;
}

bool address_valid(const struct fl_address *address)
{
	return (address->family == 4 || address->family == 6) && is_mapped(address->ip) == (address->family == 4);
}

bool address_equal(const struct fl_address *a, const struct fl_address *b)
{
	return a->port == b->port && memcmp(a->ip, b->ip, sizeof(a->ip)) == 0;
}

bool address_wildcard(const struct fl_address *address)
{
	const uint8_t *ip = address->ip;

	if (address->port == 0)
		return true;
	return address->family == 4 ? memcmp(ip + 12, zero, 4) == 0 : memcmp(ip, zero, 16) == 0;
}

void address_mask(uint8_t ip[16], unsigned bits)
{
	for (unsigned i = 0; i < 16; i++, bits -= bits < 8 ? bits : 8)
		if (bits < 8)
			ip[i] &= (uint8_t)(0xff00 >> bits);
}

socklen_t address_to_socket(const struct fl_address *address, uint16_t port, struct sockaddr_storage *out)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)out;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;

	if (address->family == 4) {
		*v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
		memcpy(&v4->sin_addr, address->ip + 12, 4);
		return sizeof(*v4);
	}
	*v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
	memcpy(&v6->sin6_addr, address->ip, 16);
	return sizeof(*v6);
}

bool address_from_socket(const struct sockaddr_storage *from, struct fl_address *out)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;

	if (from->ss_family == AF_INET) {
		*out = (struct fl_address){.port = ntohs(v4->sin_port), .family = 4};
		memcpy(out->ip, mapped, sizeof(mapped));
		memcpy(out->ip + 12, &v4->sin_addr, 4);
		return true;
	}
	if (from->ss_family != AF_INET6)
		return false;
	*out = (struct fl_address){.port = ntohs(v6->sin6_port)};
	memcpy(out->ip, &v6->sin6_addr, 16);
	out->family = is_mapped(out->ip) ? 4 : 6;
	return true;
}

bool address_of_socket(int fd, struct fl_address *out)
{
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	return getsockname(fd, (struct sockaddr *)&name, &length) == 0 && address_from_socket(&name, out);
}
