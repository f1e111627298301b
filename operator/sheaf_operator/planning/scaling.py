"""How many replicas of a Model there should be: what is declared, within the bounds of Model and AutoscalingPolicy."""

from dataclasses import dataclass

from sheaf_crds import AutoscalingPolicy, Model

UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Desired:
    """How many replicas there should be, and why it is another number than declared ("" where it is not)."""

    replicas: int
    note: str = ""


def desired_replicas(model: Model, policy: AutoscalingPolicy | None) -> Desired:
    """spec.replicas within the bounds of the Model and of its AutoscalingPolicy; the Model's ceiling is the hardest."""
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
