"""What a continued generation says of itself in ``vllm_xargs``: names and bounds, for the plug-in and the emulator.

``sheaf_forced`` are the tokens that must come first, ``sheaf_spoken`` counts the tokens at the prompt's end that were
output.
"""

from collections.abc import Mapping

MOST = 65_536
FORCED, SPOKEN = "sheaf_forced", "sheaf_spoken"


def check(extra: Mapping[str, object]) -> None:
    """Refuse arguments that no gateway sends.

    Raises:
        ValueError: One is of the wrong type or too large.
    """
    forced, spoken = extra.get(FORCED, []), extra.get(SPOKEN, 0)
    if not isinstance(forced, list) or len(forced) > MOST or not all(_is_count(token) for token in forced):
        raise ValueError(f"{FORCED} must be a list of at most {MOST} token ids")
    if not _is_count(spoken):
        raise ValueError(f"{SPOKEN} must be a number of tokens")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
