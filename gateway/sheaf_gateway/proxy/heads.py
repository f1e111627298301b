"""Reading the heads of one connection: what a client sends again is not taken apart again. Pure.

Clients that keep a connection send nearly the same head each time, but for the digits of Content-Length. A head that
has the bytes of the one before, whatever stands for those digits, has the same reading with another length: the grammar
(see `framing`) knows no other place that they could touch. Anything else is read anew, as strictly as ever; a property
test compares both. Nothing outlives the connection, and nobody's head is met by another's.
"""

import re

from sheaf_gateway.proxy.framing import RequestHead, parse_head
from sheaf_gateway.proxy.limits import ServerLimits
from sheaf_gateway.proxy.types import Header

_LENGTH = re.compile(rb"\r\ncontent-length:[\t ]*+([0-9]{1,15}+)[\t ]*+\r\n", re.IGNORECASE)
_MOST_DIGITS = 15
_MOST_KEPT = 4_096


class HeadReader:
    """Reads one head after the other."""

    __slots__ = ("_after", "_before", "_digits", "_head", "_limits", "_place", "_size")

    _head: RequestHead
    _place: int

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._before = self._after = self._digits = b""
        self._size = 0

    def read(self, raw: bytes) -> RequestHead:
        """Read a whole head, its closing empty line included.

        Raises:
            Refusal: As `framing.parse_head` does.
        """
        more = len(raw) - self._size
        if self._size and 0 < more <= _MOST_DIGITS and raw.startswith(self._before) and raw.endswith(self._after):
            start = len(self._before)
            digits = raw[start : start + more]
            if digits == self._digits:
                return self._head
            if digits.isdigit() and len(raw) <= self._limits.max_head and int(digits) <= self._limits.max_body:
                return self._other_length(digits)
        head = parse_head(raw, self._limits)
        self._remember(raw, head)
        return head

    def _other_length(self, digits: bytes) -> RequestHead:
        head, place = self._head, self._place
        headers: tuple[Header, ...] = (*head.headers[:place], (b"content-length", digits), *head.headers[place + 1 :])
        self._digits = digits
        self._head = RequestHead(
            head.method, head.target, head.path, head.query, headers, head.minor, head.keep_alive, int(digits),
            chunked=False, expects_continue=False, known=head.known,
        )  # fmt: skip
        return self._head

    def _remember(self, raw: bytes, head: RequestHead) -> None:
        self._size = 0
        found = _LENGTH.search(raw) if len(raw) <= _MOST_KEPT else None
        names = [name for name, _ in head.headers]
        if found is None or b"expect" in names:
            return
        self._before, self._digits, self._after = raw[: found.start(1)], found[1], raw[found.end(1) :]
        self._size = len(raw) - len(self._digits)
        self._head, self._place = head, names.index(b"content-length")
