# SPDX-License-Identifier: Apache-2.0
"""How single values are written: each Form parses one text, says what is allowed, and writes its values back.

Invariant: a Form takes text from the file (or None, a dict, a list, when the user wrote that instead) and raises
Refused with what is allowed; it never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from fairlead.config.findings import Refused, did_you_mean, shown
from fairlead.model.net import Endpoint, IPAddress, Listen

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_PORT = re.compile(r"[0-9]{1,5}")
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DOTTED = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_MULTICAST = 0b1110  # the first bits (RFC 5771)
_DOTTED_AND_PORT = re.compile(rf"{_DOTTED.pattern}:([1-9][0-9]{{0,4}})")


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a value: ``words`` for people, ``parse`` for the schema, ``write`` for defaults."""

    words: str
    parse: Callable[[object], object]
    write: Callable[[Any], str] = str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by ``parse`` alone."""
        return core_schema.no_info_plain_validator_function(self.parse)


def _text(value: object, words: str) -> str:
    if isinstance(value, str):
        return value
    raise Refused(f"{shown(value)} is not allowed here; write {words}")


def integer(low: int, high: int, words: str = "") -> Form:
    """A whole decimal number from ``low`` to ``high``."""
    said = words or f"a whole number from {low} to {high}"

    def parse(value: object) -> int:
        text = _text(value, said)
        if not _INTEGER.fullmatch(text) or (len(text) > 1 and text.lstrip("-").startswith("0")):
            raise Refused(f"{shown(text)} is not a whole number; write {said}")
        number = int(text)
        if not low <= number <= high:
            raise Refused(f"{text} is out of range; write {said}")
        return number

    return Form(said, parse)


def duration(low_s: float, high_s: float, *, off: bool = False) -> Form:
    """A duration in seconds, written with its unit; ``off`` allows the word, which gives 0."""
    words = f"a duration from {write_duration(low_s)} to {write_duration(high_s)}" + (", or `off`" if off else "")
    said = f"{words}; units are ms, s, m, h"

    def parse(value: object) -> float:
        text = _text(value, said)
        if off and text == "off":
            return 0.0
        found = _DURATION.fullmatch(text)
        if found is None:
            raise Refused(f"{shown(text)} is not a duration; write {said}")
        number, unit = found.groups()
        seconds = int(number) / 1000 if unit == "ms" else int(number) * _UNIT_S[unit]
        if not low_s <= seconds <= high_s:
            raise Refused(f"{text} is out of range; write {said}")
        return seconds

    return Form(words, parse, lambda seconds: "off" if off and seconds == 0 else write_duration(seconds))


def write_duration(seconds: float) -> str:
    """Write a duration in the largest unit that keeps it whole; durations up to ten minutes stay in seconds."""
    milliseconds = round(seconds * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    whole = milliseconds // 1000
    if whole > 600 and whole % 3600 == 0:
        return f"{whole // 3600}h"
    return f"{whole}s"


def choice(words: type[StrEnum], without: Collection[StrEnum] = ()) -> Form:
    """One word of an enum, but none of ``without``."""
    known = {member.value: member for member in words if member not in without}
    said = "`" + "`, `".join(known) + "`"

    def parse(value: object) -> StrEnum:
        text = _text(value, f"one of {said}")
        member = known.get(text)
        if member is None:
            raise Refused(f"{shown(text)} is not one of {said}{did_you_mean(text, known)}")
        return member

    return Form(said.replace("`, `", "` \\| `"), parse)


def _boolean(value: object) -> bool:
    text = _text(value, "`true` or `false`")
    if text not in ("true", "false"):
        raise Refused(f"{shown(text)} is not allowed here; write `true` or `false`")
    return text == "true"


BOOLEAN = Form("`true` \\| `false`", _boolean, lambda value: str(value).lower())


def address(text: str) -> IPAddress:
    """One IP address of a host, in the only form that names it on every node: no zone, no v4-mapped IPv6."""
    if dotted := _DOTTED.fullmatch(text):  # a fifth of the time that is taken below
        a, b, c, d = map(int, dotted.groups())
        return IPv4Address(a << 24 | b << 16 | c << 8 | d)
    try:
        found: IPAddress = ip_address(text)
    except ValueError:
        hint = ""
        if re.search("[a-zA-Z]", text) and ":" not in text:
            hint = " (names are not resolved)"
        raise Refused(f"{shown(text)} is not an IP address{hint}; write 192.0.2.10 or [2001:db8::10]") from None
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            raise Refused(f"{shown(text)} has a zone; only addresses without one are allowed")
        if found.ipv4_mapped is not None:
            raise Refused(f"{shown(text)} is an IPv4 address in IPv6 clothes; write {found.ipv4_mapped}")
    return found


def _split(text: str, words: str) -> tuple[IPAddress, str | None]:
    """ADDRESS, ADDRESS:PORT, [V6] or [V6]:PORT; the port is None when there is none."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        found = address(host)
        if not bracket or found.version != 6 or (rest and not rest.startswith(":")):
            raise Refused(f"{shown(text)} is not {words}")
        return found, rest[1:] if rest else None
    if text.count(":") > 1:
        raise Refused(f"{shown(text)} needs brackets around its IPv6 address: [2001:db8::10]:443")
    host, colon, port = text.partition(":")
    return address(host), port if colon else None


