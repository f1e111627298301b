"""How fast replicas are, by accelerator, until an installation says better (`speeds` of the operator's configuration).

Estimates from public hardware figures, the same as the presets of the timing model (docs/timing-model.md); measured
times of requests correct them while they are in use. The emulator's own arguments say how fast it is.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from sheaf_crds import Model

from sheaf_operator.planning.autoscaling.facts import Speed

PRESETS: Mapping[str, Speed] = MappingProxyType(
    {
        "custom": Speed(0.01, 1e-4, 0.0, 0.0, 0.0, 2048, 256, 65_536),
        "instant": Speed(1e-5, 1e-8, 0.0, 0.0, 0.0, 8192, 256, 262_144),
        "cpu-135m": Speed(0.030, 1.2e-3, 1e-7, 4e-3, 2e-6, 2048, 32, 46_592),
        "l4-8b": Speed(0.062, 2.7e-4, 1e-8, 1.5e-4, 5.5e-7, 2048, 256, 33_600),
        "h100-8b": Speed(7e-3, 4e-5, 1.8e-9, 2.5e-5, 5e-8, 8192, 256, 400_000),
        "a100-70b": Speed(0.029, 2e-4, 3.7e-9, 6e-5, 5e-8, 8192, 256, 424_000),
    }
)
BY_ACCELERATOR: Mapping[str, str] = MappingProxyType(
    {"cpu": "cpu-135m", "nvidia-l4": "l4-8b", "nvidia-h100": "h100-8b", "nvidia-a100": "a100-70b"}
)
_LEAST_FACTOR, _MOST_FACTOR = 1e-6, 1e6


def speed_of(model: Model, known: Mapping[str, Speed]) -> Speed | None:
    """How fast one replica of the Model is; None where neither the installation nor the presets know its accelerator.

    Args:
        model: the Model.
        known: what the installation says, by accelerator type (`cpu`: none); it goes before the presets.
    """
    arguments = dict(_pair(argument) for argument in model.spec.engine.args)
    wanted = model.spec.accelerators
    kind = wanted[0].type if wanted else "cpu"
    found = known.get(kind) or PRESETS.get(BY_ACCELERATOR.get(kind, ""))
    if model.spec.engine.name == "emulator":
        found = _emulated(arguments, found)
    return None if found is None else _with_arguments(found, arguments)


def _emulated(arguments: Mapping[str, str], found: Speed | None) -> Speed | None:
    preset = PRESETS.get(arguments.get("--profile", ""), found)
    factor = _number(arguments.get("--speed", ""))
    return preset.slower(1.0 / factor) if preset is not None and factor is not None else preset


def _with_arguments(speed: Speed, arguments: Mapping[str, str]) -> Speed:
    sequences, batch = arguments.get("--max-num-seqs", ""), arguments.get("--max-num-batched-tokens", "")
    return replace(
        speed,
        sequences=int(sequences) if sequences.isdecimal() and int(sequences) else speed.sequences,
        batch_tokens=int(batch) if batch.isdecimal() and int(batch) else speed.batch_tokens,
    )


def _pair(argument: str) -> tuple[str, str]:
    flag, _, value = argument.partition("=")
    return flag, value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if _LEAST_FACTOR <= value <= _MOST_FACTOR else None
