// SPDX-License-Identifier: GPL-2.0-only
/*
 * The XDP program: forwards packets of virtual services, turns replies of nat servers back, and leaves the rest to
 * the stack. Known flows take the fast path, everything else the general one; the two agree packet for
 * packet, which the tests show by running both.
 */
#include "common.h"
#include "parse.h"
#include "decide.h"
#include "transmit.h"
#include "fragment.h"
#include "icmp.h"
#include "fast6.h"
#include "opening.h"

static __always_inline int flow_packet(struct xdp_md *ctx, const struct packet *p, struct route *r)
{
	int verdict = decide(ctx, p, r, 0);

	if (verdict == REFUSED || verdict == RESET)
		return refuse(ctx, p);
	if (verdict != ROUTED)
		return verdict;
	if (p->fragment == FIRST_FRAGMENT)
		fragment_first(p, r);
	return transmit(ctx, p, r);
}

static __always_inline int general(struct xdp_md *ctx)
{
	struct scratch *work = get_scratch();

	if (!work)
		return XDP_PASS;
	__builtin_memset(&work->packet, 0, sizeof(work->packet));
	switch (parse(ctx, &work->packet)) {
	case PARSED_FLOW:
		return flow_packet(ctx, &work->packet, &work->route);
	case PARSED_LATER:
		return fragment_later(ctx, &work->packet);
	case PARSED_ICMP:
		return icmp_packet(ctx, &work->packet);
	case PARSED_BAD:
		return counted(FL_PASS_MALFORMED, XDP_PASS);
	default:
		return counted(FL_PASS_UNRELATED, XDP_PASS);
	}
}

SEC("xdp")
int fairlead(struct xdp_md *ctx)
{
	int verdict = NOT_PLAIN;

	if (fast_path) {
		verdict = fast(ctx);
		if (verdict == OPENING)
			verdict = opening(ctx);
		else if (verdict == NOT_PLAIN)
			verdict = fast6(ctx);
	}
	return verdict == NOT_PLAIN ? general(ctx) : verdict;
}

char _license[] SEC("license") = "GPL";
