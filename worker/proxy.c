/* SPDX-License-Identifier: Apache-2.0 */
/* Reading what strangers send: every length is compared before a byte is read. */
#include "proxy.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "address.h"

#define LINE_MAX 107u /* of version 1, with CR LF */
#define HEAD 16u      /* of version 2 */

enum { TLV_AUTHORITY = 2, TLV_CRC32C = 3, TLV_UNIQUE_ID = 5 };
enum { FAMILY_UNSPEC, FAMILY_INET, FAMILY_INET6, FAMILY_UNIX };
enum { TRANSPORT_UNSPEC, TRANSPORT_STREAM, TRANSPORT_DATAGRAM };

static const uint8_t signature[12] = "\r\n\r\n\0\r\nQUIT\n";
static const size_t block_of[] = {[FAMILY_UNSPEC] = 0, [FAMILY_INET] = 12, [FAMILY_INET6] = 36, [FAMILY_UNIX] = 216};

static uint16_t read16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void write16(uint8_t *at, size_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* A decimal port as the sender must write it: no sign, no zero in front. */
static bool port_of(const char *text, uint16_t *port)
{
	size_t digits = strspn(text, "0123456789");
	unsigned long value = 0;

	if (digits == 0 || digits > 5 || text[digits] != '\0' || (text[0] == '0' && digits > 1))
		return false;
	for (size_t i = 0; i < digits; i++)
		value = value * 10 + (unsigned long)(text[i] - '0');
	*port = (uint16_t)value;
	return value <= 65535;
}

static bool address_of_text(const char *text, int family, uint16_t port, struct fl_address *out)
{
	struct sockaddr_storage name = {.ss_family = (sa_family_t)family};
	struct sockaddr_in *v4 = (struct sockaddr_in *)&name;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name;

	if (inet_pton(family, text, family == AF_INET ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr) != 1)
		return false;
	if (family == AF_INET)
		v4->sin_port = htons(port);
	else
		v6->sin6_port = htons(port);
	return address_from_socket(&name, out);
}

/* The fields behind "PROXY ", separated by single spaces. */
static bool parse_fields(char *line, struct proxy_header *header)
{
	char *field[5];
	size_t fields = 0;
	uint16_t from, to;
	int family;

	for (char *rest = line; rest;) {
		if (fields == 5)
			return false;
		field[fields++] = strsep(&rest, " ");
	}
	if (fields != 5)
		return false;
	if (strcmp(field[0], "TCP4") == 0)
		family = AF_INET;
	else if (strcmp(field[0], "TCP6") == 0)
		family = AF_INET6;
	else
		return false;
	header->kind = PROXY_ADDRESSES;
	return port_of(field[3], &from) && port_of(field[4], &to) &&
	       address_of_text(field[1], family, from, &header->source) &&
	       address_of_text(field[2], family, to, &header->destination);
}

static enum proxy_verdict parse_line(const uint8_t *data, size_t length, struct proxy_header *header)
{
	size_t seen = length < LINE_MAX ? length : LINE_MAX;
	const uint8_t *end = memchr(data, '\r', seen);
	char line[LINE_MAX + 1];
	size_t text;

	if (end == NULL)
		return length < LINE_MAX ? PROXY_INCOMPLETE : PROXY_WRONG;
	text = (size_t)(end - data);
	if (text + 1 == length && length < LINE_MAX)
		return PROXY_INCOMPLETE;
	if (text + 1 >= seen || end[1] != '\n' || memchr(data, '\0', text))
		return PROXY_WRONG;
	header->length = text + 2;
	memcpy(line, data, text);
	line[text] = '\0';
	if (strncmp(line, "PROXY UNKNOWN", 13) == 0 && (line[13] == ' ' || line[13] == '\0')) {
		header->kind = PROXY_UNKNOWN; /* whatever follows is to be ignored */
		return PROXY_COMPLETE;
	}
	return parse_fields(line + 6, header) ? PROXY_COMPLETE : PROXY_WRONG;
}

/* CRC-32C (RFC 3720 appendix B.4), bit by bit: a header is short and few carry one. */
static uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t length)
{
	while (length--) {
		crc ^= *data++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1u));
	}
	return crc;
}

/* Whether the checksum at `at` is that of the whole header with zeros in its place. */
static bool checksum_fits(const uint8_t *data, size_t length, size_t at)
{
	static const uint8_t zeros[4];
	uint32_t told = (uint32_t)read16(data + at) << 16 | read16(data + at + 2), crc = ~0u;

	crc = crc32c(crc, data, at);
	crc = crc32c(crc, zeros, sizeof(zeros));
	crc = crc32c(crc, data + at + 4, length - at - 4);
	return ~crc == told;
}

static bool parse_tlvs(const uint8_t *data, size_t at, struct proxy_header *header)
{
	while (at < header->length) {
		size_t size, whole;

		if (header->length - at < 3)
			return false;
		size = read16(data + at + 1);
		whole = 3 + size;
		if (header->length - at < whole)
			return false;
		if (data[at] == TLV_CRC32C && (size != 4 || !checksum_fits(data, header->length, at + 3)))
			return false;
		if (data[at] == TLV_UNIQUE_ID && size > 128)
			return false;
		if ((data[at] == TLV_AUTHORITY || data[at] == TLV_UNIQUE_ID) &&
		    header->passed + whole <= sizeof(header->tlvs)) {
			memcpy(header->tlvs + header->passed, data + at, whole);
			header->passed += whole;
		}
		at += whole;
	}
	return true;
}

