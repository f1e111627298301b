"""What is declared, by kind and name, with the cross references that tell what one change touches: no I/O.

A change of one object is worked in with time proportional to what refers to it: an SLO to its Models, a Model to
its Adapters, and only where something that callers meet has changed.
"""

from collections.abc import Mapping
from typing import Any

from sheaf_crds import SLO, Adapter, AutoscalingPolicy, Model

from sheaf_gateway.admission.promised import promise
from sheaf_gateway.fleet.assemble import served_adapter, served_model
from sheaf_gateway.fleet.snapshot import KINDS, Changes, FleetSnapshot, Item, Kind, PodSnapshot, snapshot_of
from sheaf_gateway.fleet.view import Promise, Served

_NO_PROMISE = Promise()


class Declared:
    """Every declared object and pod."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.adapters: dict[str, Adapter] = {}
        self.slos: dict[str, SLO] = {}
        self.policies: dict[str, AutoscalingPolicy] = {}
        self.pods: dict[str, PodSnapshot] = {}
        self.items: Mapping[Kind, dict[str, Any]] = {
            "models": self.models,
            "adapters": self.adapters,
            "slos": self.slos,
            "autoscalingPolicies": self.policies,
            "pods": self.pods,
        }
        self._bases: dict[str, Served] = {}
        self._promises: dict[str, Promise] = {}
        self._adapters_of: dict[str, set[str]] = {}
        self._models_of: dict[str, set[str]] = {}

    def get(self, kind: Kind, name: str) -> Item | None:
        """The object of that kind and name."""
        found: Item | None = self.items[kind].get(name)
        return found

    def apply(self, changes: Changes) -> frozenset[str]:
        """Take changes in; the names whose service may be another one now."""
        stirred: set[str] = set()
        names: set[str] = set()
        for (kind, name), item in changes.items():
            before = self.get(kind, name)
            _put(self.items[kind], name, item)
            if kind == "slos":
                stirred |= self._promised(name)
            elif kind == "models":
                _refer(self._models_of, name, _slo_of(before), _slo_of(item))
                stirred.add(name)
            elif kind == "adapters":
                _refer(self._adapters_of, name, _model_of(before), _model_of(item))
                names.add(name)
        return frozenset(names.union(*map(self._rebased, stirred)))

    def served(self, name: str) -> Served | None:
        """What callers get under a name. Where a Model and an Adapter clash, the Model keeps the name."""
        if (base := self._bases.get(name)) is not None:
            return base
        adapter = self.adapters.get(name)
        base = self._bases.get(adapter.spec.model_ref.name) if adapter is not None else None
        return None if adapter is None or base is None else served_adapter(adapter, base)

    def snapshot(self, version: int) -> FleetSnapshot:
        """All of it, each kind by rising name."""
        return snapshot_of(version, {kind: tuple(v for _, v in sorted(self.items[kind].items())) for kind in KINDS})

    def _promised(self, name: str) -> set[str]:
        """Take note of an SLO; the Models for which another promise holds now."""
        slo = self.slos.get(name)
        after = promise(slo) if slo is not None else None
        if after == self._promises.get(name):
            return set()
        _put(self._promises, name, after)
        return self._models_of.get(name, set())

    def _rebased(self, name: str) -> set[str]:
        """Take note of a Model; the names for which that makes a difference."""
        model = self.models.get(name)
        after = served_model(model, self._promise_of(model)) if model is not None else None
        if after == self._bases.get(name):
            return set()
        _put(self._bases, name, after)
        return {name} | self._adapters_of.get(name, set())

    def _promise_of(self, model: Model) -> Promise:
        return self._promises.get(_slo_of(model), _NO_PROMISE)


def _put(into: dict[str, Any], name: str, item: object | None) -> None:
    if item is None:
        into.pop(name, None)
    else:
        into[name] = item


def _refer(index: dict[str, set[str]], name: str, before: str, after: str) -> None:
    if before and before != after:
        index[before].discard(name)
        if not index[before]:
            del index[before]
    if after:
        index.setdefault(after, set()).add(name)


def _slo_of(item: Item | None) -> str:
    return item.spec.slo_ref.name if isinstance(item, Model) and item.spec.slo_ref is not None else ""


def _model_of(item: Item | None) -> str:
    return item.spec.model_ref.name if isinstance(item, Adapter) else ""
