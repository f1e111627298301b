"""Keeping the garbage collector off what lives long."""

import gc


def spare_collector() -> None:
    """Take all that lives now out of the collector's rounds: walking 16,000 objects takes it 100 ms.

    Reference counting still frees them when they are replaced; they hold no cycles.
    """
    gc.collect()
    gc.freeze()
