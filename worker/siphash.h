/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) and SplitMix64 (Steele et al., 2014). */
#ifndef FAIRLEAD_SIPHASH_H
#define FAIRLEAD_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* key: the 16 bytes as two little-endian halves. */
uint64_t siphash13(const uint64_t key[2], const uint8_t *message, size_t length);

/* The k-th output (k >= 1) of a SplitMix64 generator that starts at h. */
static inline uint64_t splitmix64(uint64_t h, uint64_t k)
{
	uint64_t z = h + k * 0x9E3779B97F4A7C15u;

	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
	return z ^ (z >> 31);
}

#endif
