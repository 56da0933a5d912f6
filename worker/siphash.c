/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash with one compression round and three finalisation rounds: keyed, so clients cannot aim at a server. */
#include "siphash.h"

#include <endian.h>
#include <string.h>

struct state {
	uint64_t a, b, c, d;
};

static inline uint64_t rotate(uint64_t x, unsigned bits)
{
	return x << bits | x >> (64 - bits);
}

static inline void sip_round(struct state *v)
{
	v->a += v->b;
	v->c += v->d;
	v->b = rotate(v->b, 13) ^ v->a;
	v->d = rotate(v->d, 16) ^ v->c;
	v->a = rotate(v->a, 32) + v->d;
	v->c += v->b;
	v->d = rotate(v->d, 21) ^ v->a;
	v->b = rotate(v->b, 17) ^ v->c;
	v->c = rotate(v->c, 32);
}

static inline void absorb(struct state *v, uint64_t word)
{
	v->d ^= word;
	sip_round(v);
	v->a ^= word;
}

uint64_t siphash13(const uint64_t key[2], const uint8_t *message, size_t length)
{
	struct state v = {
		.a = 0x736f6d6570736575u ^ key[0],
		.b = 0x646f72616e646f6du ^ key[1],
		.c = 0x6c7967656e657261u ^ key[0],
		.d = 0x7465646279746573u ^ key[1],
	};
	uint64_t last = (uint64_t)length << 56, word;
	size_t i;

	for (i = 0; i + 8 <= length; i += 8) {
		memcpy(&word, message + i, 8);
		absorb(&v, le64toh(word));
	}
	for (unsigned shift = 0; i < length; i++, shift += 8)
		last |= (uint64_t)message[i] << shift;
	absorb(&v, last);
	v.c ^= 0xff;
	sip_round(&v);
	sip_round(&v);
	sip_round(&v);
	return v.a ^ v.b ^ v.c ^ v.d;
}
