"""Which accelerators a pod of a Model asks for, in order of preference."""

from sheaf_crds import ModelSpec
from sheaf_crds.model import Accelerator

from sheaf_operator.planning.manifest.settings import AcceleratorSettings, PodSettings, Resources


def wanted(spec: ModelSpec, settings: PodSettings) -> tuple[Accelerator, ...]:
    """The accelerators that pods of the spec may ask for; none: they run on CPU, as the emulator does unless told."""
    idle = spec.engine.name == "emulator" and not settings.emulator_uses_accelerators
    return () if idle else spec.accelerators


def alternatives(spec: ModelSpec, settings: PodSettings) -> tuple[Accelerator, ...]:
    """Those that one and the same pod can run on: the first, and those whose containers would be the same."""
    found = wanted(spec, settings)
    return tuple(one for one in found if _shape(one, settings) == _shape(found[0], settings))


def first(spec: ModelSpec, settings: PodSettings) -> AcceleratorSettings | None:
    """What the settings say of the preferred accelerator; None on CPU."""
    found = wanted(spec, settings)
    return settings.accelerators[found[0].type] if found else None


def device_count(spec: ModelSpec, settings: PodSettings) -> dict[str, str]:
    """The extended resource that the engine asks for; empty on CPU."""
    found = wanted(spec, settings)
    return {settings.accelerators[found[0].type].resource: str(found[0].count)} if found else {}


def engine_resources(spec: ModelSpec, settings: PodSettings) -> Resources:
    """Requests and limits of the engine's container, devices included."""
    known, given, devices = first(spec, settings), settings.resources, device_count(spec, settings)
    if spec.engine.name == "emulator":
        usual = given.emulator
    elif known is None:
        usual = given.vllm_cpu
    else:
        usual = known.resources or given.vllm
    return Resources(requests=usual.requests | devices, limits=usual.limits | devices)


def _shape(accelerator: Accelerator, settings: PodSettings) -> tuple[object, ...]:
    known = settings.accelerators[accelerator.type]
    return accelerator.count, known.resource, known.runtime_class, known.image, known.env, known.resources
