/* SPDX-License-Identifier: Apache-2.0 */
/* The set of listeners: taking over, filters, pausing, closing without losing a queued client. */
#include "listener.h"

#include <errno.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "accept.h"
#include "address.h"
#include "datagram.h"
#include "descriptors.h"

static bool paused;

static struct listener **find(struct service *service, const struct fl_address *address)
{
	struct listener **at = &service->listeners;

	while (*at && !address_equal(&(*at)->address, address))
		at = &(*at)->next;
	return at;
}

struct listener *listener_next(const struct listener *listener)
{
	uint32_t id = 0;

	if (listener && listener->next)
		return listener->next;
	for (id = listener ? listener->service->spec.id + 1 : 0; id < FL_MAX_SERVICES; id++) {
		struct service *service = service_by_id(id);

		if (service && service->listeners)
			return service->listeners;
	}
	return NULL;
}

static int option(int fd, int name)
{
	int value = 0;
	socklen_t length = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

/* Datagrams of established flows need no descriptor: their listeners never pause. */
static bool is_paused(const struct listener *listener)
{
	return paused && !listener->datagrams;
}

static bool drop_all(int fd)
{
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
	struct sock_fprog program = {.len = 1, .filter = code};

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) == 0;
}

static bool follow_mode(const struct listener *listener)
{
	int none = 0;

	if (listener->datagrams) /* the filter would stop the datagrams of established flows, too */
		return true;
	if (listener->service->spec.mode == FL_DROP)
		return drop_all(listener->fd);
	return setsockopt(listener->fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof(none)) == 0 || errno == ENOENT;
}

bool listeners_follow_mode(const struct service *service)
{
	for (const struct listener *listener = service->listeners; listener; listener = listener->next)
		if (!follow_mode(listener))
			return false;
	return true;
}

static bool resume(struct listener *listener)
{
	/* EXCLUSIVE: while two workers share a socket after a handover, one of them wakes up. */
	return watch(listener->fd, listener, listener->datagrams ? TAG_DATAGRAM_LISTENER : TAG_LISTENER,
		     EPOLLIN | EPOLLEXCLUSIVE);
}

/* Whether fd is a socket that can serve a listener of this protocol. */
static bool suits(int fd, uint8_t protocol)
{
	if (protocol == IPPROTO_UDP)
		return option(fd, SO_TYPE) == SOCK_DGRAM && option(fd, SO_PROTOCOL) == IPPROTO_UDP;
	return option(fd, SO_TYPE) == SOCK_STREAM && option(fd, SO_ACCEPTCONN) == 1;
}

static bool prepare(struct listener *listener)
{
	static const int on = 1;

	if (!listener->datagrams) /* accepted sockets inherit it */
		return setsockopt(listener->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0;
	return listener->exact || datagram_tell_destination(listener->fd, listener->address.family);
}

struct verdict listener_put(const struct fl_listen *message, int fd)
{
	struct service *service = service_by_id(message->service);
	struct fl_address bound;
	struct listener **at, *listener;

	if (fd < 0)
		return REFUSE(EBADF, "no descriptor came with the listener");
	if (service == NULL)
		return REFUSE(ENOENT, "no such service");
	if (!address_valid(&message->address))
		return REFUSE(EINVAL, "listener address is malformed");
	if ((message->protocol ? message->protocol : IPPROTO_TCP) != service->spec.protocol)
		return REFUSE(EPROTOTYPE, "the service has another protocol");
	if (!suits(fd, service->spec.protocol) || !address_of_socket(fd, &bound))
		return REFUSE(ENOTSOCK, "the descriptor is not a socket of the service's protocol that listens");
	if (worker.draining)
		return REFUSE(ESHUTDOWN, "this worker is draining");
	at = find(service, &message->address);
	if (*at) {
		close(fd);
		return DONE;
	}
	listener = calloc(1, sizeof(*listener));
	if (listener == NULL)
		return REFUSE(ENOMEM, "no memory for a listener");
	*listener = (struct listener){.service = service, .address = message->address, .fd = fd, .burst = 1};
	listener->datagrams = service->spec.protocol == IPPROTO_UDP;
	listener->exact = address_equal(&bound, &message->address) && !address_wildcard(&bound);
	if (!set_nonblocking(fd) || !prepare(listener) || !follow_mode(listener) ||
	    (!is_paused(listener) && !resume(listener))) {
		free(listener);
		return REFUSE(errno, "cannot watch the listener");
	}
	descriptors_took(1);
	*at = listener;
	return DONE;
}

static void close_listener(struct listener **at)
{
	struct listener *listener = *at;

	if (listener->datagrams)
		datagram_end_flows(listener);
	*at = listener->next;
	/* Not by close(): another process may hold the socket too, and epoll would go on reporting it. */
	epoll_ctl(worker.epoll, EPOLL_CTL_DEL, listener->fd, NULL);
	close(listener->fd);
	descriptors_gave_back(1);
	free(listener);
}

struct verdict listener_delete(const struct fl_listen *message)
{
	struct service *service = service_by_id(message->service);
	struct listener **at = service ? find(service, &message->address) : NULL;

	if (at == NULL || *at == NULL)
		return REFUSE(ENOENT, "no such listener");
	if (!(*at)->datagrams)
		accept_rest(*at);
	close_listener(at);
	return DONE;
}

static void each_service(void (*visit)(struct service *))
{
	for (uint32_t id = 0; id < FL_MAX_SERVICES; id++)
		if (service_by_id(id))
			visit(service_by_id(id));
}

static void drain(struct service *service)
{
	struct listener **at = &service->listeners;

	while (*at) {
		if ((*at)->datagrams) {
			datagram_receive(*at);
			epoll_ctl(worker.epoll, EPOLL_CTL_DEL, (*at)->fd, NULL);
			at = &(*at)->next;
		} else {
			accept_rest(*at);
			close_listener(at);
		}
	}
}

void listeners_drain(void)
{
	each_service(drain);
}

static void close_listeners(struct service *service)
{
	while (service->listeners)
		close_listener(&service->listeners);
}

void listeners_close(void)
{
	each_service(close_listeners);
}

void listeners_pause(bool pause)
{
	paused = pause;
	for (struct listener *listener = listener_next(NULL); listener; listener = listener_next(listener)) {
		if (listener->datagrams)
			continue;
		if (pause)
			epoll_ctl(worker.epoll, EPOLL_CTL_DEL, listener->fd, NULL);
		else
			resume(listener);
	}
}
