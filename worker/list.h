/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive circular doubly linked list; an unlinked node points to itself, so that removal is idempotent. */
#ifndef FAIRLEAD_LIST_H
#define FAIRLEAD_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct link {
	struct link *previous, *next;
};

static inline void link_init(struct link *node)
{
	node->previous = node->next = node;
}

static inline bool link_alone(const struct link *node)
{
	return node->next == node;
}

static inline void link_remove(struct link *node)
{
	node->previous->next = node->next;
	node->next->previous = node->previous;
	link_init(node);
}

/* Appends node, which must be alone, to the list of head. */
static inline void link_append(struct link *head, struct link *node)
{
	node->previous = head->previous;
	node->next = head;
	head->previous->next = node;
	head->previous = node;
}

/* Moves all nodes of one list to another, empty one: what is appended to `from` afterwards stays there. */
static inline void link_take(struct link *from, struct link *to)
{
	link_init(to);
	if (link_alone(from))
		return;
	*to = *from;
	to->next->previous = to;
	to->previous->next = to;
	link_init(from);
}

#define container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#endif
