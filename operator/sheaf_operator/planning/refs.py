"""What is wrong between objects, and which of it keeps an object from being served.

The judgement itself is `sheaf_crds.judge`, the same that `sheaf validate` prints. A finding that blocks keeps the
object from being served; the others are reported and the Model is served without what it asked for. Either way the
rest of the fleet is not touched by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sheaf_crds.judge import Declared, Verdict
from sheaf_crds.judge import judge as judge_objects

from sheaf_operator.planning.snapshot import ClusterSnapshot


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an object, and how to mend it."""

    reason: str
    message: str
    blocks: bool = True


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings on Models and Adapters, by name; those without one are well."""

    models: Mapping[str, Finding] = field(default_factory=dict)
    adapters: Mapping[str, Finding] = field(default_factory=dict)

    def serves_model(self, name: str) -> bool:
        """Whether pods of that Model may be made."""
        return name not in self.models or not self.models[name].blocks


def judge(snapshot: ClusterSnapshot) -> Findings:
    """Everything that is wrong between the objects of the snapshot; of several findings on one object the first."""
    declared = Declared(snapshot.models, snapshot.adapters, snapshot.slos, snapshot.policies)
    found: dict[str, dict[str, Finding]] = {"Model": {}, "Adapter": {}}
    for verdict in judge_objects(declared):
        kind, _, name = verdict.key
        found[kind].setdefault(name, _finding(verdict))
    return Findings(found["Model"], found["Adapter"])


def _finding(verdict: Verdict) -> Finding:
    kind, _, _ = verdict.key
    blocks = kind == "Adapter" or verdict.reason == "NameClash"
    message = verdict.message if blocks else f"{verdict.message} (until then it is served without)"
    return Finding(verdict.reason, message, blocks)
