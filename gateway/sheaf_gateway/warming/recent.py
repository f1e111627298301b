"""The newest generations with long prompts, by which is known what is hot on a pod: bounded in number and bytes.

The request as its caller sent it is what an engine can be warmed with: hashes of a prompt cannot be turned back. It is
kept with its tenant's salt, so that what it warms is found by that tenant alone.
"""

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

LEAST_BLOCKS = 2
_MOST = 8_192
_LARGEST_SHARE = 64


class Seen(NamedTuple):
    """One request: when (seconds), to which pod, by which path and under which name with which content; `chain` is its
    prompt's (see `routing.prefix`), `body` as it came and `salt` the tenant's."""

    at: float
    pod: str
    path: str
    served: str
    digest: str
    chain: list[int]
    body: bytes
    salt: str


class Recent:
    """Remembers at most `most` bytes of bodies for so many seconds; the oldest leave first, and one that is too large
    never enters."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._largest = most // _LARGEST_SHARE
        self._seen: deque[Seen] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, seen: Seen) -> None:
        """Remember a request."""
        size = len(seen.body)
        if size > self._largest:
            return
        self._seen.append(seen)
        self.size += size
        while self.size > self._most or len(self._seen) > _MOST:
            self._drop()
        self.forget(seen.at - self._seconds)

    def forget(self, before: float) -> None:
        """What was sent before then is not remembered."""
        while self._seen and self._seen[0].at < before:
            self._drop()

    def _drop(self) -> None:
        self.size -= len(self._seen.popleft().body)

    def of(self, pods: Collection[str]) -> dict[str, list[Seen]]:
        """What was sent to each of these pods, the oldest first."""
        found: dict[str, list[Seen]] = {pod: [] for pod in pods}
        for seen in self._seen:
            if seen.pod in found:
                found[seen.pod].append(seen)
        return found