def _port(text: str, whole: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535 or text.startswith("0"):
        raise Refused(f"{shown(whole)} has no usable port; ports are 1 to 65535")
    return int(text)


_LISTEN_WORDS = "ADDRESS:PORT or [V6]:PORT with PORT a number, a range such as 8000-8099, or *"


def parse_listen(value: object) -> Listen:
    """Where a service is offered."""
    text = _text(value, _LISTEN_WORDS)
    host, port = _split(text, _LISTEN_WORDS)
    if port is None:
        raise Refused(f"{shown(text)} has no port; write {_LISTEN_WORDS}")
    if host.is_multicast:
        raise Refused(f"{shown(text)} is a multicast address; a service listens on a unicast address")
    if port == "*":
        return Listen(host, 1, 65535)
    low, dash, high = port.partition("-")
    first = _port(low, text)
    last = _port(high, text) if dash else first
    if last < first:
        raise Refused(f"{shown(text)} is a range that ends before it begins; write {last}-{first}")
    return Listen(host, first, last)


LISTEN = Form("ADDRESS:PORT, [V6]:PORT, or a list of them; PORT is a number, a range `8000-8099`, or `*`", parse_listen)

_ENDPOINT_WORDS = "ADDRESS:PORT or [V6]:PORT (without :PORT the server gets the port that the client used)"


def plain_endpoint(text: str) -> Endpoint | None:
    """The endpoint of a text that is just what ``str`` says of it; None: another way to write one, or no endpoint.

    A hundred thousand are read at a time, nearly all of them so, in a quarter of the time that others take.
    """
    found = _DOTTED_AND_PORT.fullmatch(text)
    if found is None:
        return None
    a, b, c, d, port = map(int, found.groups())
    number = a << 24 | b << 16 | c << 8 | d
    return Endpoint(IPv4Address(number), port) if number and a >> 4 != _MULTICAST and port <= 65535 else None


def parse_endpoint(value: object) -> Endpoint:
    """Address of a real server; port 0 when it is left out."""
    text = _text(value, _ENDPOINT_WORDS)
    host, port = _split(text, _ENDPOINT_WORDS)
    if host.is_unspecified or host.is_multicast:
        raise Refused(f"{shown(text)} is no address that a server can have")
    return Endpoint(host, 0 if port is None else _port(port, text))


ENDPOINT = Form(_ENDPOINT_WORDS, parse_endpoint)


def _address(value: object) -> IPAddress:
    return address(_text(value, "an IP address").removeprefix("[").removesuffix("]"))


def _address_and_port(value: object) -> Endpoint:
    endpoint = parse_endpoint(value)
    if endpoint.port == 0:
        raise Refused(f"{shown(value)} has no port; write ADDRESS:PORT or [V6]:PORT")
    return endpoint


ADDRESS_AND_PORT = Form("ADDRESS:PORT or [V6]:PORT", _address_and_port)
ADDRESS = Form("an IP address", _address)


def parse_network(value: object) -> IPv4Interface | IPv6Interface:
    """An address and a prefix length; host bits are kept, so that a warning can show them."""
    words = "a CIDR such as 192.0.2.0/24 or 2001:db8::/32, or one address"
    text = _text(value, words)
    host, slash, length = text.partition("/")
    found = address(host)
    bits = 32 if isinstance(found, IPv4Address) else 128
    if slash and (not re.fullmatch("[0-9]{1,3}", length) or int(length) > bits):
        raise Refused(f"{shown(text)} is not {words}; the prefix length is 0 to {bits}")
    return ip_interface(f"{host}/{int(length)}" if slash else host)


NETWORK = Form("CIDR or address", parse_network)


def parse_vip(text: str) -> IPv4Interface | IPv6Interface:
    """An address that an interface carries, with the prefix length of its network."""
    if "/" not in text:
        raise Refused(f"{shown(text)} has no prefix length; write ADDRESS/LENGTH such as 192.0.2.10/24")
    return parse_network(text)


def parse_name(value: object) -> str:
    """A name of a service, pool, server and so on."""
    words = "a name: at most 63 of a-z, 0-9 and -, beginning with a letter or a digit"
    text = _text(value, words)
    if NAME.fullmatch(text):
        return text
    near = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:63]
    raise Refused(f"{shown(text)} is not {words}" + (f"; did you mean `{near}`?" if NAME.fullmatch(near) else ""))


