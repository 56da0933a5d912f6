/* SPDX-License-Identifier: Apache-2.0 */
/* `--abi`: the contract as this compiler laid it out, for the other side to check its own codec against. */
#ifndef FAIRLEAD_DESCRIBE_H
#define FAIRLEAD_DESCRIBE_H

/* Prints one JSON object on standard output. */
void describe_abi(void);

#endif
