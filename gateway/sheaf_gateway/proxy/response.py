"""Writing heads: responses to clients and requests to engines. Pure functions.

Framing and hop-by-hop fields (RFC 9110 section 7.6.1) never cross the proxy: what either side said about
its own connection is dropped, and fresh framing is written.
"""

from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus

from sheaf_gateway.proxy.types import Header, Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NEVER_NOMINATED = frozenset({b"authorization", b"content-encoding", b"content-type", b"host"})
_REPLACED = HOP_BY_HOP | {b"host"}
_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
_STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, _PHRASES.get(code, b"")) for code in range(200, 600)}

CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
CLOSE_DELIMITED = b"connection: close\r\n\r\n"
NO_BODY = b"\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def response_head(status: int, headers: Headers, framing: bytes) -> bytes:
    """Return a response head; `framing` is its last lines, the empty one included.

    Raises:
        ValueError: The status is not final, or a header holds a line break or NUL.
    """
    return joined_head(status, joined(headers), framing)


def joined_head(status: int, lines: bytes, framing: bytes) -> bytes:
    """Return a response head of header lines that `joined` made.

    Raises:
        ValueError: The status is not final.
    """
    line = _STATUS_LINES.get(status)
    if line is None:
        raise ValueError(f"status {status} is not a final HTTP status (200 to 599)")
    return line + lines + framing


def joined(headers: Headers) -> bytes:
    """Return the end-to-end headers as they go out, each with its line end.

    Raises:
        ValueError: A header holds a line break or NUL.
    """
    return _join([name + b": " + value for name, value in headers if name.lower() not in HOP_BY_HOP])


def length_framing(length: int, *, keep_alive: bool, minor: int) -> bytes:
    """Return the framing lines of a body of `length` bytes."""
    if not keep_alive:
        return b"content-length: %d\r\nconnection: close\r\n\r\n" % length
    if minor == 0:
        return b"content-length: %d\r\nconnection: keep-alive\r\n\r\n" % length
    return b"content-length: %d\r\n\r\n" % length


def chunk(data: bytes) -> bytes:
    """Return one chunk of chunked coding; `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def forwardable(headers: Sequence[Header]) -> list[Header]:
    """Return the end-to-end headers: those neither hop-by-hop nor named by a Connection field.

    A Connection field cannot take away what the next hop needs to be safe (credentials, type, host).
    """
    kept = [header for header in headers if header[0] not in HOP_BY_HOP]
    for name, _ in headers:
        if name == b"connection":
            nominated = _nominated(headers)
            return [header for header in kept if header[0] not in nominated]
    return kept


def _nominated(headers: Sequence[Header]) -> set[bytes]:
    values = [value for name, value in headers if name == b"connection"]
    options = {option.strip().lower() for value in values for option in value.split(b",")}
    return options - _NEVER_NOMINATED


def request_head(method: str, target: str, authority: bytes, headers: Headers, length: int) -> bytes:
    """Return the head of a request to an engine, with a fresh Host and Content-Length.

    Hop-by-hop headers and Host are dropped from `headers`, whose names are lower-case.

    Raises:
        ValueError: The method, the target or a header holds what would break the head apart.
    """
    return lined_request_head(method, target, authority, request_lines(headers), length)


def request_lines(headers: Headers) -> bytes:
    """Return the end-to-end headers of a request but for Host as they go out, each with its line end.

    Raises:
        ValueError: A header holds a line break or NUL.
    """
    return _join([name + b": " + value for name, value in headers if name not in _REPLACED])


def lined_request_head(method: str, target: str, authority: bytes, lines: bytes, length: int) -> bytes:
    """Return what `request_head` does of header lines that `request_lines` made.

    Raises:
        ValueError: The method or the target holds what would break the head apart.
    """
    return b"%bhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (_first(method, target), authority, lines, length)


@lru_cache(maxsize=256)
def _first(method: str, target: str) -> bytes:
    first = f"{method} {target} HTTP/1.1"
    if not first.isprintable() or not first.isascii() or first.count(" ") != 2:
        raise ValueError("the method or the target holds a space, a control character or one beyond ASCII")
    return first.encode() + b"\r\n"


def _join(lines: list[bytes]) -> bytes:
    """Return header lines as they go out; a line break within one is where response splitting begins."""
    text = b"".join(lines)
    if b"\n" in text or b"\r" in text or b"\0" in text:
        raise ValueError("a header holds a line break or NUL")
    return b"%b\r\n" % b"\r\n".join(lines) if lines else b""
