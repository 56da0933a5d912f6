/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's parser of PROXY headers as a filter: a question is a byte (1: a datagram), a 32-bit length and the
 * bytes; an answer is a verdict and, of a complete header, its struct. Each question lies in memory of its exact size,
 * so that a sanitizer sees every byte that is read behind it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proxy.h"

int main(void)
{
	uint8_t datagram;
	uint32_t length;

	while (fread(&datagram, 1, 1, stdin) == 1 && fread(&length, sizeof(length), 1, stdin) == 1) {
		uint8_t *data = malloc(length);
		struct proxy_header header;
		uint32_t verdict;

		if ((length && data == NULL) || fread(data, 1, length, stdin) != length)
			return 1;
		memset(&header, 0, sizeof(header));
		verdict = proxy_parse(data, length, datagram, &header);
		free(data);
		fwrite(&verdict, sizeof(verdict), 1, stdout);
		fwrite(&(uint64_t){header.length}, 8, 1, stdout);
		fwrite(&(uint32_t){header.kind}, 4, 1, stdout);
		fwrite(&header.source, sizeof(header.source), 1, stdout);
		fwrite(&header.destination, sizeof(header.destination), 1, stdout);
		fwrite(&(uint32_t){(uint32_t)header.passed}, 4, 1, stdout);
		fwrite(header.tlvs, 1, sizeof(header.tlvs), stdout);
		fflush(stdout);
	}
	return 0;
}