static void read_address(const uint8_t *ip, const uint8_t *port, unsigned family, struct fl_address *out)
{
	struct sockaddr_storage name = {.ss_family = family == FAMILY_INET ? AF_INET : AF_INET6};

	if (family == FAMILY_INET)
		memcpy(&((struct sockaddr_in *)&name)->sin_addr, ip, 4);
	else
		memcpy(&((struct sockaddr_in6 *)&name)->sin6_addr, ip, 16);
	address_from_socket(&name, out);
	out->port = read16(port);
}

static enum proxy_verdict parse_binary(const uint8_t *data, size_t length, bool datagram, struct proxy_header *header)
{
	unsigned family, transport, wanted = datagram ? TRANSPORT_DATAGRAM : TRANSPORT_STREAM;
	size_t width;

	if (length >= 13 && data[12] >> 4 != 2)
		return PROXY_WRONG;
	if (length >= 13 && (data[12] & 15) > 1)
		return PROXY_WRONG;
	if (length >= HEAD && HEAD + read16(data + 14) > PROXY_LENGTH_MAX)
		return PROXY_WRONG;
	if (length < HEAD || length < HEAD + read16(data + 14))
		return PROXY_INCOMPLETE;
	header->length = HEAD + read16(data + 14);
	if ((data[12] & 15) == 0) {
		header->kind = PROXY_LOCAL; /* the rest is to be ignored */
		return PROXY_COMPLETE;
	}
	family = data[13] >> 4;
	transport = data[13] & 15;
	if (family > FAMILY_UNIX || transport > TRANSPORT_DATAGRAM)
		return PROXY_WRONG;
	header->kind = PROXY_UNKNOWN;
	if (family == FAMILY_UNSPEC)
		return PROXY_COMPLETE;
	if (header->length < HEAD + block_of[family] || !parse_tlvs(data, HEAD + block_of[family], header))
		return PROXY_WRONG;
	if (family == FAMILY_UNIX || transport != wanted)
		return PROXY_COMPLETE;
	width = family == FAMILY_INET ? 4 : 16;
	header->kind = PROXY_ADDRESSES;
	read_address(data + HEAD, data + HEAD + 2 * width, family, &header->source);
	read_address(data + HEAD + width, data + HEAD + 2 * width + 2, family, &header->destination);
	return PROXY_COMPLETE;
}

static bool begins(const uint8_t *data, size_t length, const void *with, size_t size)
{
	return memcmp(data, with, length < size ? length : size) == 0;
}

enum proxy_verdict proxy_parse(const uint8_t *data, size_t length, bool datagram, struct proxy_header *header)
{
	enum proxy_verdict verdict = PROXY_WRONG;

	header->length = header->passed = 0;
	header->kind = PROXY_UNKNOWN;
	if (begins(data, length, signature, sizeof(signature)))
		verdict = parse_binary(data, length, datagram, header);
	else if (!datagram && begins(data, length, "PROXY ", 6))
		verdict = parse_line(data, length, header);
	return datagram && verdict == PROXY_INCOMPLETE ? PROXY_WRONG : verdict;
}

static size_t write_line(uint8_t *to, enum proxy_kind kind, const struct fl_address *source,
			 const struct fl_address *destination)
{
	int family = source->family == 4 && destination->family == 4 ? AF_INET : AF_INET6;
	size_t skip = family == AF_INET ? 12 : 0;
	char from_text[INET6_ADDRSTRLEN], to_text[INET6_ADDRSTRLEN];

	if (kind != PROXY_ADDRESSES)
		return (size_t)sprintf((char *)to, "PROXY UNKNOWN\r\n");
	inet_ntop(family, source->ip + skip, from_text, sizeof(from_text));
	inet_ntop(family, destination->ip + skip, to_text, sizeof(to_text));
	return (size_t)sprintf((char *)to, "PROXY %s %s %s %u %u\r\n", family == AF_INET ? "TCP4" : "TCP6", from_text,
			       to_text, source->port, destination->port);
}

size_t proxy_write(uint8_t *to, unsigned version, bool datagram, enum proxy_kind kind, const struct fl_address *source,
		   const struct fl_address *destination, const uint8_t *tlvs, size_t tlvs_length)
{
	bool v4 = source->family == 4 && destination->family == 4;
	size_t skip = v4 ? 12 : 0, width = 16 - skip;
	uint8_t *at = to + HEAD;

	if (version == 1)
		return write_line(to, kind, source, destination);
	memcpy(to, signature, sizeof(signature));
	to[12] = kind == PROXY_LOCAL ? 0x20 : 0x21;
	to[13] = 0;
	if (kind == PROXY_ADDRESSES) {
		to[13] = (uint8_t)((v4 ? FAMILY_INET : FAMILY_INET6) << 4 |
				   (datagram ? TRANSPORT_DATAGRAM : TRANSPORT_STREAM));
		memcpy(at, source->ip + skip, width);
		memcpy(at + width, destination->ip + skip, width);
		write16(at + 2 * width, source->port);
		write16(at + 2 * width + 2, destination->port);
		at += 2 * width + 4;
		if (tlvs_length)
			memcpy(at, tlvs, tlvs_length);
		at += tlvs_length;
	}
	write16(to + 14, (size_t)(at - to) - HEAD);
	return (size_t)(at - to);
}
