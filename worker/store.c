/* SPDX-License-Identifier: Apache-2.0 */
/* Servers and services. Every PUT is checked as a whole before anything changes. */
#include "store.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "acl.h"
#include "address.h"
#include "connect.h"
#include "datagram.h"
#include "flow.h"
#include "listener.h"
#include "queue.h"
#include "transparent.h"

static struct server *servers[FL_MAX_SERVERS];
static struct service *services[FL_MAX_SERVICES];

struct server *server_by_id(uint32_t id)
{
	return id < FL_MAX_SERVERS ? servers[id] : NULL;
}

struct service *service_by_id(uint32_t id)
{
	return id < FL_MAX_SERVICES ? services[id] : NULL;
}

static void server_rebase(struct server *server)
{
	server->row = &worker.row->server[server->spec.id];
	server->shared = &worker.shm->server[server->spec.id];
}

static void service_rebase(struct service *service)
{
	service->row = &worker.row->service[service->spec.id];
	service->shared = &worker.shm->service[service->spec.id];
}

void store_rebase(void)
{
	for (uint32_t id = 0; id < FL_MAX_SERVERS; id++)
		if (servers[id])
			server_rebase(servers[id]);
	for (uint32_t id = 0; id < FL_MAX_SERVICES; id++)
		if (services[id])
			service_rebase(services[id]);
}

struct verdict server_put(const struct fl_server *message)
{
	struct server *server;

	if (message->id == 0 || message->id >= FL_MAX_SERVERS)
		return REFUSE(EINVAL, "server id out of range");
	if (!address_valid(&message->address))
		return REFUSE(EINVAL, "server address is malformed");
	if (memchr(message->key, '\0', sizeof(message->key)) == NULL)
		return REFUSE(EINVAL, "server key is not terminated");
	server = servers[message->id];
	if (server == NULL) {
		server = calloc(1, sizeof(*server));
		if (server == NULL)
			return REFUSE(ENOMEM, "no memory for a server");
		server->spec.id = message->id;
		link_init(&server->flows);
		server_rebase(server);
		servers[message->id] = server;
	}
	server->spec = *message;
	if (server->spec.flags & FL_SERVER_RESET) {
		connect_elsewhere(server);
		flows_reset(server);
	} else if (server->spec.flags & FL_SERVER_UNPIN) {
		datagram_leave(server);
	}
	return DONE;
}

struct verdict server_delete(uint32_t id)
{
	struct server *server = server_by_id(id);

	if (server == NULL)
		return REFUSE(ENOENT, "no such server");
	if (server->tables > 0)
		return REFUSE(EBUSY, "a table names this server");
	server->spec.flags |= FL_SERVER_RESET; /* so that what connects to it now goes elsewhere, not here again */
	connect_elsewhere(server);
	flows_reset(server);
	servers[id] = NULL;
	free(server);
	return DONE;
}

static struct verdict service_check(const struct fl_service *message, size_t length)
{
	if (message->id == 0 || message->id >= FL_MAX_SERVICES)
		return REFUSE(EINVAL, "service id out of range");
	if (message->protocol != IPPROTO_TCP && message->protocol != IPPROTO_UDP)
		return REFUSE(EPROTONOSUPPORT, "protocol is neither TCP nor UDP");
	if (services[message->id] && services[message->id]->listeners &&
	    services[message->id]->spec.protocol != message->protocol)
		return REFUSE(EBUSY, "a listener of the other protocol belongs to this service");
	if (message->scheduler > FL_RANDOM || message->mode > FL_DROP || message->forwarding != 0)
		return REFUSE(EINVAL, "unknown scheduler, mode or forwarding");
	if (message->send_proxy > 2 || (message->send_proxy == 1 && message->protocol == IPPROTO_UDP))
		return REFUSE(EINVAL, "no such version of the PROXY protocol");
	if ((message->flags & FL_SERVICE_TRANSPARENT) && !transparent_permitted())
		return REFUSE(errno, "`transparent` needs CAP_NET_ADMIN");
	if (message->ranges > FL_MAX_RANGES || length != sizeof(*message) + message->ranges * sizeof(struct fl_range))
		return REFUSE(EINVAL, "length does not match the number of ranges");
	if (message->persist_v4 > 32 || message->persist_v6 > 128 || message->source_v4 > 32 || message->source_v6 > 128)
		return REFUSE(EINVAL, "prefix length out of range");
	if (memchr(message->name, '\0', sizeof(message->name)) == NULL)
		return REFUSE(EINVAL, "service name is not terminated");
	if ((message->table != 0) != (message->mode == FL_FORWARD))
		return REFUSE(EINVAL, "a service has a table exactly when it forwards");
	if (message->table != 0 && table_by_id(message->table) == NULL)
		return REFUSE(ENOENT, "no such table");
	if (!acl_valid((const struct fl_range *)(message + 1), message->ranges))
		return REFUSE(EINVAL, "ranges are not sorted and disjoint");
	return DONE;
}

struct verdict service_put(const struct fl_service *message, size_t length)
{
	struct verdict verdict = service_check(message, length);
	size_t size = message->ranges * sizeof(struct fl_range);
	struct fl_range *range = NULL;
	struct service *service;

	if (verdict.error)
		return verdict;
	service = services[message->id];
	if (size && (range = malloc(size)) == NULL)
		return REFUSE(ENOMEM, "no memory for the ranges");
	if (service == NULL && (service = calloc(1, sizeof(*service))) == NULL) {
		free(range);
		return REFUSE(ENOMEM, "no memory for a service");
	}
	if (services[message->id] == NULL)
		queue_init(service);
	if (size)
		memcpy(range, message + 1, size);
	if (message->table)
		table_by_id(message->table)->services++;
	if (service->spec.table)
		table_by_id(service->spec.table)->services--;
	free(service->range);
	service->spec = *message;
	service->range = range;
	services[message->id] = service;
	service_rebase(service);
	return listeners_follow_mode(service) ? DONE : REFUSE(errno, "cannot set the filter of a listener");
}

struct verdict service_delete(uint32_t id)
{
	struct service *service = service_by_id(id);

	if (service == NULL)
		return REFUSE(ENOENT, "no such service");
	if (service->listeners)
		return REFUSE(EBUSY, "a listener belongs to this service");
	if (service->spec.table)
		table_by_id(service->spec.table)->services--;
	service->spec.table = 0;
	service->spec.mode = FL_REJECT; /* for flows that are still looking for a server */
	service->deleted = true;
	services[id] = NULL;
	service_release(service);
	return DONE;
}

void service_release(struct service *service)
{
	if (!service->deleted || service->flows > 0)
		return;
	free(service->range);
	free(service);
}

void store_free(void)
{
	for (uint32_t id = 0; id < FL_MAX_SERVICES; id++)
		if (services[id])
			service_delete(id);
	for (uint32_t id = 1; id < FL_MAX_TABLES; id++)
		if (table_by_id(id))
			table_delete(id);
	for (uint32_t id = 0; id < FL_MAX_SERVERS; id++)
		if (servers[id])
			server_delete(id);
}
