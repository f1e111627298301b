"""What is told of all that was heard: one notice, the most urgent, that does not change with every answer."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sheaf_engine.notices.values import Notice

NEAR = 120.0
STEP = 2.0


def heard(before: Mapping[str, Notice], question: str, found: Notice | None) -> Mapping[str, Notice]:
    """What is known by question, after one more answer.

    A lasting notice stays when it is asked for once more and not found. The deadline of an event only comes nearer,
    and by `STEP` or more: a time that is derived from clocks differs a little from answer to answer.
    """
    known = before.get(question)
    if found is None:
        kept = known is not None and known.lasting
        return before if kept else {name: notice for name, notice in before.items() if name != question}
    if known is not None and known.key == found.key:
        found = replace(found, deadline=_nearer(known.deadline, found.deadline))
    return {**before, question: found}


def told(known: Iterable[Notice], now: float, *, heed_advice: bool) -> Notice | None:
    """The most urgent notice; None where there is none.

    Args:
        known: every notice.
        now: Unix seconds.
        heed_advice: whether an advice counts as a notice.

    A deadline that is further away than `NEAR` is not told yet: until then the pod serves while it is replaced, as
    under a notice that names no time.
    """
    counted = [replace(one, advisory=False) if heed_advice else one for one in known]
    found = min(counted, key=lambda one: (one.advisory, _when(one)), default=None)
    if found is None or found.deadline is None or found.deadline - now <= NEAR:
        return found
    return replace(found, deadline=None)


def _nearer(before: float | None, now: float | None) -> float | None:
    if before is None or now is None:
        return before if now is None else now
    return now if now <= before - STEP else before


def _when(notice: Notice) -> float:
    return float("inf") if notice.deadline is None else notice.deadline
