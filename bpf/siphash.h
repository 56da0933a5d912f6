/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow hash: SipHash-1-3 (Aumasson and Bernstein, 2012), the same as policy/flowhash.py, so that a node which
 * never saw a flow chooses the same server. Objects are little endian (bpfel), as is SipHash's message order.
 */
#ifndef FAIRLEAD_SIPHASH_H
#define FAIRLEAD_SIPHASH_H

#include "common.h"

struct sip {
	__u64 a, b, c, d;
};

#define ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))

static __always_inline void sip_round(struct sip *s)
{
	s->a += s->b;
	s->b = ROTATE(s->b, 13) ^ s->a;
	s->a = ROTATE(s->a, 32);
	s->c += s->d;
	s->d = ROTATE(s->d, 16) ^ s->c;
	s->a += s->d;
	s->d = ROTATE(s->d, 21) ^ s->a;
	s->c += s->b;
	s->b = ROTATE(s->b, 17) ^ s->c;
	s->c = ROTATE(s->c, 32);
}

static __always_inline void sip_start(struct sip *s, const __u64 key[2])
{
	s->a = key[0] ^ 0x736f6d6570736575ull;
	s->b = key[1] ^ 0x646f72616e646f6dull;
	s->c = key[0] ^ 0x6c7967656e657261ull;
	s->d = key[1] ^ 0x7465646279746573ull;
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->d ^= word;
	sip_round(s);
	s->a ^= word;
}

static __always_inline __u64 sip_end(struct sip *s, __u64 bytes)
{
	sip_word(s, bytes << 56);
	s->c ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->a ^ s->b ^ s->c ^ s->d;
}

static __always_inline __u64 pair(__u32 low, __u32 high)
{
	return (__u64)high << 32 | low;
}

static __always_inline __u64 flow_hash4(const __u64 seed[2], __be32 src, __be32 dst, __u32 ports, __u8 proto)
{
	struct sip s;

	sip_start(&s, seed);
	sip_word(&s, pair(src, dst));
	sip_word(&s, pair(ports, proto));
	return sip_end(&s, 16);
}

static __always_inline __u64 flow_hash(const __u64 seed[2], const struct packet *p, _Bool by_source)
{
	__u32 ports = (__u32)p->dport << 16 | p->sport;
	struct sip s;

	if (p->family == 4 && !by_source)
		return flow_hash4(seed, p->src.word[3], p->dst.word[3], ports, p->proto);

	sip_start(&s, seed);
	if (p->family == 4) {
		sip_word(&s, p->src.word[3]);
		return sip_end(&s, 8);
	}
	sip_word(&s, pair(p->src.word[0], p->src.word[1]));
	sip_word(&s, pair(p->src.word[2], p->src.word[3]));
	if (by_source)
		return sip_end(&s, 16);
	sip_word(&s, pair(p->dst.word[0], p->dst.word[1]));
	sip_word(&s, pair(p->dst.word[2], p->dst.word[3]));
	sip_word(&s, pair(ports, p->proto));
	return sip_end(&s, 40);
}

/* Output function of SplitMix64 (Steele, Lea, Flood, 2014): hashes for further tries. */
static __always_inline __u64 splitmix64(__u64 state)
{
	state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9ull;
	state = (state ^ state >> 27) * 0x94D049BB133111EBull;
	return state ^ state >> 31;
}

#define SPLITMIX_GAMMA 0x9E3779B97F4A7C15ull

#endif
