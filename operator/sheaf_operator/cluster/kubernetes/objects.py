"""Declared objects as the API server holds them, read into types, or what keeps them from being read. Pure.

The API server has checked an object against the CRD when it was written. Fields that a newer CRD has are left out;
what cannot be read without them was written under another version of the CRD, or past it. Then Ready says so and the
rest of the status stays: it holds what autoscaling and the choice of zones remember. A status that cannot be read is no
reason to refuse: the parts that cannot are left out and written anew.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError
from sheaf_crds import (
    SLO,
    Adapter,
    AdapterStatus,
    AutoscalingPolicy,
    AutoscalingPolicyStatus,
    Model,
    ModelStatus,
    SLOStatus,
)
from sheaf_crds.reading import read_known, readable_part

from sheaf_operator.cluster.kubernetes.resources import Raw
from sheaf_operator.planning import UpdateStatus
from sheaf_operator.planning.actions import AnyStatus, Kind
from sheaf_operator.planning.conditions import Verdict, conditions

Declared = Model | Adapter | SLO | AutoscalingPolicy
INVALID = "Invalid"
FIELDS_NAMED = 3
_STATUS = re.compile(r"status\b")
_TYPES: dict[str, type[Declared]] = {
    "Model": Model,
    "Adapter": Adapter,
    "SLO": SLO,
    "AutoscalingPolicy": AutoscalingPolicy,
}
_STATUSES: dict[str, type[AnyStatus]] = {
    "Model": ModelStatus,
    "Adapter": AdapterStatus,
    "SLO": SLOStatus,
    "AutoscalingPolicy": AutoscalingPolicyStatus,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object that cannot be read; `status` is what is stored of it, `told` where that says so already."""

    kind: Kind
    name: str
    uid: str
    generation: int
    message: str
    told: bool
    status: AnyStatus

    def action(self, now: float) -> UpdateStatus:
        """The status that says what is wrong and how to mend it, and keeps the rest (`now`: Unix seconds)."""
        verdict = Verdict("Ready", "False", INVALID, self.message)
        ready = conditions(self.status, (verdict,), self.generation, now)
        others = tuple(one for one in self.status.conditions if one.type != "Ready")
        update = {"observed_generation": self.generation, "conditions": (*ready, *others)}
        return UpdateStatus(
            self.kind, self.name, self.uid, self.status.model_copy(update=update), f"Ready=False: {INVALID}"
        )


def read(kind: Kind, raw: Raw) -> Declared | Refusal:
    """The object, or why it cannot be read."""
    wanted = {key: value for key, value in raw.items() if key in ("apiVersion", "metadata", "spec", "status")}
    try:
        return read_known(_TYPES[kind], wanted)
    except ValidationError as error:
        problems = [problem for problem in _problems(error) if not _STATUS.match(problem[0])]
    if not problems:
        return read(kind, {**wanted, "status": readable_part(_STATUSES[kind], raw.get("status"))})
    return _refusal(kind, raw, problems)


def _stored_status(kind: Kind, raw: Raw) -> AnyStatus:
    return _STATUSES[kind].model_validate(readable_part(_STATUSES[kind], raw.get("status")))


def _refusal(kind: Kind, raw: Raw, problems: Iterable[tuple[str, str]]) -> Refusal:
    listed = list(problems)
    named = "; ".join(f"{path}: {what}" for path, what in listed[:FIELDS_NAMED])
    more = f" and {len(listed) - FIELDS_NAMED} more" if len(listed) > FIELDS_NAMED else ""
    message = (
        f"this version of the operator cannot read it: {named}{more}; correct what is named, or run the operator of "
        "the version that the object was written for. Until then what runs for it is left as it is"
    )
    meta = raw.get("metadata") or {}
    generation = int(meta.get("generation") or 0)
    return Refusal(
        kind,
        meta["name"],
        meta.get("uid", ""),
        generation,
        message,
        _told(raw, generation, message),
        _stored_status(kind, raw),
    )


def _told(raw: Raw, generation: int, message: str) -> bool:
    status = raw.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    expected = {"type": "Ready", "status": "False", "reason": INVALID, "message": message}
    return isinstance(conditions, list) and any(
        isinstance(condition, dict)
        and expected.items() <= condition.items()
        and condition.get("observedGeneration", 0) == generation
        for condition in conditions
    )


def _problems(error: ValidationError) -> list[tuple[str, str]]:
    return [(_path(item["loc"]), _what(item["type"], item["msg"])) for item in error.errors(include_url=False)]


def _path(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".") or "object"


def _what(kind: str, message: str) -> str:
    if kind == "missing":
        return "is missing; add it"
    return message[:1].lower() + message[1:]
