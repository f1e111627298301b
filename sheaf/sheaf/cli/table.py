"""Plain columns, as kubectl prints them: easy to read, to grep and to cut."""

import time
from collections.abc import Sequence
from datetime import datetime

GAP = "   "


def columns(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without borders; the last column is not padded."""
    lines = [[*headings], *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def age(stamp: object, now: float | None = None) -> str:
    """How long ago a moment was, as kubectl says it: 45s, 12m, 3h, 9d; empty where it is not known."""
    moment = _seconds(stamp)
    if moment is None:
        return ""
    elapsed = max(0, int((time.time() if now is None else now) - moment))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if elapsed >= 2 * size:
            return f"{elapsed // size}{unit}"
    return f"{elapsed}s"


def _seconds(stamp: object) -> float | None:
    if isinstance(stamp, (int, float)):
        return float(stamp)
    if not isinstance(stamp, str):
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in text)
