"""Values and suggestions in words for people, always one short printable line."""

import difflib
from collections.abc import Iterable
from itertools import islice

from sheaf_crds.rules import Tree

_SHOWN = 60
_COMPARED = 256


def shown(value: Tree) -> str:
    """A value as one short line of printable text."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def described(value: Tree) -> str:
    """What a value is, in words."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {shown(value)}"
        case str():
            return f"the text {shown(value)}"
        case list():
            return "a list"
        case _:
            return "a mapping of fields"


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean WORD?` for the known word most like it, whatever its case, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in islice(known, _COMPARED)}
    close = difflib.get_close_matches(word.lower()[:_SHOWN], by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]}?" if close else ""
