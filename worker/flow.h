/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A flow: one client connection and the server connection it was given; or, for datagrams, one client address and
 * port, and the socket through which a server knows it.
 *
 * Flows come from a slab, have a stable index (the cursor of FL_FLOWS) and own no buffer while nothing is stuck:
 * an idle connection costs sizeof(struct flow) here, the rest is the kernel's.
 */
#ifndef FAIRLEAD_FLOW_H
#define FAIRLEAD_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "pending.h"
#include "splice.h"
#include "store.h"
#include "timer.h"

enum { CLIENT, SERVER }; /* also: bytes[CLIENT] came from the client */

enum phase {
	PHASE_FREE,
	PHASE_GREETING, /* the client has still to send its PROXY header */
	PHASE_CONNECTING,
	PHASE_QUEUED,	/* all servers are full */
	PHASE_WAITING,	/* all servers were tried; a pause before the next round */
	PHASE_OPEN,
	PHASE_DATAGRAM,
	PHASE_RESETTING, /* one side was reset; what was read for the other is still in the kernel's queue */
	PHASE_DEAD,	 /* closed in this round of the loop; its memory is reused after the round */
};

enum side_flags {
	READABLE = 1,	   /* an edge said so and no read has come back short since */
	PEER_DONE = 2,	   /* FIN seen by epoll: a short read is the last one */
	URGENT = 4,	   /* TCP urgent data cuts reads short: a short read means nothing */
	FAILED = 8,	   /* epoll reported an error or hang-up: read on until it shows */
	BROKEN = 16,	   /* a write failed: the peer has reset */
	WROTE = 32,	   /* something was written to this side */
	NODELAY = 64,
	SHUT = 128,	   /* we sent FIN to this side */
};

enum end { END_NONE, END_FIN, END_RST };

/* Whether all that was read from a side has been written to the other. */
#define PASSED_ON(side) ((side)->pending == NULL && ((side)->pipe == NULL || (side)->pipe->held == 0))

struct side {
	int fd; /* -1: none */
	uint8_t flags;
	uint8_t end; /* how reading from this side ended */
	uint8_t full; /* reads in a row that filled the whole buffer */
	struct pending *pending; /* read from this side, not yet written to the other */
	struct pipe *pipe;	 /* the same, while this side sends bulk */
};

/* Servers that failed this flow; allocated with the first failure. */
struct tried {
	uint32_t count, capacity;
	uint32_t id[];
};

/* What only a datagram flow has (peers.h, datagram.c). */
struct datagram_flow {
	struct listener *listener; /* NULL: not a datagram flow */
	struct flow *next;	   /* with the same hash */
	struct fl_address peer;	   /* where answers go: the client itself, or the proxy that tells of it */
	struct fl_address local;   /* where they come from */
	uint32_t scope;		   /* interface of a link-local peer */
	uint32_t hash;
	bool answered;		   /* by the present server */
	bool lasting;		   /* the client went on after an answer */
};

struct flow {
	struct side side[2];
	struct service *service;
	struct server *server;
	struct link of_server;
	struct link ready; /* of a datagram flow: its place in the order of age; of a queued one: in its queue */
	struct timer timer;
	struct datagram_flow datagram;
	struct tried *tried;
	struct pending *tlvs; /* of the client's PROXY header, for the server's */
	uint64_t bytes[2];
	uint64_t born_ms;
	uint64_t active_ms; /* the last byte; for a connecting flow the start of the present try */
	struct fl_address client, vip;
	uint32_t index;
	uint32_t source; /* row in the source table + 1, 0: none */
	uint32_t tries;
	uint8_t phase;
	uint8_t proxied;   /* enum proxy_kind: what the client's PROXY header said, and ours will say */
	bool introducing;  /* the server has still to get its PROXY header */
	bool half_closed;
	uint8_t resetting; /* the side that will get the RST */
};

_Static_assert(sizeof(struct flow) < 400, "a flow stays small");

/* NULL: no memory. The flow is counted in its service. */
struct flow *flow_new(struct service *service, int fd, const struct fl_address *client, const struct fl_address *vip);

/*
 * Ends a flow and gives back all it holds. `reset`: both sides get an RST, else whatever close() gives.
 * A reason other than REASON_NONE is counted.
 */
void flow_end(struct flow *flow, enum reason reason, bool reset);

/* Reserves a connection of server for the flow; false when the server is full. */
bool flow_take_server(struct flow *flow, struct server *server);

/* Closes the server side, if any, and gives its reservation back. */
void flow_drop_server(struct flow *flow, bool reset);

/* Ends all flows of a server, or all at all when server is NULL, with SERVER_RESET. */
void flows_reset(struct server *server);

/* The flow at or after index `from`, NULL: no more. */
struct flow *flow_next(uint32_t from);

uint32_t flows_live(void);

/* Recycles the flows that ended in this round. */
void flows_recycle(void);

void flows_free(void);

/* Closes with RST instead of FIN. */
void close_with_reset(int fd);

/* Counts a refusal. */
void reject(struct service *service, enum reason reason);

#endif
