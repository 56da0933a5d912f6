/* SPDX-License-Identifier: GPL-2.0-only */
/* Lets every frame pass: the other end of a veth needs some program to take frames that XDP sends. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int fairlead_pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
