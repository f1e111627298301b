"""How many requests a pod is given at once: enough that its engine never runs dry, few enough that the order in the
gateway is the order that counts.

The bound follows what the engine shows. Requests that wait in the engine beyond a small reserve mean that it runs as
many as it can, be it for sequences, KV blocks or adapter slots: the bound is halved, down to what it runs of ours plus
the reserve; where the report before said so too it was no moment's burst, and the bound goes there at once. None
waiting while the bound is reached means that it could take more: the bound grows by half. So it stays just above what
the engine runs, and a burst costs little.
"""

from collections.abc import Container, Iterable


class Bounds:
    """The bounds in force of all pods: `ceiling` until an engine shows that it is too much."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self._found: dict[str, int] = {}
        self._crowded: set[str] = set()

    def of(self, pod: str) -> int:
        """The bound of a pod."""
        return self._found.get(pod, self.ceiling)

    def hear(self, pod: str, *, own: int, running: int, waiting: int) -> int:
        """An engine reports (see `adapted`); the bound of its pod from now on."""
        again = pod in self._crowded
        bound = adapted(self.of(pod), own=own, running=running, waiting=waiting, ceiling=self.ceiling, again=again)
        (self._crowded.add if waiting > reserve(running) else self._crowded.discard)(pod)
        self._found[pod] = bound
        return bound

    def keep(self, pods: Container[str]) -> None:
        """Forget every pod that is not named."""
        self.forget([name for name in self._found if name not in pods])

    def forget(self, pods: Iterable[str]) -> None:
        """Forget these pods."""
        for name in pods:
            self._found.pop(name, None)
            self._crowded.discard(name)


def reserve(running: int) -> int:
    """Requests that should wait in an engine that runs this many, so that the next step never lacks one."""
    return 1 + running // 8


def adapted(bound: int, *, own: int, running: int, waiting: int, ceiling: int, again: bool = False) -> int:
    """The next bound of a pod, from 1 to `ceiling`.

    Args:
        bound: the bound in force.
        own: requests of this gateway under way on the pod.
        running: requests that the engine runs, whosever they are.
        waiting: requests that wait in the engine, whosever they are.
        ceiling: the highest bound.
        again: whether the report before said too that more wait than should.
    """
    if waiting > reserve(running):
        ours = -(-own * running // (running + waiting))
        return max(1, min(ceiling, max(0 if again else bound // 2, ours + reserve(ours)), bound))
    if waiting == 0 and own >= bound:
        return min(ceiling, bound + bound // 2 + 1)
    return min(ceiling, bound)
