"""What SLOs promise, read from the declared objects, and how each promise is kept."""

from collections.abc import Iterable, Mapping

import msgspec
from sheaf_crds import SLO, AutoscalingPolicy, Model

from sheaf_gateway.admission.attainment import WINDOWS, Attainment, Figures, Outcome, Tally, figures
from sheaf_gateway.admission.promised import bounds, terms
from sheaf_gateway.admission.terms import Terms
from sheaf_gateway.fleet.declared import Declared


class _Known(msgspec.Struct, frozen=True):
    model: Model | None
    slo: SLO | None
    policy: AutoscalingPolicy | None
    terms: Terms


class TermsBook:
    """The terms of each Model, made anew only when one of the objects that they come from is another one."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._known: dict[str, _Known] = {}

    def of(self, name: str) -> Terms:
        """What the SLO of a Model asks of admission."""
        model = self._declared.models.get(name)
        slo = self._declared.slos.get(model.spec.slo_ref.name) if model and model.spec.slo_ref else None
        ref = model.spec.autoscaling_policy_ref if model else None
        policy = self._declared.policies.get(ref.name) if ref else None
        known = self._known.get(name)
        if known is None or known.model is not model or known.slo is not slo or known.policy is not policy:
            known = self._known[name] = _Known(model, slo, policy, terms(slo, wakes=policy is not None))
        return known.terms

    def keep(self, models: Iterable[str]) -> None:
        """Forget Models that are gone."""
        alive = set(models)
        self._known = {name: known for name, known in self._known.items() if name in alive}


class AttainmentBook:
    """The figures of every SLO that was asked under; bounded by the declared SLOs."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._known: dict[str, tuple[SLO, Attainment]] = {}

    def answered(self, slo: str, outcome: Outcome, now: float) -> None:
        """Count a request that was answered under an SLO."""
        if (found := self._of(slo, now)) is not None:
            found.answered(outcome, now)

    def failed(self, slo: str, now: float) -> None:
        """Count a request that was refused for load, or failed."""
        if (found := self._of(slo, now)) is not None:
            found.failed(now)

    def figures(self, now: float) -> Mapping[str, Mapping[str, Figures]]:
        """By SLO and window; an SLO that nobody asked under has figures of nothing."""
        return self.figured(self.tallies(now))

    def tallies(self, now: float) -> dict[str, dict[str, Tally]]:
        """The counts behind the figures."""
        return {
            name: {window: found.tally(seconds, now) for window, seconds in WINDOWS.items()}
            for name in sorted(self._declared.slos)
            if (found := self._of(name, now)) is not None
        }

    def figured(self, tallies: Mapping[str, Mapping[str, Tally]]) -> Mapping[str, Mapping[str, Figures]]:
        """The figures of counts, by what the SLOs promise now."""
        return {
            name: {window: figures(tally, self._known[name][1].bounds) for window, tally in windows.items()}
            for name, windows in tallies.items()
            if name in self._known
        }

    def keep(self) -> None:
        """Forget SLOs that are gone."""
        self._known = {name: known for name, known in self._known.items() if name in self._declared.slos}

    def _of(self, name: str, now: float) -> Attainment | None:
        slo = self._declared.slos.get(name)
        if slo is None:
            return None
        known = self._known.get(name)
        if known is not None and known[0] is slo:
            return known[1]
        promised = bounds(slo)
        same = known is not None and known[1].bounds == promised
        found = known[1] if known is not None and same else Attainment(promised, now)
        self._known[name] = slo, found
        return found
