/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The PROXY protocol, versions 1 and 2 (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt): pure functions
 * of bytes.
 */
#ifndef FAIRLEAD_PROXY_H
#define FAIRLEAD_PROXY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

#define PROXY_LENGTH_MAX 4096u	   /* of an accepted header; larger ones are refused */
#define PROXY_PASSED_MAX 512u	   /* of the TLVs that are passed on */
#define PROXY_WRITTEN_MAX (16u + 36u + PROXY_PASSED_MAX)

enum proxy_verdict { PROXY_COMPLETE, PROXY_INCOMPLETE, PROXY_WRONG };

/* Whose addresses a header tells. */
enum proxy_kind {
	PROXY_ADDRESSES,
	PROXY_UNKNOWN, /* UNKNOWN, UNSPEC or a family that cannot be used here: those of the connection count */
	PROXY_LOCAL,   /* nobody's: the proxy itself connected */
};

struct proxy_header {
	size_t length;
	enum proxy_kind kind;
	struct fl_address source, destination; /* with PROXY_ADDRESSES */
	size_t passed;			       /* bytes in tlvs */
	uint8_t tlvs[PROXY_PASSED_MAX];	       /* AUTHORITY and UNIQUE_ID as they came, for the next receiver */
};

/* Parses the beginning of a stream, or of a datagram (version 2 alone). */
enum proxy_verdict proxy_parse(const uint8_t *data, size_t length, bool datagram, struct proxy_header *header);

/*
 * Writes a header of version 1 or 2 and returns its length, at most PROXY_WRITTEN_MAX. TLVs, of at most
 * PROXY_PASSED_MAX bytes, travel in version 2 alone.
 */
size_t proxy_write(uint8_t *to, unsigned version, bool datagram, enum proxy_kind kind, const struct fl_address *source,
		   const struct fl_address *destination, const uint8_t *tlvs, size_t tlvs_length);

#endif
