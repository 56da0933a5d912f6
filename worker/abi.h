/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between the agent (Python, dataplane/proxy/abi.py) and a proxy worker.
 *
 * Control: one AF_UNIX SOCK_SEQPACKET socket per worker, one message per packet, host byte order,
 * natural alignment, every struct padded by name. The agent asks, the worker answers each request with
 * zero or more records and then exactly one FL_DONE that carries the request's seq. All PUTs are idempotent.
 * Counters: one shared memory file (memfd) handed over in FL_ATTACH.
 * Python decides and sends the result; nothing in here is a policy.
 */
#ifndef FAIRLEAD_ABI_H
#define FAIRLEAD_ABI_H

#include <stdint.h>

#define FL_ABI_VERSION 5u
#define FL_NAME_MAX 64u /* a service name, 63 bytes and NUL */
#define FL_KEY_MAX 192u /* POOL/SERVER and NUL; a server's name may be [V6]:PORT */
#define FL_MAX_WORKERS 32u
#define FL_MAX_SERVERS 131072u /* ids 1 .. FL_MAX_SERVERS-1 */
#define FL_MAX_SERVICES 16384u /* ids 1 .. FL_MAX_SERVICES-1 */
#define FL_MAX_TABLES 16384u
#define FL_MAX_MEMBERS 16384u
#define FL_MAX_RANGES 4096u
#define FL_REASONS 32u /* model/reasons.py RejectReason */

enum fl_type {
	/* life cycle; HELLO, HANDOVER, DRAIN and QUIT keep their form in every ABI version */
	FL_HELLO = 1,	  /* -> one fl_hello record */
	FL_ATTACH = 2,	  /* fl_attach + memfd */
	FL_HANDOVER = 3,  /* -> one FL_LISTEN_PUT record per listener, each with its fd, and FL_ATTACH with the memfd */
	FL_DRAIN = 4,	  /* fl_drain: close listeners (after accepting what is queued), end when no flow is left */
	FL_QUIT = 5,	  /* reset all flows and end now */
	/* what to hold */
	FL_SERVER_PUT = 16,  /* fl_server */
	FL_SERVER_DEL = 17,  /* fl_id; flows of it are reset; refused with EBUSY while a table names it */
	FL_TABLE_PUT = 18,   /* fl_table */
	FL_TABLE_DEL = 19,   /* fl_id; EBUSY while a service names it */
	FL_SERVICE_PUT = 20, /* fl_service */
	FL_SERVICE_DEL = 21, /* fl_id; EBUSY while it has a listener; flows live on with its last settings */
	FL_LISTEN_PUT = 22,  /* fl_listen + a bound (TCP: listening) fd; the same listener again: the new fd is closed */
	FL_LISTEN_DEL = 23,  /* fl_listen; accepts what is queued, then closes; its datagram flows end */
	/* what it holds */
	FL_DUMP = 32,  /* -> FL_SERVER_PUT, FL_TABLE_PUT (without slots), FL_SERVICE_PUT, FL_LISTEN_PUT records */
	FL_FLOWS = 33, /* fl_flows -> FL_FLOW records */
	FL_FLOW = 34,
	FL_DONE = 64,
};

struct fl_header {
	uint16_t type;
	uint16_t reserved;
	uint32_t seq;
};

struct fl_done {
	struct fl_header header;
	int32_t error;	 /* 0, or an errno value */
	uint32_t cursor; /* FL_FLOWS: where to go on, 0: that was all */
	char message[120]; /* one line when error is set */
};

struct fl_address {
	uint8_t ip[16]; /* network order; IPv4 as ::ffff:a.b.c.d */
	uint16_t port;	/* host order */
	uint8_t family; /* 4 or 6 */
	uint8_t reserved;
};

struct fl_hello {
	struct fl_header header;
	uint32_t abi;
	uint32_t pid;
	uint32_t slot;
	uint32_t attached;
	uint32_t draining;
	uint32_t flows;
	char build[32]; /* version of fairlead it was built from */
};

struct fl_attach {
	struct fl_header header;
	uint32_t slot; /* row in the shared memory, 0 .. FL_MAX_WORKERS-1 */
	uint32_t reserved;
};

struct fl_drain {
	struct fl_header header;
	uint32_t deadline_ms; /* then what is left is reset */
	uint32_t reserved;
};

struct fl_id {
	struct fl_header header;
	uint32_t id;
	uint32_t reserved;
};

#define FL_SERVER_RESET 1u /* flags: reset established flows, now and whenever one turns up */
#define FL_SERVER_UNPIN 2u /* flags: datagram flows leave, now and whenever one turns up whose table does without it */

struct fl_server {
	struct fl_header header;
	uint32_t id;
	uint32_t weight;
	uint32_t max_connections; /* over all workers; 0: none */
	uint32_t flags;
	struct fl_address address; /* port 0: the port the client used */
	char key[FL_KEY_MAX];
};

struct fl_table {
	struct fl_header header;
	uint32_t id;
	uint32_t size;	  /* number of slots */
	uint32_t members; /* number of server ids */
	uint32_t reserved;
	uint8_t digest[16];
	uint64_t content; /* FNV-1a 64 over the slots as bytes; filled in by the worker in dumps */
	/* followed by uint32_t server_id[members], uint16_t slot[size]; slots index server_id; absent in dumps */
};

enum fl_scheduler { FL_MAGLEV, FL_RR, FL_WRR, FL_LC, FL_WLC, FL_SH, FL_RANDOM };
enum fl_mode { FL_FORWARD, FL_REJECT, FL_DROP };

