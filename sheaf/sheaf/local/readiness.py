"""When `sheaf up` may say `ready`: every Model serves, or has said why it cannot.

Where none serves at all it waits HOPE_S longer: what failed is tried again, and may only have failed in passing. What
then does not fail for as long is a new beginning, with a hope of its own. In the end it says so all the same, for those
who wait for the line must not wait for ever: the endpoint answers, with the reasons.
"""

from collections.abc import Callable, Iterable

from sheaf_crds import Model
from sheaf_operator.planning import PodFacts

HOPE_S = 30.0


class Readiness:
    """One run's; `ticks` gives seconds that only grow."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._given_up: float | None = None
        self._hoped: float | None = None

    def reached(self, models: Iterable[Model], pods: Iterable[PodFacts]) -> bool:
        """Whether there is nothing more to wait for."""
        pods, models = list(pods), list(models)
        serving = {pod.model for pod in pods if pod.ready}
        failing = {pod.model for pod in pods if pod.reason} | {m.name for m in models if _refused(m)}
        wanted = {model.name for model in models if wanted_replicas(model)}
        reached = wanted <= serving | failing
        if reached and wanted and not serving:
            return self._hopeless()
        self._hoped = self._ticks() if self._hoped is None else self._hoped
        return reached

    def _hopeless(self) -> bool:
        now = self._ticks()
        if self._given_up is None or (self._hoped is not None and now - self._hoped >= HOPE_S):
            self._given_up = now
        self._hoped = None
        return now - self._given_up >= HOPE_S


def _refused(model: Model) -> bool:
    """Whether nothing is done for a Model until its declaration changes, which its conditions say."""
    ready, progressing = model.status.condition("Ready"), model.status.condition("Progressing")
    if ready is None or progressing is None or ready.status != "False":
        return False
    return progressing.status == "False" and progressing.reason == ready.reason


def wanted_replicas(model: Model) -> int:
    """How many there shall be: as its AutoscalingPolicy decided, else as declared."""
    decided = model.status.autoscaling
    return model.spec.replicas if decided is None else decided.desired_replicas
