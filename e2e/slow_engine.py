"""A logits processor that does nothing but take its time, so that a tiny model streams as slowly as a large one."""

import os
import time

from vllm.v1.sample.logits_processor.interface import LogitsProcessor

STEP_S = float(os.environ.get("SLOW_ENGINE_STEP_S", "0.05"))


class Slow(LogitsProcessor):
    """Every step takes `STEP_S` longer."""

    def __init__(self, vllm_config, device, is_pin_memory) -> None:
        self.started = time.monotonic()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        pass

    def apply(self, logits):
        time.sleep(STEP_S)
        return logits
