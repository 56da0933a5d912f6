/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests and answers on the control socket. While an answer waits for the agent to read, no further request is
 * taken; a newer connection replaces the older one, because the older one's agent is dead or stuck.
 */
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "request.h"

#define MESSAGE_MAX 262144u /* a table of 65537 slots and 16384 members is 197 kB */
#define PER_ROUND 64u	    /* requests before the flows have their turn again */
#define DESCRIPTORS_MAX 4u  /* more than any request needs; what is too much is closed */

static int listening = -1, agent = -1;
static bool has_work, can_accept;
static bool answering, watching_output;
static struct answer answer;
static struct sockaddr_un path;
static ino_t path_inode;
static _Alignas(16) uint8_t buffer[MESSAGE_MAX];

bool control_bind(const char *name)
{
	struct stat status;
	mode_t mask;
	bool bound;

	path.sun_family = AF_UNIX;
	if (strlen(name) >= sizeof(path.sun_path)) {
		errno = ENAMETOOLONG;
		return false;
	}
	strcpy(path.sun_path, name);
	listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (listening < 0 || (unlink(name) < 0 && errno != ENOENT))
		return false;
	mask = umask(0177);
	bound = bind(listening, (struct sockaddr *)&path, sizeof(path)) == 0;
	umask(mask);
	if (!bound || stat(name, &status) < 0 || listen(listening, 8) < 0)
		return false;
	path_inode = status.st_ino;
	return watch(listening, NULL, TAG_CONTROL_LISTENER, EPOLLIN);
}

static bool adopt(int fd)
{
	agent = fd;
	answering = watching_output = false;
	return watch(fd, NULL, TAG_CONTROL, EPOLLIN);
}

bool control_inherit(int fd)
{
	int accepts = 0;
	socklen_t length = sizeof(accepts);

	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &length) < 0)
		return false;
	if (!accepts)
		return adopt(fd);
	listening = fd;
	return watch(fd, NULL, TAG_CONTROL_LISTENER, EPOLLIN);
}

void control_event(enum tag tag, uint32_t events)
{
	(void)events;
	if (tag == TAG_CONTROL_LISTENER)
		can_accept = true;
	else
		has_work = true;
}

static void let_go(void)
{
	if (agent >= 0)
		close(agent);
	agent = -1;
	answering = false;
}

static void accept_agent(void)
{
	int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	let_go();
	if (!adopt(fd))
		let_go();
	has_work = true;
}

/* Level-triggered: input while there is no answer to finish, output while there is. */
static void wait_for_output(bool output)
{
	struct epoll_event event = {.events = output ? EPOLLOUT : EPOLLIN, .data.u64 = TAG_CONTROL};

	if (output != watching_output)
		epoll_ctl(worker.epoll, EPOLL_CTL_MOD, agent, &event);
	watching_output = output;
}

/* Whether the answer is out. */
static bool finish_answer(void)
{
	switch (answer_go_on(&answer, agent)) {
	case ANSWERED:
		answering = false;
		wait_for_output(false);
		return true;
	case BLOCKED:
		wait_for_output(true);
		return false;
	default:
		let_go();
		return false;
	}
}

/* Keeps the first descriptor that came along and closes the others. */
static int take_descriptor(struct msghdr *message)
{
	struct cmsghdr *header;
	int kept = -1, fd;

	for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = CMSG_LEN(0); at + sizeof(fd) <= header->cmsg_len; at += sizeof(fd)) {
			memcpy(&fd, (char *)header + at, sizeof(fd));
			if (kept < 0)
				kept = fd;
			else
				close(fd);
		}
	}
	return kept;
}

static void respond(size_t length, int flags, int fd)
{
	static const struct fl_header nothing;
	const struct fl_header *request = length >= sizeof(*request) ? (const struct fl_header *)buffer : &nothing;

	if (length < sizeof(*request))
		answer_verdict(&answer, request, REFUSE(EINVAL, "message is shorter than its header"));
	else if (flags & MSG_TRUNC)
		answer_verdict(&answer, request, REFUSE(EMSGSIZE, "message is too long"));
	else if (flags & MSG_CTRUNC)
		answer_verdict(&answer, request, REFUSE(EMFILE, "not all descriptors arrived"));
	else if (!answer_begin(&answer, request, length))
		answer_verdict(&answer, request, request_run(request, length, &fd));
	if (fd >= 0)
		close(fd);
	answering = true;
}

/* Whether a request was received and answered. */
static bool serve_one(void)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
	} ancillary;
	struct iovec part = {buffer, sizeof(buffer)};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = ancillary.bytes,
				 .msg_controllen = sizeof(ancillary.bytes)};
	ssize_t n = recvmsg(agent, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		let_go();
		return false;
	}
	respond((size_t)n, message.msg_flags, take_descriptor(&message));
	return finish_answer();
}

void control_run(void)
{
	if (can_accept)
		accept_agent();
	can_accept = false;
	if (!has_work || agent < 0)
		return;
	has_work = false;
	if (answering && !finish_answer())
		return;
	for (unsigned i = 0; i < PER_ROUND && agent >= 0 && !worker.quit; i++)
		if (!serve_one())
			break;
}

void control_close(void)
{
	struct stat status;

	let_go();
	if (listening >= 0)
		close(listening);
	if (path_inode && stat(path.sun_path, &status) == 0 && status.st_ino == path_inode)
		unlink(path.sun_path);
}
