"""Why no pod can be made of a Model on this installation, or none that heeds all of it, given its settings."""

from dataclasses import dataclass

from sheaf_crds import ModelSpec
from sheaf_crds.rules.model import OWNED_FLAGS

from sheaf_operator.planning.manifest.accelerators import alternatives, first, wanted
from sheaf_operator.planning.manifest.settings import PodSettings
from sheaf_operator.planning.manifest.source import file_root


@dataclass(frozen=True, slots=True)
class Refusal:
    """A word for programs and a line for people, with the mend."""

    reason: str
    message: str


class ManifestError(ValueError):
    """No pod can be made of this template; trying again is pointless until Model or settings change."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason}: {refusal.message}")
        self.reason = refusal.reason
        self.message = refusal.message


def refusal(spec: ModelSpec, settings: PodSettings) -> Refusal | None:
    """Why no pod can be made of the spec; None where it can."""
    return (
        _abbreviated_argument(spec)
        or _unknown_accelerator(spec, settings)
        or _file_outside(spec, settings)
        or _no_image(spec, settings)
    )


def disregard(spec: ModelSpec, settings: PodSettings) -> Refusal | None:
    """Which accelerators of a spec that is not refused its pods never ask for; None where each counts.

    Accelerators are alternatives of one and the same pod, whose containers are those of the first.
    """
    kept = alternatives(spec, settings)
    lost = [f"{one.count} {one.type}" for one in wanted(spec, settings) if one not in kept]
    if not lost:
        return None
    said = (
        f"{', '.join(lost)}: no alternative to {kept[0].count} {kept[0].type}, because a pod for it would have another"
    )
    mend = "remove it from spec.accelerators, or declare a Model of its own for it"
    return Refusal("AcceleratorDisregarded", f"{said} count, resource, runtime class, image or environment; {mend}")


def _abbreviated_argument(spec: ModelSpec) -> Refusal | None:
    """Engines take abbreviated flags, which the rule on Sheaf's own arguments does not see."""
    for argument in spec.engine.args:
        name = argument.partition("=")[0].replace("_", "-").removeprefix("--").removeprefix("no-")
        meant = next((flag for flag in OWNED_FLAGS if name and flag.startswith(name)), None)
        if meant:
            said = f"the engine would read {argument.partition('=')[0]} as --{meant}, which Sheaf sets itself"
            return Refusal("ArgumentRefused", f"{said}; remove it from spec.engine.args, or write the flag in full")
    return None


def _unknown_accelerator(spec: ModelSpec, settings: PodSettings) -> Refusal | None:
    known = settings.accelerators
    for accelerator in wanted(spec, settings):
        if accelerator.type not in known:
            said = f"this installation has {', '.join(sorted(known)) or 'none'}, not {accelerator.type}"
            mend = "correct spec.accelerators, or describe the type in the chart's value for accelerators"
            return Refusal("AcceleratorUnknown", f"{said}; {mend}")
    return None


def _file_outside(spec: ModelSpec, settings: PodSettings) -> Refusal | None:
    if spec.engine.name == "emulator" or not spec.source.startswith("file://"):
        return None
    if file_root(spec.source, settings.host_paths) is not None:
        return None
    allowed = ", ".join(settings.host_paths) or "none"
    said = f"{spec.source} lies outside of the nodes' folders that may be used ({allowed})"
    return Refusal(
        "SourceNotAllowed", f"{said}; use another kind of source, or add the folder to the chart's hostPaths"
    )


def _no_image(spec: ModelSpec, settings: PodSettings) -> Refusal | None:
    if engine_image(spec, settings):
        return None
    mend = "set spec.engine.image, or the engine's image in the chart's values"
    return Refusal("EngineImageMissing", f"this installation names no image with vLLM; {mend}")


def engine_image(spec: ModelSpec, settings: PodSettings) -> str:
    """The image of the engine's container; empty where none is known."""
    images = settings.images
    if spec.engine.image:
        return spec.engine.image
    if spec.engine.name == "emulator":
        return images.agent
    known = first(spec, settings)
    if known is None:
        return images.engine_cpu or images.engine
    return known.image or images.engine
