"""Request ids: the caller's own where it is sane, else a new one; and what names a request to an engine."""

import itertools
import re
import secrets

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Names requests."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)
        self._active: set[str] = set()

    def take(self, given: bytes | None) -> str:
        """The id that answers carry."""
        if given is not None and _SANE.fullmatch(given):
            return given.decode("ascii")
        return f"req-{self._prefix}-{next(self._count):x}"

    def enter(self, request_id: str) -> str:
        """The id under which an engine sees the request: never that of another one under way. `leave` must
        follow."""
        unique = request_id
        while unique in self._active:
            unique = f"{request_id}-{next(self._count):x}"
        self._active.add(unique)
        return unique

    def leave(self, unique: str) -> None:
        """The request is over."""
        self._active.discard(unique)
