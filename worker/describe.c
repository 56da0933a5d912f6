/* SPDX-License-Identifier: Apache-2.0 */
/* The description of every struct of abi.h. Names stand here once more because C has no reflection; a struct or field
 * that is missing here is found by the test that compares this list with the header. */
#include "describe.h"

#include <stddef.h>
#include <stdio.h>

#include "abi.h"

struct entry {
	const char *structure; /* set on the first line of each */
	const char *field;
	size_t offset, size;
};

#define BEGIN(name) {#name, NULL, 0, sizeof(struct name)}
#define FIELD(name, field) {NULL, #field, offsetof(struct name, field), sizeof(((struct name *)0)->field)}

static const struct entry entries[] = {
	BEGIN(fl_header),
	FIELD(fl_header, type),
	FIELD(fl_header, reserved),
	FIELD(fl_header, seq),
	BEGIN(fl_done),
	FIELD(fl_done, header),
	FIELD(fl_done, error),
	FIELD(fl_done, cursor),
	FIELD(fl_done, message),
	BEGIN(fl_address),
	FIELD(fl_address, ip),
	FIELD(fl_address, port),
	FIELD(fl_address, family),
	FIELD(fl_address, reserved),
	BEGIN(fl_hello),
	FIELD(fl_hello, header),
	FIELD(fl_hello, abi),
	FIELD(fl_hello, pid),
	FIELD(fl_hello, slot),
	FIELD(fl_hello, attached),
	FIELD(fl_hello, draining),
	FIELD(fl_hello, flows),
	FIELD(fl_hello, build),
	BEGIN(fl_attach),
	FIELD(fl_attach, header),
	FIELD(fl_attach, slot),
	FIELD(fl_attach, reserved),
	BEGIN(fl_drain),
	FIELD(fl_drain, header),
	FIELD(fl_drain, deadline_ms),
	FIELD(fl_drain, reserved),
	BEGIN(fl_id),
	FIELD(fl_id, header),
	FIELD(fl_id, id),
	FIELD(fl_id, reserved),
	BEGIN(fl_server),
	FIELD(fl_server, header),
	FIELD(fl_server, id),
	FIELD(fl_server, weight),
	FIELD(fl_server, max_connections),
	FIELD(fl_server, flags),
	FIELD(fl_server, address),
	FIELD(fl_server, key),
	BEGIN(fl_table),
	FIELD(fl_table, header),
	FIELD(fl_table, id),
	FIELD(fl_table, size),
	FIELD(fl_table, members),
	FIELD(fl_table, reserved),
	FIELD(fl_table, digest),
	FIELD(fl_table, content),
	BEGIN(fl_range),
	FIELD(fl_range, low),
	FIELD(fl_range, high),
	BEGIN(fl_service),
	FIELD(fl_service, header),
	FIELD(fl_service, id),
	FIELD(fl_service, table),
	FIELD(fl_service, scheduler),
	FIELD(fl_service, mode),
	FIELD(fl_service, protocol),
	FIELD(fl_service, forwarding),
	FIELD(fl_service, flags),
	FIELD(fl_service, idle_ms),
	FIELD(fl_service, connect_ms),
	FIELD(fl_service, half_close_ms),
	FIELD(fl_service, retries),
	FIELD(fl_service, persist_ms),
	FIELD(fl_service, persist_v4),
	FIELD(fl_service, persist_v6),
	FIELD(fl_service, send_proxy),
	FIELD(fl_service, reserved),
	FIELD(fl_service, max_connections),
	FIELD(fl_service, connections_per_source),
	FIELD(fl_service, new_per_source),
	FIELD(fl_service, ranges),
	FIELD(fl_service, queue),
	FIELD(fl_service, queue_ms),
	FIELD(fl_service, source_v4),
	FIELD(fl_service, source_v6),
	FIELD(fl_service, reserved2),
	FIELD(fl_service, reserved3),
	FIELD(fl_service, seed),
	FIELD(fl_service, name),
	FIELD(fl_service, pool),
	BEGIN(fl_listen),
	FIELD(fl_listen, header),
	FIELD(fl_listen, service),
	FIELD(fl_listen, protocol),
	FIELD(fl_listen, address),
	FIELD(fl_listen, reserved),
	BEGIN(fl_flows),
	FIELD(fl_flows, header),
	FIELD(fl_flows, cursor),
	FIELD(fl_flows, limit),
	FIELD(fl_flows, service),
	FIELD(fl_flows, server),
	BEGIN(fl_flow),
	FIELD(fl_flow, header),
	FIELD(fl_flow, service),
	FIELD(fl_flow, server),
	FIELD(fl_flow, client),
	FIELD(fl_flow, vip),
	FIELD(fl_flow, state),
	FIELD(fl_flow, age_ms),
	FIELD(fl_flow, idle_ms),
	FIELD(fl_flow, reserved),
	FIELD(fl_flow, bytes_in),
	FIELD(fl_flow, bytes_out),
	BEGIN(fl_server_row),
	FIELD(fl_server_row, connections),
	FIELD(fl_server_row, connect_failures),
	FIELD(fl_server_row, bytes_in),
	FIELD(fl_server_row, bytes_out),
	FIELD(fl_server_row, active),
	FIELD(fl_server_row, consecutive_failures),
	FIELD(fl_server_row, reserved),
	BEGIN(fl_service_row),
	FIELD(fl_service_row, connections),
	FIELD(fl_service_row, bytes_in),
	FIELD(fl_service_row, bytes_out),
	FIELD(fl_service_row, active),
	FIELD(fl_service_row, queued),
	FIELD(fl_service_row, rejected),
	BEGIN(fl_worker_row),
	FIELD(fl_worker_row, pid),
	FIELD(fl_worker_row, accepting),
	FIELD(fl_worker_row, active),
	FIELD(fl_worker_row, descriptors_used),
	FIELD(fl_worker_row, descriptors_limit),
	FIELD(fl_worker_row, reserved),
	FIELD(fl_worker_row, accept_pauses),
	FIELD(fl_worker_row, loops),
	FIELD(fl_worker_row, reserved2),
	FIELD(fl_worker_row, service),
	FIELD(fl_worker_row, server),
	BEGIN(fl_shared_server),
	FIELD(fl_shared_server, active),
	BEGIN(fl_shared_service),
	FIELD(fl_shared_service, active),
	FIELD(fl_shared_service, cursor),
	FIELD(fl_shared_service, queued),
	FIELD(fl_shared_service, reserved),
	BEGIN(fl_source),
	FIELD(fl_source, lock),
	FIELD(fl_source, service),
	FIELD(fl_source, ip),
	FIELD(fl_source, refilled_ms),
	FIELD(fl_source, tokens_milli),
	FIELD(fl_source, reserved),
	FIELD(fl_source, held),
	BEGIN(fl_sticky),
	FIELD(fl_sticky, lock),
	FIELD(fl_sticky, service),
	FIELD(fl_sticky, ip),
	FIELD(fl_sticky, expires_ms),
	FIELD(fl_sticky, server),
	FIELD(fl_sticky, reserved),
	BEGIN(fl_shm),
	FIELD(fl_shm, magic),
	FIELD(fl_shm, abi),
	FIELD(fl_shm, size),
	FIELD(fl_shm, reserved),
	FIELD(fl_shm, service),
	FIELD(fl_shm, server),
	FIELD(fl_shm, source),
	FIELD(fl_shm, sticky),
	FIELD(fl_shm, worker),
};

