"""What a client gets beside an engine's body: which headers pass, which the gateway adds, how a stream ends."""

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
