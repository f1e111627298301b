"""Strict reading of a request head: pure functions from bytes to a `RequestHead` or a `Refusal`.

Request smuggling lives on heads that two parsers read differently (RFC 9112 sections 2, 3, 5, 6 and 11.2).
So one linear regular expression holds the grammar of a whole head with nothing lenient in it; only what it
accepts is taken apart, by the same words, so that both read the same. What the grammar allows but peers are
known to disagree on (repeated lengths, codings beside chunked, folded lines) is refused too. Tests compare the
reading with llhttp's. Heads end at the first empty line, which the caller finds.
"""

import re
from functools import lru_cache

import msgspec

from sheaf_gateway.proxy.errors import Refusal
from sheaf_gateway.proxy.limits import ServerLimits
from sheaf_gateway.proxy.types import Header, Known

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
REFUSED_METHODS = frozenset({"CONNECT", "TRACE"})

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}+) ([\x21-\x7e]++) HTTP/([0-9])\.([0-9])\r\n")
_SERVED = rb"(" + "|".join(METHODS).encode("ascii") + rb") ([\x21-\x7e]++) HTTP/1\.([01])\r\n"
_FIELDS = rb"(?:" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n"
_FIELD = re.compile(rb"(" + _TOKEN + rb"++):([^\r]*+)\r\n")
_SERVED_LINE = re.compile(_SERVED)
_HEAD = re.compile(_SERVED + _FIELDS)
_HTTP_VERSION = re.compile(rb" HTTP/(?!1\.[01])[0-9](?:\.[0-9])?$")
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]*)(.*)")
_BARE_LINE_END = re.compile(rb"\r(?=[^\n])|(?<!\r)\n")
_MAX_LENGTH_DIGITS = 15
_DIGITS_OF_64_BITS = 20
_ONCE = {
    b"content-length": "invalid_framing",
    b"transfer-encoding": "invalid_framing",
    b"host": "invalid_host",
    b"expect": "unsupported_expectation",
}


class RequestHead(msgspec.Struct, frozen=True):
    """A request head that has exactly one reading."""

    method: str
    target: str
    path: str
    query: str
    headers: tuple[Header, ...]
    minor: int
    keep_alive: bool
    content_length: int
    chunked: bool
    expects_continue: bool
    known: Known = msgspec.field(default_factory=Known)


def parse_head(raw: bytes, limits: ServerLimits) -> RequestHead:
    """Read a whole head, its closing empty line included.

    Raises:
        Refusal: With the status, the reason and the code to answer.
    """
    match = _HEAD.fullmatch(raw)
    if match is None or match.end(3) + 2 > limits.max_request_line or len(raw) > limits.max_head:
        raise _diagnose(raw, limits)
    method, target, minor = match.groups()
    headers = [(name.lower(), value.strip()) for name, value in _FIELD.findall(raw, match.end(3) + 2)]
    return _decide(method.decode("ascii"), target, int(minor), headers, limits)


def check_partial(raw: bytes, seen: int, limits: ServerLimits) -> None:
    """Refuse early what no further byte can mend in a head that has not ended yet.

    The first `seen` bytes passed before: the work is linear in the head's size however it arrives.

    Raises:
        Refusal: As `parse_head` would.
    """
    line_end = raw.find(b"\r\n")
    if line_end < 0 and len(raw) >= limits.max_request_line:
        raise _line_too_long(limits)
    if len(raw) > limits.max_head:
        raise _head_too_large(limits)
    if line_end >= 0 and line_end + 2 > seen:
        line = _REQUEST_LINE.match(raw)
        if line is None or line[3] != b"1" or line[4] not in {b"0", b"1"}:
            raise _diagnose_line(raw, limits)
    if _BARE_LINE_END.search(raw, seen):
        raise _bare_line_end()


def _decide(method: str, raw_target: bytes, minor: int, headers: list[Header], limits: ServerLimits) -> RequestHead:
    if len(headers) > limits.max_headers:
        raise Refusal(431, f"More than {limits.max_headers} header fields; send fewer.", "too_many_headers")
    fields = _by_name(headers)
    chunked = b"transfer-encoding" in fields and _chunked(fields, minor)
    length = 0 if chunked else _content_length(fields.get(b"content-length", b"0"), limits)
    _check_host(fields.get(b"host"), minor)
    all_headers, target = _targeted(method, raw_target, headers)
    path, _, query = target.partition("?")
    expects = b"expect" in fields and _expects_continue(fields[b"expect"], minor) and (chunked or length > 0)
    keep = _keep_alive(fields[b"connection"], minor) if b"connection" in fields else minor > 0
    return RequestHead(method, target, path, query, all_headers, minor, keep, length, chunked, expects)


def _by_name(headers: list[Header]) -> dict[bytes, bytes]:
    """Return the headers by name; those that decide framing must not be given twice."""
    fields = dict(headers)
    if len(fields) == len(headers):
        return fields
    names = [name for name, _ in headers]
    for name, code in _ONCE.items():
        if names.count(name) > 1:
            raise Refusal(400, f"{name.decode().title()} is given more than once; send it once.", code)
    if b"connection" in fields:
        fields[b"connection"] = b",".join(value for name, value in headers if name == b"connection")
    return fields


