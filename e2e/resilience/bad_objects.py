"""A hundred bad objects: each a good one with something wrong, so that the good one is the mend.

`REFUSED` never enter the cluster; `words` are what the API server's message has to hold. `REPORTED` enter, because no
single object shows what is wrong, and show `condition` False with `reason`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from resilience.fleet import API_VERSION, Object, emulated

GOOD: Mapping[str, Object] = {
    "Model": emulated(replicas=0),
    "Adapter": {"modelRef": {"name": "good"}, "source": "hf://org/lora", "replicas": 0},
    "SLO": {"class": "Interactive", "ttft": {"p95": "800ms"}},
    "AutoscalingPolicy": {"signal": "Concurrency", "target": 4, "minReplicas": 1, "maxReplicas": 2},
}
PLURALS = {"Model": "models", "Adapter": "adapters", "SLO": "slos", "AutoscalingPolicy": "autoscalingpolicies"}
HUGE = 10**18
LONG = "x" * 5000
UNIT = "should match"
MANY = {f"t{number}": 1 for number in range(257)}


@dataclass(frozen=True)
class Bad:
    """A bad object: `changes` made to a good spec, by dotted path; a path that begins with `.` is of the whole object."""

    kind: str
    name: str
    changes: Mapping[str, Any]
    words: str = ""
    reason: str = ""

    @property
    def condition(self) -> str:
        """Which condition says it: what a Model is served without keeps it from nothing."""
        return "Resolved" if self.reason in _RESOLVED else "Ready"

    @property
    def wrong(self) -> Object:
        """The object as a user sends it first."""
        made = self.mended
        for path, value in self.changes.items():
            _put(made if path.startswith(".") else made["spec"], path.removeprefix(".").split("."), value)
        return made

    @property
    def mended(self) -> Object:
        """The object as it should have been."""
        spec = deepcopy(GOOD[self.kind])
        return {"apiVersion": API_VERSION, "kind": self.kind, "metadata": {"name": self.name}, "spec": spec}

    @property
    def mend(self) -> Object:
        """The merge patch that makes the wrong object the good one: fields that only the wrong one has go."""
        return {"spec": _difference(self.wrong["spec"], self.mended["spec"])}


def _put(thing: Any, path: list[str], value: Any) -> None:
    for part in path[:-1]:
        thing = thing.setdefault(part, {})
    thing[path[-1]] = value


def _difference(wrong: Object, good: Object) -> Object:
    gone: Object = dict.fromkeys(set(wrong) - set(good))
    return gone | {name: _merge(wrong.get(name), value) for name, value in good.items()}


def _merge(wrong: Any, good: Any) -> Any:
    return _difference(wrong, good) if isinstance(wrong, dict) and isinstance(good, dict) else good


# Kind, path, value, and what the answer says.
_REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    ("Model", "replicas", "many", "must be of type integer"),
    ("Model", "replicas", 1.5, "must be of type integer"),
    ("Model", "replicas", -1, "should be greater than or equal to 0"),
    ("Model", "replicas", HUGE, "should be less than or equal to 10000"),
    ("Model", "replicas", True, "must be of type int"),
    ("Model", "replicas", [1], "must be of type integer"),
    ("Model", "maxReplicas", 0, "should be greater than or equal to 1"),
    ("Model", "minReplicas", HUGE, "should be less than or equal to 10000"),
    ("Model", "minReplicas", 1, "raise replicas"),
    ("Model", "source", "", "source"),
    ("Model", "source", 7, "must be of type string"),
    ("Model", "source", LONG, "2048"),
    ("Model", "source", "ftp://host/model", UNIT),
    ("Model", "source", "hf://", UNIT),
    ("Model", "source", "hf://only-one", "write hf://ORG/NAME"),
    ("Model", "source", "s3://UPPER/x", "write s3://BUCKET/PREFIX"),
    ("Model", "source", "file://relative", "write file:///ABSOLUTE/PATH"),
    ("Model", "source", "file:///models/../etc", "write the path without them"),
    ("Model", "source", "https://user:pass@host/x", "write https://HOST/DIRECTORY"),
    ("Model", "source", "pvc://UPPER", "write pvc://CLAIM/PATH"),
    ("Model", "task", "Sing", "supported values"),
    ("Model", "engine", "vllm", "must be of type object"),
    ("Model", "engine.name", "triton", "supported values"),
    ("Model", "engine.args", "--flag", "must be of type array"),
    ("Model", "engine.args", ["no-dashes"], "write each argument as one item"),
    ("Model", "engine.args", ["--port=1"], "Sheaf sets this argument itself"),
    ("Model", "engine.args", ["--served_model_name=x"], "Sheaf sets this argument itself"),
    ("Model", "engine.args", ["--x"] * 65, "must have at most 64 items"),
    ("Model", "engine.args", ["--" + LONG], "4096"),
    ("Model", "engine.args", [None], "args"),
    ("Model", "engine.env", [{"name": "1X", "value": "y"}], UNIT),
    ("Model", "engine.env", [{"name": "X"}], "Required value"),
    ("Model", "engine.env", [{"name": "VLLM_PORT", "value": "1"}], "Sheaf sets this variable itself"),
    ("Model", "engine.env", [{"name": "SHEAF_X", "value": "1"}], "choose another name"),
    ("Model", "engine.env", [{"name": "X", "value": "1"}] * 2, "Duplicate value"),
    ("Model", "engine.image", "", "at least 1 char"),
    ("Model", "engine.imgae", "typo", "unknown field"),
    ("Model", "accelerators", "nvidia-l4", "must be of type array"),
    ("Model", "accelerators", [{"type": "NVIDIA L4"}], UNIT),
    ("Model", "accelerators", [{"type": "nvidia-l4", "count": 0}], "should be greater than or equal to 1"),
    ("Model", "accelerators", [{"type": "nvidia-l4", "count": HUGE}], "should be less than or equal to 64"),
    ("Model", "lora.slots", -1, "should be greater than or equal to 0"),
    ("Model", "lora.slots", 513, "should be less than or equal to 512"),
    ("Model", "lora.maxRank", 17, "supported values"),
    ("Model", "lora.maxAdapters", 1, "raise maxAdapters or lower slots"),
    ("Model", "spot.policy", "Sometimes", "supported values"),
    ("Model", "spot", {"policy": "Required", "onDemandFloor": 1}, "set onDemandFloor to 0"),
    ("Model", "spot", {"policy": "Never", "onDemandFloor": 1}, "remove onDemandFloor"),
    ("Model", "startupTimeout", "0s", "write a time above zero"),
    ("Model", "startupTimeout", 60, "must be of type string"),
    ("Model", "drainTimeout", "soon", UNIT),
    ("Model", "drainTimeout", "-5s", UNIT),
    ("Model", "sloRef", "chat", "must be of type object"),
    ("Model", "sloRef", {}, "Required value"),
    ("Model", "sloRef.name", "Not A Name", UNIT),
    ("Model", "autoscalingPolicyRef", [], "must be of type object"),
    ("Model", ".spec", None, "spec"),
    ("Model", ".metadata.name", "Upper-Case", "lower case alphanumeric"),
    ("Model", ".metadata.name", "with.a.dot", "write at most 63 lower-case letters"),
    ("Model", ".metadata.name", "x" * 64, "write at most 63 lower-case letters"),
    ("Adapter", "modelRef", None, "modelRef"),
    ("Adapter", "modelRef", "good", "must be of type object"),
    ("Adapter", "modelRef.name", "bad-62", "rename the adapter"),
    ("Adapter", "source", "pvc://claim/x", UNIT),
    ("Adapter", "digest", "sha256:" + "g" * 64, UNIT),
    ("Adapter", "rank", 0, "should be greater than or equal to 1"),
    ("Adapter", "rank", "16", "must be of type integer"),
    ("Adapter", "priority", 5000, "should be less than or equal to 1000"),
    ("Adapter", "replicas", -3, "should be greater than or equal to 0"),
    ("Adapter", "sizeLimit", "0Gi", "write a size above zero"),
    ("Adapter", "sizeLimit", "much", UNIT),
    ("SLO", "class", "Urgent", "supported values"),
    ("SLO", "ttft", "800ms", "must be of type object"),
    ("SLO", "ttft.p95", 800, "must be of type string"),
    ("SLO", "ttft.p42", "1s", "unknown field"),
    ("SLO", "fairness.weights", {"gold": 0}, "should be greater than or equal to 1"),
    ("SLO", "fairness.weights", MANY, "must have at most 256"),
    ("SLO", "limits.maxConcurrent", 0, "should be greater than or equal to 1"),
    ("SLO", "queue.maxRequests", -1, "should be greater than or equal to 0"),
    ("AutoscalingPolicy", "signal", "Mood", "supported values"),
    ("AutoscalingPolicy", "target", 0, "greater than 0"),
    ("AutoscalingPolicy", "target", None, "target"),
    ("AutoscalingPolicy", "minReplicas", 3, "maxReplicas"),
    ("AutoscalingPolicy", "maxReplicas", "2", "must be of type integer"),
    ("AutoscalingPolicy", "schedules", [{"name": "x", "start": "25:00", "end": "26:00"}], UNIT),
    ("AutoscalingPolicy", "schedules", [{"name": "x", "start": "08:00", "end": "18:00"}], "changes nothing"),
)

# Kind, changes, and the reason of the condition that is False.
_REPORTED: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("Adapter", {"modelRef.name": "nowhere"}, "ModelNotFound"),
    ("Adapter", {"modelRef.name": "without-lora"}, "LoraDisabled"),
    ("Adapter", {"rank": 512}, "RankTooHigh"),
    ("Model", {"sloRef": {"name": "nowhere"}}, "SLONotFound"),
    ("Model", {"autoscalingPolicyRef": {"name": "nowhere"}}, "AutoscalingPolicyNotFound"),
    ("Model", {"autoscalingPolicyRef": {"name": "follows-slo"}}, "SLOMissing"),
    ("Model", {"autoscalingPolicyRef": {"name": "needs-three"}, "maxReplicas": 2}, "BoundsExclude"),
    ("Model", {"engine.name": "vllm", "accelerators": [{"type": "abacus"}]}, "AcceleratorUnknown"),
    ("Model", {"engine.args": ["--served-model=x"]}, "ArgumentRefused"),
    ("Model", {"engine.name": "vllm", "source": "file:///etc"}, "SourceNotAllowed"),
    ("Model", {"engine.image": "localhost:1/none:never", "replicas": 1}, "ErrImageNeverPull"),
    ("Model", {"engine.args": ["--speed=-1"], "replicas": 1}, "CrashLoopBackOff"),
    ("Model", {"engine.name": "vllm", "accelerators": [{"type": "nvidia-l4"}], "replicas": 1}, "Unschedulable"),
    ("Model", {".metadata.name": "older"}, "NameClash"),
)

_RESOLVED = ("SLONotFound", "AutoscalingPolicyNotFound", "SLOMissing", "BoundsExclude")

# What the reported ones need around them.
AROUND: tuple[tuple[str, str, Object], ...] = (
    ("Model", "without-lora", emulated(replicas=0, lora={"slots": 0})),
    ("AutoscalingPolicy", "follows-slo", {"signal": "SLO", "maxReplicas": 2}),
    ("AutoscalingPolicy", "needs-three", {"signal": "Concurrency", "target": 1, "minReplicas": 3, "maxReplicas": 4}),
    ("Adapter", "older", GOOD["Adapter"]),
)


def refused() -> Iterator[Bad]:
    """The objects that the API server refuses."""
    for number, (kind, path, value, words) in enumerate(_REFUSED):
        yield Bad(kind, f"bad-{number}", {path: value}, words)


def reported() -> Iterator[Bad]:
    """The objects whose status says what is wrong."""
    for number, (kind, changes, reason) in enumerate(_REPORTED):
        yield Bad(kind, str(changes.get(".metadata.name", f"reported-{number}")), changes, reason=reason)
