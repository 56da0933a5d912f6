/* SPDX-License-Identifier: Apache-2.0 */
/* What the agent told us to hold: servers, lookup tables and services, each by its id. */
#ifndef FAIRLEAD_STORE_H
#define FAIRLEAD_STORE_H

#include <stdbool.h>
#include <sys/socket.h>

#include "list.h"
#include "worker.h"

struct server {
	struct fl_server spec;
	struct fl_server_row *row;
	struct fl_shared_server *shared;
	struct link flows;	 /* struct flow .of_server, connecting ones too */
	uint32_t tables;	 /* how many members of tables name it */
};

struct table {
	struct fl_table spec;
	uint32_t services; /* how many services name it */
	uint32_t live;	   /* members that a slot leads to; the others may not take new flows */
	struct server **member; /* the live ones first */
	struct server **sorted; /* the live ones by id */
	uint16_t *slot;
};

struct listener;

struct service {
	struct fl_service spec;
	struct fl_range *range;
	struct fl_service_row *row;
	struct fl_shared_service *shared;
	struct listener *listeners;
	struct link queue;   /* struct flow .ready: those that wait for a full server, the oldest first */
	struct link waiting; /* in the list of services whose queue is not empty */
	uint32_t flows;
	bool deleted; /* kept by its flows */
};

struct server *server_by_id(uint32_t id);
struct table *table_by_id(uint32_t id);
struct service *service_by_id(uint32_t id);

/* A refusal: an errno value and one line for the agent's log. error == 0: done. */
struct verdict {
	int error;
	const char *message;
};

#define DONE ((struct verdict){0, ""})
#define REFUSE(error, message) ((struct verdict){error, message})

/* Messages are checked for their own length by the caller; tails and ids are checked here. */
struct verdict server_put(const struct fl_server *message);
struct verdict server_delete(uint32_t id);
struct verdict table_put(const struct fl_table *message, size_t length);
struct verdict table_delete(uint32_t id);
struct verdict service_put(const struct fl_service *message, size_t length);
struct verdict service_delete(uint32_t id);

/* Frees a deleted service once its last flow is gone. */
void service_release(struct service *service);

/* After FL_ATTACH: all cached pointers into the shared memory lead to the new one. */
void store_rebase(void);

/* Whether the table may give new flows to this server. */
bool table_has_live(const struct table *table, uint32_t server_id);

void store_free(void);

#endif
