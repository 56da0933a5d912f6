/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table with chains, keyed at random so that clients cannot aim at a chain, and two lists by age. */
#define _GNU_SOURCE
#include "peers.h"

#include <string.h>
#include <sys/random.h>

#include "address.h"
#include "descriptors.h"
#include "siphash.h"

#define HEADS 65536u	    /* power of two */
#define FLOWS_MAX 65536u    /* of one worker; all of a host share the ephemeral ports, which are fewer */

static struct flow *heads[HEADS];
static struct link passing = {&passing, &passing}, lasting = {&lasting, &lasting};
static uint32_t held;
static uint64_t key[2];

void peers_init(void)
{
	if (getrandom(key, sizeof(key), GRND_NONBLOCK) != sizeof(key))
		key[0] = worker.now_ms;
}

static uint8_t *put(uint8_t *to, const struct fl_address *address)
{
	memcpy(to, address->ip, 16);
	memcpy(to + 16, &address->port, 2);
	return to + 18;
}

static uint32_t hash_of(const struct datagram *datagram)
{
	uint8_t message[54];

	put(put(put(message, &datagram->peer), &datagram->local), &datagram->client);
	return (uint32_t)siphash13(key, message, sizeof(message));
}

static bool belongs(const struct datagram *datagram, const struct flow *flow)
{
	return flow->datagram.scope == datagram->scope && flow->proxied == datagram->proxied &&
	       address_equal(&flow->datagram.peer, &datagram->peer) &&
	       address_equal(&flow->datagram.local, &datagram->local) &&
	       address_equal(&flow->client, &datagram->client) && address_equal(&flow->vip, &datagram->vip);
}

struct flow *peers_find(const struct datagram *datagram, uint32_t *hash)
{
	struct flow *flow;

	*hash = hash_of(datagram);
	for (flow = heads[*hash % HEADS]; flow; flow = flow->datagram.next)
		if (flow->datagram.hash == *hash && belongs(datagram, flow))
			break;
	return flow;
}

void peers_add(struct flow *flow)
{
	struct flow **head = &heads[flow->datagram.hash % HEADS];

	flow->datagram.next = *head;
	*head = flow;
	held++;
	peers_touch(flow);
}

void peers_remove(struct flow *flow)
{
	struct flow **at = &heads[flow->datagram.hash % HEADS];

	while (*at != flow)
		at = &(*at)->datagram.next;
	*at = flow->datagram.next;
	link_remove(&flow->ready);
	held--;
}

void peers_touch(struct flow *flow)
{
	link_remove(&flow->ready);
	link_append(flow->datagram.lasting ? &lasting : &passing, &flow->ready);
}

bool peers_evict(struct flow *spared)
{
	struct link *oldest;

	if (spared)
		peers_touch(spared); /* so that it is the first of its list only when it is the only one there */
	oldest = passing.next;
	if (oldest == &passing || (spared && oldest == &spared->ready))
		oldest = lasting.next;
	if (oldest == &lasting || (spared && oldest == &spared->ready))
		return false;
	flow_end(container_of(oldest, struct flow, ready), FLOW_EVICTED, false);
	return true;
}

bool peers_full(void)
{
	uint32_t limit = descriptors_for_datagrams();

	return held >= (limit < FLOWS_MAX ? limit : FLOWS_MAX);
}