struct fl_range {
	uint8_t low[16], high[16]; /* inclusive, v4-mapped; sorted, disjoint */
};

/* flags of a service */
#define FL_SERVICE_ACL 1u	   /* only `ranges` may connect (none at all when ranges == 0) */
#define FL_SERVICE_ACCEPT_PROXY 2u /* clients begin with a PROXY header (UDP: each datagram) */
#define FL_SERVICE_TRANSPARENT 4u  /* servers see the client's own address */

struct fl_service {
	struct fl_header header;
	uint32_t id;
	uint32_t table; /* 0 unless mode == FL_FORWARD */
	uint8_t scheduler;
	uint8_t mode;
	uint8_t protocol; /* 6 or 17 */
	uint8_t forwarding; /* reserved, 0: proxy */
	uint32_t flags;
	uint32_t idle_ms; /* 0: never */
	uint32_t connect_ms;
	uint32_t half_close_ms;
	uint32_t retries; /* further tries after the first */
	uint32_t persist_ms; /* 0: off */
	uint8_t persist_v4, persist_v6; /* prefix lengths */
	uint8_t send_proxy;		/* version of the PROXY header that servers get, 0: none; UDP: 0 or 2 */
	uint8_t reserved;
	uint32_t max_connections;
	uint32_t connections_per_source;
	uint32_t new_per_source; /* per second, burst of the same size */
	uint32_t ranges;
	uint32_t queue;			/* connections that may wait for a full server, over all workers */
	uint32_t queue_ms;		/* how long; 0: for ever */
	uint8_t source_v4, source_v6;	/* prefix lengths: how much of an address makes one source */
	uint16_t reserved2;
	uint32_t reserved3;
	uint64_t seed[2]; /* SipHash key, little endian halves of the 16 bytes */
	char name[FL_NAME_MAX];
	char pool[FL_NAME_MAX]; /* the agent's own note */
	/* followed by struct fl_range range[ranges] */
};

struct fl_listen {
	struct fl_header header;
	uint32_t service;
	uint32_t protocol; /* 6 or 17; 0 from version 1: 6 */
	struct fl_address address;
	uint32_t reserved;
};

struct fl_flows {
	struct fl_header header;
	uint32_t cursor;
	uint32_t limit;
	uint32_t service; /* 0: any */
	uint32_t server;  /* 0: any */
};

enum fl_flow_state { FL_CONNECTING, FL_ESTABLISHED, FL_CLIENT_CLOSED, FL_SERVER_CLOSED };

struct fl_flow {
	struct fl_header header;
	uint32_t service;
	uint32_t server;
	struct fl_address client;
	struct fl_address vip;
	uint32_t state;
	uint32_t age_ms;
	uint32_t idle_ms;
	uint32_t reserved;
	uint64_t bytes_in, bytes_out;
};

/*
 * Shared memory. A worker writes only its own row and, by atomic operations, the shared part. The agent reads;
 * when a worker died it (or the next worker of that slot, in FL_ATTACH) takes the row's `active` figures out of
 * the shared totals and zeroes them, so that limits stay exact.
 */
struct fl_server_row {
	uint64_t connections, connect_failures, bytes_in, bytes_out;
	uint32_t active;
	uint32_t consecutive_failures;
	uint64_t reserved[3];
};

struct fl_service_row {
	uint64_t connections, bytes_in, bytes_out;
	uint32_t active;
	uint32_t queued; /* of the active ones */
	uint64_t rejected[FL_REASONS];
};

struct fl_worker_row {
	uint32_t pid; /* 0: free */
	uint32_t accepting;
	uint32_t active;
	uint32_t descriptors_used;
	uint32_t descriptors_limit;
	uint32_t reserved;
	uint64_t accept_pauses;
	uint64_t loops;
	uint64_t reserved2[2];
	struct fl_service_row service[FL_MAX_SERVICES];
	struct fl_server_row server[FL_MAX_SERVERS];
};

struct fl_shared_server {
	uint32_t active; /* over all workers; atomic */
};

struct fl_shared_service {
	uint32_t active; /* over all workers; atomic */
	uint32_t cursor; /* rr, wrr; atomic */
	uint32_t queued; /* over all workers; atomic */
	uint32_t reserved;
};

#define FL_SOURCES 65536u /* slots of the source and persistence tables, power of two */
#define FL_SHM_MAGIC 0x464c5348u

struct fl_source { /* per service and source address: limits */
	uint32_t lock;	  /* 0, or worker slot + 1 */
	uint32_t service; /* 0: free */
	uint8_t ip[16];
	uint64_t refilled_ms; /* CLOCK_MONOTONIC */
	uint32_t tokens_milli;
	uint32_t reserved;
	uint32_t held[FL_MAX_WORKERS]; /* connections by worker */
};

struct fl_sticky { /* per service and client prefix: persistence */
	uint32_t lock;
	uint32_t service;
	uint8_t ip[16];
	uint64_t expires_ms; /* CLOCK_MONOTONIC */
	uint32_t server;
	uint32_t reserved;
};

struct fl_shm {
	uint32_t magic;
	uint32_t abi;
	uint64_t size;
	uint64_t reserved[6]; /* the agent's own notes, which outlive it; workers never look */
	struct fl_shared_service service[FL_MAX_SERVICES];
	struct fl_shared_server server[FL_MAX_SERVERS];
	struct fl_source source[FL_SOURCES];
	struct fl_sticky sticky[FL_SOURCES];
	struct fl_worker_row worker[FL_MAX_WORKERS];
};

#endif