NAME_FORM = Form("a name: `[a-z0-9][a-z0-9-]{0,62}`", parse_name)


def pattern(expression: str, words: str) -> Form:
    """A text that matches ``expression`` as a whole."""
    compiled = re.compile(expression)

    def parse(value: object) -> str:
        text = _text(value, words)
        if not compiled.fullmatch(text):
            raise Refused(f"{shown(text)} is not {words}")
        return text

    return Form(words, parse)


INTERFACE = pattern(_INTERFACE.pattern, "the name of a network interface (at most 15 characters)")
TOKEN = pattern(_TOKEN.pattern, "an HTTP token")
PRINTABLE = pattern(r"[^\x00-\x1f\x7f]{1,1024}", "a text of 1 to 1024 printable characters")
HEADER_VALUE = pattern(r"[\x21-\x7e]([\x20-\x7e\t]{0,1022}[\x21-\x7e])?", "a header value in printable ASCII")
HTTP_PATH = pattern(r"/[\x21-\x7e]{0,2047}", "a path in printable ASCII that begins with /")
HOST = pattern(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", "a host name or an address")
SERVER_NAME = pattern(r"[A-Za-z0-9._-]{1,253}", "a host name")
FILE = pattern(r"/[^\x00-\x1f\x7f]{1,4094}", "an absolute path")
# A Unix socket address holds 107 bytes (unix(7)); worker-31.sock in the directory beside it must fit, too.
SOCKET = pattern(r"/[\x21-\x7e]{1,88}", "an absolute path of at most 89 characters")
_HEX = "hex:"
_BYTES_WORDS = "a text of 1 to 1024 characters, or `hex:` and pairs of hexadecimal digits (`hex:0d0a 00ff`)"


def _bytes(value: object) -> bytes:
    text = _text(value, _BYTES_WORDS)
    if not 1 <= len(text) <= 1024:
        raise Refused(f"{shown(text)} is not {_BYTES_WORDS}")
    if not text.startswith(_HEX):
        return text.encode(errors="surrogateescape")
    try:
        data = bytes.fromhex(text.removeprefix(_HEX))
    except ValueError:
        data = b""
    if not data:
        raise Refused(f"{shown(text)} is not {_BYTES_WORDS}")
    return data


BYTES = Form(_BYTES_WORDS, _bytes, lambda data: f"{_HEX}{data.hex()}")


def _percent(value: object) -> int:
    text = _text(value, "a percentage such as `50%`")
    found = re.fullmatch("([0-9]{1,3})%", text)
    if found is None or int(found.group(1)) > 100:
        raise Refused(f"{shown(text)} is not a percentage; write `0%` to `100%`")
    return int(found.group(1))


PERCENT = Form("a percentage `0%` to `100%`", _percent, lambda value: f"{value}%")


def _statuses(value: object) -> tuple[int, int]:
    words = "a status such as 200, or a range such as 200-399"
    text = _text(value, words)
    found = re.fullmatch("([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", text)
    if found is None or int(found.group(2) or found.group(1)) < int(found.group(1)):
        raise Refused(f"{shown(text)} is not {words}")
    return int(found.group(1)), int(found.group(2) or found.group(1))


STATUSES = Form("a status, a range `200-399`, or a list of them", _statuses, lambda v: f"{v[0]}-{v[1]}")


def word_or(word: str, meaning: object, form: Form) -> Form:
    """``word``, which means ``meaning``, or what ``form`` takes."""
    said = f"`{word}`, or {form.words}"

    def parse(value: object) -> object:
        if value == word:
            return meaning
        try:
            return form.parse(value)
        except Refused as error:
            raise Refused(f"{error}, or `{word}`") from None

    return Form(said, parse, lambda value: word if value == meaning else form.write(value))


def nullable(form: Form) -> Form:
    """``null``, or what ``form`` takes."""
    return Form(
        f"`null`, or {form.words}",
        lambda value: None if value is None else form.parse(value),
        lambda value: "null" if value is None else form.write(value),
    )


def one_or_many(value: object) -> object:
    """A list may be written without its brackets when it has one item."""
    return value if isinstance(value, list) else [value]


def names(values: Iterable[str]) -> str:
    """Names for a message: ``a``, ``b``."""
    return ", ".join(f"`{value}`" for value in values)
