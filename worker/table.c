/* SPDX-License-Identifier: Apache-2.0 */
/* Lookup tables: the agent's decision, slot by slot. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

static struct table *tables[FL_MAX_TABLES];

struct table *table_by_id(uint32_t id)
{
	return id < FL_MAX_TABLES ? tables[id] : NULL;
}

static void table_free(struct table *table)
{
	if (table == NULL)
		return;
	free(table->member);
	free(table->sorted);
	free(table->slot);
	free(table);
}

static const uint32_t *member_ids(const struct fl_table *message)
{
	return (const uint32_t *)(message + 1);
}

static const uint16_t *slots_of(const struct fl_table *message)
{
	return (const uint16_t *)(member_ids(message) + message->members);
}

static struct verdict table_check(const struct fl_table *message, size_t length)
{
	if (message->id == 0 || message->id >= FL_MAX_TABLES)
		return REFUSE(EINVAL, "table id out of range");
	if (message->members == 0 || message->members > FL_MAX_MEMBERS)
		return REFUSE(EINVAL, "number of members out of range");
	if (message->size > length || length != sizeof(*message) + message->members * 4ull + message->size * 2ull)
		return REFUSE(EINVAL, "length does not match the members and slots");
	for (uint32_t i = 0; i < message->members; i++)
		if (server_by_id(member_ids(message)[i]) == NULL)
			return REFUSE(ENOENT, "a member is not a known server");
	for (uint32_t i = 0; i < message->size; i++)
		if (slots_of(message)[i] >= message->members)
			return REFUSE(EINVAL, "a slot leads to no member");
	return DONE;
}

static int by_id(const void *a, const void *b)
{
	uint32_t x = (*(struct server *const *)a)->spec.id, y = (*(struct server *const *)b)->spec.id;

	return x < y ? -1 : x > y;
}

/*
 * Members that no slot leads to are configured, but not live. They are kept behind the live ones, because they
 * count as named by the table. Without slots all members are live. The slots are renumbered on the way, so
 * `content` is taken from the message.
 */
static bool table_fill(struct table *table, const struct fl_table *message)
{
	const uint32_t *id = member_ids(message);
	const uint16_t *slot = slots_of(message);
	uint32_t members = table->spec.members, size = table->spec.size, dead = members;
	uint16_t *place = calloc(members, sizeof(*place));
	bool *live = calloc(members, sizeof(*live));

	table->member = calloc(members, sizeof(struct server *));
	table->sorted = calloc(members, sizeof(struct server *));
	table->slot = calloc(size + 1, sizeof(*slot));
	if (place == NULL || live == NULL || table->member == NULL || table->sorted == NULL || table->slot == NULL) {
		free(place);
		free(live);
		return false;
	}
	for (uint32_t i = 0; i < size; i++)
		live[slot[i]] = true;
	for (uint32_t i = 0; i < members; i++) {
		uint32_t to = size == 0 || live[i] ? table->live++ : --dead;

		place[i] = (uint16_t)to;
		table->member[to] = server_by_id(id[i]);
	}
	for (uint32_t i = 0; i < size; i++)
		table->slot[i] = place[slot[i]];
	memcpy(table->sorted, table->member, table->live * sizeof(struct server *));
	qsort(table->sorted, table->live, sizeof(struct server *), by_id);
	free(place);
	free(live);
	return true;
}

static uint64_t fnv1a(const void *bytes, size_t length)
{
	const uint8_t *byte = bytes;
	uint64_t h = 0xcbf29ce484222325u;

	while (length--)
		h = (h ^ *byte++) * 0x100000001b3u;
	return h;
}

static void name_members(struct table *table, bool named)
{
	for (uint32_t i = 0; i < table->spec.members; i++)
		table->member[i]->tables += named ? 1 : -1u;
}

struct verdict table_put(const struct fl_table *message, size_t length)
{
	struct verdict verdict = table_check(message, length);
	struct table *table, *old;

	if (verdict.error)
		return verdict;
	table = calloc(1, sizeof(*table));
	if (table)
		table->spec = *message;
	if (table == NULL || !table_fill(table, message)) {
		table_free(table);
		return REFUSE(ENOMEM, "no memory for a table");
	}
	table->spec.content = fnv1a(slots_of(message), message->size * sizeof(uint16_t));
	name_members(table, true);
	old = tables[message->id];
	tables[message->id] = table;
	if (old) {
		table->services = old->services;
		name_members(old, false);
		table_free(old);
	}
	return DONE;
}

struct verdict table_delete(uint32_t id)
{
	struct table *table = table_by_id(id);

	if (table == NULL)
		return REFUSE(ENOENT, "no such table");
	if (table->services > 0)
		return REFUSE(EBUSY, "a service names this table");
	name_members(table, false);
	tables[id] = NULL;
	table_free(table);
	return DONE;
}

bool table_has_live(const struct table *table, uint32_t server_id)
{
	uint32_t low = 0, high = table->live;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2, id = table->sorted[middle]->spec.id;

		if (id == server_id)
			return true;
		if (id < server_id)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}
