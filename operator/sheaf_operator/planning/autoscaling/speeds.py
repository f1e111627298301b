"""How fast replicas are, by accelerator, until an installation says better (`speeds` of the operator's configuration).

Estimates from public hardware figures, the same as the presets of the timing model (docs/timing-model.md); measured
times of requests correct them while they are in use.
"""

from collections.abc import Mapping
from types import MappingProxyType

from sheaf_operator.planning.autoscaling.facts import Speed

BUILT_IN: Mapping[str, Speed] = MappingProxyType(
    {
        "cpu": Speed(0.030, 1.2e-3, 1e-7, 4e-3, 2e-6, 2048, 32, 46_592),
        "nvidia-l4": Speed(0.062, 2.7e-4, 1e-8, 1.5e-4, 5.5e-7, 2048, 256, 33_600),
        "nvidia-h100": Speed(7e-3, 4e-5, 1.8e-9, 2.5e-5, 5e-8, 8192, 256, 400_000),
        "nvidia-a100": Speed(0.029, 2e-4, 3.7e-9, 6e-5, 5e-8, 8192, 256, 424_000),
    }
)
