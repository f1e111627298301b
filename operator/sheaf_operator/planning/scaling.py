"""How many replicas of a Model there should be: what its policy decided, else what is declared, always within bounds.

Without an AutoscalingPolicy spec.replicas counts, so `kubectl scale` and a HorizontalPodAutoscaler move it. With one,
the number is the policy's: the one decided last, which the Model's status keeps over a restart of the operator, and
spec.replicas is only where it began. Where the policy is not there, or cannot be read, the number decided last stays,
also zero, within the Model's own bounds: a policy that is replaced, or misspelt for a minute, must not cost a fleet.
Only a Model that names no policy any more goes back to spec.replicas.
"""

from dataclasses import dataclass, field

from sheaf_crds import AutoscalingPolicy, Model
from sheaf_crds.model import ModelAutoscaling

UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Desired:
    """How many replicas there should be, and why it is another number than declared ("" where it is not)."""

    replicas: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What autoscaling says of a Model now, and what its status shall say of it.

    `least` is the highest floor that holds now or by the time a replica is up. `loads` are replicas' worth of requests
    in each of the last minutes, None where nobody will know; they alone are no reason to plan anew.
    """

    replicas: int
    record: ModelAutoscaling
    loads: tuple[float, ...] | None = field(default=None, compare=False)
    least: int = 0


def desired_replicas(
    model: Model, policy: AutoscalingPolicy | None, scaling: Scaling | None = None, *, readable: bool = True
) -> Desired:
    """The number that counts: the policy's where it has decided, else spec.replicas within the bounds of both.

    A number that the status remembers is brought within the policy's bounds only when autoscaling has looked: windows
    may allow more, and a Model may sleep below them. Without `readable` the policy is there and cannot be read.
    """
    decided = _decided(model, scaling)
    if policy is not None and decided is not None:
        return Desired(decided, _owned(model, policy, decided))
    if model.spec.autoscaling_policy_ref is not None and decided is not None:
        return _held(model, model.spec.autoscaling_policy_ref.name, decided, readable=readable)
    return _declared(model, policy)


def scaling_record(model: Model, scaling: Scaling | None) -> ModelAutoscaling | None:
    """What the status says of autoscaling; it stays as it is until autoscaling has looked, or no policy is named."""
    if model.spec.autoscaling_policy_ref is None:
        return None
    return scaling.record if scaling else model.status.autoscaling


def assured_replicas(model: Model, policy: AutoscalingPolicy | None, scaling: Scaling | None, replicas: int) -> int:
    """How many of the replicas wanted were promised whatever is asked: all of them where nobody autoscales."""
    if model.spec.autoscaling_policy_ref is None:
        return replicas
    return min(replicas, max(_bounds(model, policy)[0], scaling.least if scaling else 0))


def known_loads(model: Model, scaling: Scaling | None) -> tuple[float, ...] | None:
    """Loads of the last minutes: none yet until autoscaling has looked, None where nobody will know."""
    if model.spec.autoscaling_policy_ref is None:
        return None
    return scaling.loads if scaling else ()


def _decided(model: Model, scaling: Scaling | None) -> int | None:
    if scaling is not None:
        return scaling.replicas
    return model.status.autoscaling.desired_replicas if model.status.autoscaling else None


def _owned(model: Model, policy: AutoscalingPolicy, decided: int) -> str:
    declared = model.spec.replicas
    if decided == declared:
        return ""
    return f"AutoscalingPolicy {policy.name} decides the number, replicas {declared} of the spec does not count"


def _held(model: Model, policy: str, decided: int, *, readable: bool) -> Desired:
    low, high = _bounds(model, None)
    why = "is not there" if readable else "cannot be read"
    note = f"AutoscalingPolicy {policy} {why}; the number that was decided last stays"
    return Desired(max(low, min(decided, high)), note)


def _declared(model: Model, policy: AutoscalingPolicy | None) -> Desired:
    spec = model.spec
    low, high = _bounds(model, policy)
    if spec.replicas > high:
        return Desired(high, f"replicas {spec.replicas} is held at maxReplicas {high}")
    if spec.replicas < low and not _may_sleep(model, policy):
        return Desired(low, f"replicas {spec.replicas} is raised to minReplicas {low}")
    return Desired(spec.replicas)


def _bounds(model: Model, policy: AutoscalingPolicy | None) -> tuple[int, int]:
    spec = model.spec
    low = max(spec.min_replicas, policy.spec.min_replicas if policy else 0)
    ceilings = (spec.max_replicas, policy.spec.max_replicas if policy else None)
    high = min((ceiling for ceiling in ceilings if ceiling is not None), default=UNBOUNDED)
    return min(low, high), high


def _may_sleep(model: Model, policy: AutoscalingPolicy | None) -> bool:
    sleeps = policy is not None and policy.spec.scale_to_zero is not None
    return sleeps and model.spec.replicas == 0 and model.spec.min_replicas == 0
