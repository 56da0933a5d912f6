/* SPDX-License-Identifier: Apache-2.0 */
/* The table of requests. Lengths are checked here, so that no handler ever reads behind a message. */
#include "request.h"

#include <errno.h>
#include <sys/stat.h>

#include "datagram.h"
#include "flow.h"
#include "listener.h"
#include "shm.h"

static bool same_file(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static struct verdict attach(const void *message, size_t length, int *fd)
{
	const struct fl_attach *attach = message;
	int error;

	(void)length;
	if (*fd < 0)
		return REFUSE(EBADF, "no shared memory came along");
	if (worker.memfd >= 0) {
		if (same_file(worker.memfd, *fd) && worker.slot == attach->slot)
			return DONE;
		return REFUSE(EBUSY, "attached to another memory or row already");
	}
	if (flows_live() > 0)
		return REFUSE(EBUSY, "flows are counted in private memory already");
	error = shm_attach(*fd, attach->slot);
	if (error)
		return REFUSE(error, error == EBUSY ? "another live worker has this row" : "not a shared memory of this ABI");
	*fd = -1;
	store_rebase();
	return DONE;
}

static struct verdict drain(const void *message, size_t length, int *fd)
{
	const struct fl_drain *drain = message;

	(void)length;
	(void)fd;
	listeners_drain();
	worker.draining = true;
	worker.drain_deadline_ms = worker.now_ms + drain->deadline_ms;
	datagram_drain();
	return DONE;
}

static struct verdict quit(const void *message, size_t length, int *fd)
{
	(void)message;
	(void)length;
	(void)fd;
	worker.quit = true;
	return DONE;
}

static struct verdict put_server(const void *message, size_t length, int *fd)
{
	(void)length;
	(void)fd;
	return server_put(message);
}

static struct verdict put_table(const void *message, size_t length, int *fd)
{
	(void)fd;
	return table_put(message, length);
}

static struct verdict put_service(const void *message, size_t length, int *fd)
{
	(void)fd;
	return service_put(message, length);
}

static struct verdict put_listener(const void *message, size_t length, int *fd)
{
	struct verdict verdict = listener_put(message, *fd);

	(void)length;
	if (verdict.error == 0)
		*fd = -1;
	return verdict;
}

static struct verdict delete_listener(const void *message, size_t length, int *fd)
{
	(void)length;
	(void)fd;
	return listener_delete(message);
}

static struct verdict delete_by_id(const void *message, size_t length, int *fd)
{
	const struct fl_id *which = message;

	(void)length;
	(void)fd;
	switch (which->header.type) {
	case FL_SERVER_DEL:
		return server_delete(which->id);
	case FL_TABLE_DEL:
		return table_delete(which->id);
	default:
		return service_delete(which->id);
	}
}

static const struct request {
	struct verdict (*run)(const void *message, size_t length, int *fd);
	size_t size;
	bool tail; /* more may follow; the handler checks how much */
} requests[] = {
	[FL_ATTACH] = {attach, sizeof(struct fl_attach), false},
	[FL_DRAIN] = {drain, sizeof(struct fl_drain), false},
	[FL_QUIT] = {quit, sizeof(struct fl_header), false},
	[FL_SERVER_PUT] = {put_server, sizeof(struct fl_server), false},
	[FL_SERVER_DEL] = {delete_by_id, sizeof(struct fl_id), false},
	[FL_TABLE_PUT] = {put_table, sizeof(struct fl_table), true},
	[FL_TABLE_DEL] = {delete_by_id, sizeof(struct fl_id), false},
	[FL_SERVICE_PUT] = {put_service, sizeof(struct fl_service), true},
	[FL_SERVICE_DEL] = {delete_by_id, sizeof(struct fl_id), false},
	[FL_LISTEN_PUT] = {put_listener, sizeof(struct fl_listen), false},
	[FL_LISTEN_DEL] = {delete_listener, sizeof(struct fl_listen), false},
};

struct verdict request_run(const struct fl_header *message, size_t length, int *fd)
{
	const struct request *request;

	if (message->type >= sizeof(requests) / sizeof(requests[0]) || requests[message->type].run == NULL)
		return REFUSE(ENOSYS, "unknown message type");
	request = &requests[message->type];
	if (request->tail ? length < request->size : length != request->size)
		return REFUSE(EINVAL, "message has the wrong length");
	return request->run(message, length, fd);
}