static const struct {
	const char *name;
	unsigned long value;
} constants[] = {
	{"FL_ABI_VERSION", FL_ABI_VERSION},
	{"FL_NAME_MAX", FL_NAME_MAX},
	{"FL_KEY_MAX", FL_KEY_MAX},
	{"FL_MAX_WORKERS", FL_MAX_WORKERS},
	{"FL_MAX_SERVERS", FL_MAX_SERVERS},
	{"FL_MAX_SERVICES", FL_MAX_SERVICES},
	{"FL_MAX_TABLES", FL_MAX_TABLES},
	{"FL_MAX_MEMBERS", FL_MAX_MEMBERS},
	{"FL_MAX_RANGES", FL_MAX_RANGES},
	{"FL_REASONS", FL_REASONS},
	{"FL_SERVER_RESET", FL_SERVER_RESET},
	{"FL_SERVER_UNPIN", FL_SERVER_UNPIN},
	{"FL_SERVICE_ACL", FL_SERVICE_ACL},
	{"FL_SERVICE_ACCEPT_PROXY", FL_SERVICE_ACCEPT_PROXY},
	{"FL_SERVICE_TRANSPARENT", FL_SERVICE_TRANSPARENT},
	{"FL_SOURCES", FL_SOURCES},
	{"FL_SHM_MAGIC", FL_SHM_MAGIC},
};

void describe_abi(void)
{
	const char *separator = "";

	printf("{\"abi\": %u, \"constants\": {", FL_ABI_VERSION);
	for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		printf("%s\"%s\": %lu", i ? ", " : "", constants[i].name, constants[i].value);
	printf("}, \"structs\": {");
	for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		const struct entry *entry = &entries[i];

		if (entry->structure) {
			printf("%s\n\"%s\": {\"size\": %zu, \"fields\": {", i ? "}}," : "", entry->structure, entry->size);
			separator = "";
			continue;
		}
		printf("%s\"%s\": [%zu, %zu]", separator, entry->field, entry->offset, entry->size);
		separator = ", ";
	}
	printf("}}}}\n");
}
