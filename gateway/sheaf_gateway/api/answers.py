"""What a client gets beside an engine's body: which headers pass, which the gateway adds, how a stream ends; and
whether an answer is one at all.

Engines answer with JSON objects, and stream events of them; whatever else comes from where an engine should be is
garbage, and nothing of it reaches a client. An error event is an engine's last word, in every dialect, and as good as a
status of 500 or more, unless it says that the request is at fault (`"code": 4xx`).
"""

import re

import msgspec

from sheaf_gateway.continuation.chunks import ERROR
from sheaf_gateway.proxy.again import AnswerHead
from sheaf_gateway.proxy.response import joined
from sheaf_gateway.proxy.types import Header
from sheaf_gateway.routing.choose import Decision, explain

_NOT_PASSED = frozenset({b"server", b"date", b"x-request-id", b"x-sheaf-pod", b"x-sheaf-decision"})
_LAST = b"data: [DONE]"


def answer_headers(given: list[Header], request_id: str, pod: str, decision: Decision) -> list[Header]:
    """The headers of an answer that comes from an engine."""
    passed = [header for header in given if header[0] not in _NOT_PASSED]
    passed.append((b"x-request-id", request_id.encode("ascii")))
    passed.append((b"x-sheaf-pod", pod.encode("ascii")))
    passed.append((b"x-sheaf-decision", explain(decision).encode("ascii")))
    return passed


def answer_lines(head: AnswerHead, request_id: str, pod: str, decision: Decision) -> bytes:
    """The same as lines, of a whole answer; those that pass are made once for each head.

    Raises:
        ValueError: The name of the pod is none.
    """
    if not pod.isprintable():
        raise ValueError("the name of a pod holds a control character")
    passed = head.lines
    if not passed:
        passed = head.lines = joined([header for header in head.headers if header[0] not in _NOT_PASSED])
    own = f"x-request-id: {request_id}\r\nx-sheaf-pod: {pod}\r\nx-sheaf-decision: {explain(decision)}\r\n"
    return passed + own.encode("ascii")


def is_stream(headers: list[Header]) -> bool:
    """Whether an engine answers with server-sent events."""
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def ends_well(tail: bytes) -> bool:
    """Whether a stream's last bytes are its proper end."""
    return tail.rstrip().endswith(_LAST)


class _Object(msgspec.Struct):
    """A JSON object, whatever is in it."""


_BEGINNINGS = (b"data", b"event", b"id", b"retry", b":", b"\r", b"\n", b"\xef\xbb\xbf")
_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_FIELD_LINE = re.compile(rb"(?::|(?:data|event|id|retry)(?::|$))")
_ERROR_EVENT = b"event: error"
_ERRORS = (b'data: {"error"', _ERROR_EVENT)
_FAULT = re.compile(rb'^(?:data: \{"error"|event: error\r?$)', re.MULTILINE)
_REFUSED = re.compile(rb'"code":\s*4\d\d\b')
_BETWEEN = b"\n\ndata: "
_object = msgspec.json.Decoder(_Object).decode
_objects = msgspec.json.Decoder(list[_Object]).decode


def is_object(body: bytes) -> bool:
    """Whether these bytes are a JSON object."""
    try:
        _object(body)
        return body.isascii() or bool(body.decode())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def is_answer(headers: list[Header], body: bytes) -> bool:
    """Whether a whole answer is one: a JSON object, or bytes that were asked for (embeddings) and are called so."""
    return is_object(body) or (b"content-type", b"application/octet-stream") in headers


def may_begin(data: bytes) -> bool:
    """Whether a stream of server-sent events may begin so."""
    return data.startswith(_BEGINNINGS) or any(beginning.startswith(data) for beginning in _BEGINNINGS)


def sound(data: bytes) -> int:
    """How many bytes of these whole events, from the first, an engine may have streamed: all of them, or up to the
    first event that is none."""
    if data.startswith(b"data: {") and _plain(data):
        return len(data)
    end = 0
    while (found := _EVENT.match(data, end)) is not None and _sound(found[0]):
        end = found.end()
    return end


def fault(data: bytes) -> int:
    """Where in these whole events the first one begins in which the engine says that it failed; -1: in none."""
    if ERROR not in data and _ERROR_EVENT not in data:
        return -1
    for found in _FAULT.finditer(data):
        event = _EVENT.match(data, found.start())
        if event is None or _REFUSED.search(event[0]) is None:
            return found.start()
    return -1


def half_an_error(data: bytes) -> bool:
    """Whether a stream begins with an error event of which more is to come."""
    return data.startswith(_ERRORS) and _EVENT.match(data) is None


def _plain(data: bytes) -> bool:
    try:
        _objects(b"[%b]" % data[6:-2].replace(_BETWEEN, b","))
        return data.isascii() or bool(data.decode())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _sound(event: bytes) -> bool:
    lines = [line for line in event.splitlines() if line]
    if not all(map(_FIELD_LINE.match, lines)):
        return False
    data = b"\n".join([line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")])
    return data in {b"", b"[DONE]"} or is_object(data)
