/* SPDX-License-Identifier: Apache-2.0 */
/* The port is chosen by connect(), for the pair of addresses: a client's 28 000 ports serve each server anew. */
#define _GNU_SOURCE
#include "transparent.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "address.h"
#include "proxy.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

static int allow(int fd, int family)
{
	static const int on = 1;

	if (family == AF_INET)
		return setsockopt(fd, IPPROTO_IP, IP_TRANSPARENT, &on, sizeof(on));
	return setsockopt(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, &on, sizeof(on));
}

bool transparent_permitted(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), failed = 0;

	if (fd < 0)
		return false;
	if (allow(fd, AF_INET) < 0)
		failed = errno;
	close(fd);
	errno = failed;
	return failed == 0;
}

int transparent_bind(const struct flow *flow, int fd, int family)
{
	static const int on = 1;
	struct sockaddr_storage from;
	socklen_t length;

	if (!(flow->service->spec.flags & FL_SERVICE_TRANSPARENT) || flow->proxied != PROXY_ADDRESSES)
		return 0;
	if ((family == AF_INET) != (flow->client.family == 4))
		return EAFNOSUPPORT;
	length = address_to_socket(&flow->client, 0, &from);
	if (allow(fd, family) < 0)
		return errno;
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)); /* TCP alone knows it */
	return bind(fd, (struct sockaddr *)&from, length) < 0 ? errno : 0;
}
