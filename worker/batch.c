/* SPDX-License-Identifier: Apache-2.0 */
/* Two arrays of messages. A datagram that a full send buffer refuses is lost, as on any link. */
#define _GNU_SOURCE
#include "batch.h"

#include <errno.h>
#include <string.h>

#include "address.h"

#define IN 32u
#define OUT 32u
#define PER_FLOW 8u	/* answers of one flow in one call */
#define LARGEST 65536u	/* more than any datagram */

struct slots {
	struct sockaddr_storage name;
	union batch_control control;
	struct iovec part;
};

static uint8_t in_data[IN][LARGEST], out_data[OUT][LARGEST];
static struct slots in_slots[IN], out_slots[OUT];
static struct mmsghdr in[IN], out[OUT];
static unsigned waiting; /* messages in `out`, all for the same socket */
static int out_fd = -1;

bool batch_tell_destination(int fd, uint8_t family)
{
	static const int on = 1;

	if (family == 4)
		return setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on)) == 0;
	return setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on)) == 0;
}

/* Whether the kernel told where the datagram was sent to; the port is the socket's own. */
static bool destination(struct msghdr *message, struct fl_address *local)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		struct sockaddr_storage name = {0};

		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
			struct in_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof(info));
			name.ss_family = AF_INET;
			((struct sockaddr_in *)&name)->sin_addr = info.ipi_addr;
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
			struct in6_pktinfo info;

			memcpy(&info, CMSG_DATA(c), sizeof(info));
			name.ss_family = AF_INET6;
			((struct sockaddr_in6 *)&name)->sin6_addr = info.ipi6_addr;
		} else {
			continue;
		}
		return address_from_socket(&name, local);
	}
	return false;
}

static uint32_t scope_of(const struct sockaddr_storage *name)
{
	return name->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)name)->sin6_scope_id : 0;
}

static void prepare_in(bool with_control)
{
	for (unsigned i = 0; i < IN; i++) {
		struct slots *slot = &in_slots[i];

		slot->part = (struct iovec){in_data[i], LARGEST};
		in[i].msg_hdr = (struct msghdr){.msg_name = &slot->name,
						.msg_namelen = sizeof(slot->name),
						.msg_iov = &slot->part,
						.msg_iovlen = 1,
						.msg_control = with_control ? &slot->control : NULL,
						.msg_controllen = with_control ? sizeof(slot->control) : 0};
	}
}

unsigned batch_receive(int fd, const struct fl_address *address, struct datagram **datagrams)
{
	static struct datagram found[IN];
	struct fl_address bound;
	unsigned n = 0;
	int received;

	*datagrams = found;
	if (address == NULL && !address_of_socket(fd, &bound))
		return 0;
	prepare_in(address == NULL);
	received = recvmmsg(fd, in, IN, MSG_DONTWAIT, NULL);
	for (int i = 0; i < received; i++) {
		struct datagram *datagram = &found[n];

		*datagram = (struct datagram){.data = in_data[i], .length = in[i].msg_len};
		datagram->scope = scope_of(&in_slots[i].name);
		if (!address_from_socket(&in_slots[i].name, &datagram->peer))
			continue;
		if (address)
			datagram->local = *address;
		else if (!destination(&in[i].msg_hdr, &datagram->local))
			continue;
		else
			datagram->local.port = bound.port;
		datagram->client = datagram->peer;
		datagram->vip = datagram->local;
		n++;
	}
	return n;
}

size_t batch_leave_from(union batch_control *control, const struct fl_address *from, uint32_t scope)
{
	struct cmsghdr *c = &control->align;

	memset(control, 0, sizeof(*control));
	if (from->family == 4) {
		struct in_pktinfo info = {0};

		memcpy(&info.ipi_spec_dst, from->ip + 12, 4);
		*c = (struct cmsghdr){.cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO, .cmsg_len = CMSG_LEN(sizeof(info))};
		memcpy(CMSG_DATA(c), &info, sizeof(info));
		return CMSG_SPACE(sizeof(info));
	}
	struct in6_pktinfo info = {.ipi6_ifindex = scope};

	memcpy(&info.ipi6_addr, from->ip, 16);
	*c = (struct cmsghdr){.cmsg_level = IPPROTO_IPV6, .cmsg_type = IPV6_PKTINFO, .cmsg_len = CMSG_LEN(sizeof(info))};
	memcpy(CMSG_DATA(c), &info, sizeof(info));
	return CMSG_SPACE(sizeof(info));
}

/* Makes message i of the outgoing batch ready: where to, where from, and so many bytes. */
static void address_out(unsigned i, const struct fl_address *peer, uint32_t scope, const struct fl_address *from)
{
	struct slots *slot = &out_slots[i];
	struct msghdr *message = &out[i].msg_hdr;
	size_t length = out[i].msg_len;

	slot->part = (struct iovec){out_data[i], length};
	*message = (struct msghdr){.msg_name = &slot->name, .msg_iov = &slot->part, .msg_iovlen = 1};
	message->msg_namelen = address_to_socket(peer, peer->port, &slot->name);
	if (slot->name.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&slot->name)->sin6_scope_id = scope;
	if (from) {
		message->msg_control = &slot->control;
		message->msg_controllen = batch_leave_from(&slot->control, from, scope);
	}
}

int batch_pass(int fd, int to, const struct fl_address *peer, uint32_t scope, const struct fl_address *from,
	       size_t *bytes)
{
	unsigned room;
	int n;

	if (to != out_fd || waiting == OUT)
		batch_flush();
	out_fd = to;
	room = OUT - waiting < PER_FLOW ? OUT - waiting : PER_FLOW;
	for (unsigned i = waiting; i < waiting + room; i++) {
		out_slots[i].part = (struct iovec){out_data[i], LARGEST};
		out[i].msg_hdr = (struct msghdr){.msg_iov = &out_slots[i].part, .msg_iovlen = 1};
	}
	n = recvmmsg(fd, out + waiting, room, MSG_DONTWAIT, NULL);
	*bytes = 0;
	for (int i = 0; i < n; i++, waiting++) {
		*bytes += out[waiting].msg_len;
		address_out(waiting, peer, scope, from);
	}
	return n;
}

void batch_flush(void)
{
	for (unsigned done = 0; done < waiting;) {
		int n = sendmmsg(out_fd, out + done, waiting - done, MSG_DONTWAIT | MSG_NOSIGNAL);

		done += n > 0 ? (unsigned)n : 1; /* the one that cannot be sent is lost, the next may be sound */
	}
	waiting = 0;
}
