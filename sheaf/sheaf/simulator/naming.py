"""Whom the calls of a trace ask: served names are found, and calls that name nobody ask everything that is declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sheaf.simulator.calls import Call
from sheaf.simulator.traces.shaping import Draw


class UnknownNameError(Exception):
    """A trace asks for a name that is not declared."""


def named(calls: Sequence[Call], models: Sequence[str], adapters: Mapping[str, str], seed: int) -> list[Call]:
    """The calls with Model and adapter.

    Args:
        calls: `model` is a served name, or empty.
        models: names of the Models.
        adapters: Model of each Adapter, by its name.
        seed: of the draw of names for calls that have none: one for each conversation, zipf over Models and Adapters.

    Raises:
        UnknownNameError: for a name that is neither.
    """
    draw = Draw([*models, *adapters], 1.0, seed)
    known = frozenset(models)
    return [_named(call, call.model or draw.of(call.session), known, adapters) for call in calls]


def _named(call: Call, name: str, models: frozenset[str], adapters: Mapping[str, str]) -> Call:
    if name in models:
        return call if call.model == name else replace(call, model=name)
    if name not in adapters:
        raise UnknownNameError(f"the trace asks for {name!r}, which no manifest declares; declare it or rename it")
    return replace(call, model=adapters[name], adapter=name)