def _chunked(fields: dict[bytes, bytes], minor: int) -> bool:
    if b"content-length" in fields:
        raise Refusal(400, "Content-Length and Transfer-Encoding must not come together.", "invalid_framing")
    if minor == 0:
        raise Refusal(400, "Transfer-Encoding does not exist in HTTP/1.0; send Content-Length.", "invalid_framing")
    if fields[b"transfer-encoding"].lower() != b"chunked":
        raise Refusal(400, "Only 'Transfer-Encoding: chunked', alone, is accepted.", "invalid_framing")
    return True


def _content_length(digits: bytes, limits: ServerLimits) -> int:
    if not digits.isdigit():
        raise Refusal(400, "Content-Length must be decimal digits only.", "invalid_framing")
    if len(digits) <= _MAX_LENGTH_DIGITS:
        length = int(digits)
    elif len(found := digits.lstrip(b"0")) > _DIGITS_OF_64_BITS or int(found or b"0") >= 2**64:
        raise Refusal(400, "Content-Length is beyond 64 bits.", "invalid_framing")
    else:
        length = limits.max_body + 1
    if length > limits.max_body:
        raise body_too_large(limits)
    return length


def _check_host(host: bytes | None, minor: int) -> None:
    if host is None and minor > 0:
        raise Refusal(400, "A Host header is required.", "invalid_host")
    if host is not None and not _is_authority(host):
        raise Refusal(400, "The Host header is not a host name with an optional port.", "invalid_host")


def _targeted(method: str, target: bytes, headers: list[Header]) -> tuple[tuple[Header, ...], str]:
    """Return the headers with the authoritative Host, and the target in origin form (RFC 9112, 3.2)."""
    if target.startswith(b"/") and b"#" not in target:
        return tuple(headers), target.decode("ascii")
    if target == b"*" and method == "OPTIONS":
        return tuple(headers), "*"
    match = _ABSOLUTE.fullmatch(target)
    if match is None or b"#" in target or not _is_authority(match[1]):
        raise Refusal(400, "The request target must be a path that begins with '/'.", "invalid_target")
    rest = match[2].decode("ascii")
    others = (header for header in headers if header[0] != b"host")
    return ((b"host", match[1]), *others), rest if rest.startswith("/") else "/" + rest


@lru_cache(maxsize=256)
def _is_authority(host: bytes) -> bool:
    return _AUTHORITY.fullmatch(host) is not None


def _keep_alive(connection: bytes, minor: int) -> bool:
    options = {option.strip().lower() for option in connection.split(b",")}
    return b"close" not in options and (minor > 0 or b"keep-alive" in options)


def _expects_continue(expect: bytes, minor: int) -> bool:
    if minor == 0:
        return False
    if expect.lower() != b"100-continue":
        raise Refusal(417, "Only 'Expect: 100-continue' is supported.", "unsupported_expectation")
    return True


def _diagnose(raw: bytes, limits: ServerLimits) -> Refusal:
    line = _SERVED_LINE.match(raw)
    if line is None or line.end() > limits.max_request_line:
        return _diagnose_line(raw, limits)
    if len(raw) > limits.max_head:
        return _head_too_large(limits)
    return _diagnose_fields(raw)


def _diagnose_method(method: str) -> Refusal:
    if method in REFUSED_METHODS:
        allow = ", ".join(METHODS).encode("ascii")
        return Refusal(405, f"{method} is not served here.", "method_not_allowed", ((b"allow", allow),))
    return Refusal(501, "The request method is not one that this server implements.", "method_not_implemented")


def _diagnose_line(raw: bytes, limits: ServerLimits) -> Refusal:
    line, _, _ = raw.partition(b"\r\n")
    if len(line) + 2 > limits.max_request_line:
        return _line_too_long(limits)
    if _BARE_LINE_END.search(line):
        return _bare_line_end()
    if _HTTP_VERSION.search(line):
        return _unsupported_version()
    if (whole := _REQUEST_LINE.match(raw)) is not None:
        return _diagnose_method(whole[1].decode("ascii"))
    return Refusal(400, "The request line must be 'METHOD /path HTTP/1.1'.", "invalid_request_line")


def _diagnose_fields(raw: bytes) -> Refusal:
    if _BARE_LINE_END.search(raw):
        return _bare_line_end()
    for line in raw.split(b"\r\n")[1:]:
        if line[:1] in {b" ", b"\t"}:
            return Refusal(400, "Folded header lines are not accepted.", "invalid_header")
    return Refusal(400, "A header line is not 'name: value' without control characters.", "invalid_header")


def _bare_line_end() -> Refusal:
    return Refusal(400, "Lines must end with CR LF; a bare CR or LF was found.", "invalid_line_end")


def _unsupported_version() -> Refusal:
    return Refusal(505, "Only HTTP/1.1 and HTTP/1.0 are served on this port.", "unsupported_http_version")


def _line_too_long(limits: ServerLimits) -> Refusal:
    return Refusal(414, f"The request line is longer than {limits.max_request_line} bytes.", "request_line_too_long")


def _head_too_large(limits: ServerLimits) -> Refusal:
    return Refusal(431, f"The request head is larger than {limits.max_head} bytes.", "head_too_large")


def body_too_large(limits: ServerLimits) -> Refusal:
    """Return the refusal of a body beyond `limits.max_body`."""
    return Refusal(413, f"The request body is larger than {limits.max_body} bytes.", "body_too_large")
