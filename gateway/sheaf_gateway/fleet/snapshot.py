"""The fleet as its owner writes it: one JSON file, atomically replaced, that is also how a gateway starts cold.

Objects are checked one by one, so that a broken one is left out and named while the rest keeps serving.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from sheaf_crds import SLO, Adapter, ApiType, AutoscalingPolicy, Model

from sheaf_gateway.proxy.exchange import Endpoint

MAX_BYTES = 256 * 2**20


def _url(text: str) -> str:
    Endpoint.parse(text)
    return text


Url = Annotated[str, AfterValidator(_url)]

T = TypeVar("T", bound=ApiType)


class PodSnapshot(ApiType):
    """A pod as the one who started it knows it. Unknown fields are those of a newer writer.

    `engine_url` is empty while the pod has no address; such a pod is never ready. `unheard`: what is told is what its
    node said last, and the node is silent since. `deadline` is when a draining one goes, in Unix seconds; 0: not known.
    """

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=253)]
    uid: str = ""
    model: Annotated[str, Field(min_length=1, max_length=253)]
    engine_url: Url | Literal[""]
    agent_url: Url | Literal[""] = ""
    kv_events: str | None = None
    kv_replay: str | None = None
    ready: bool = False
    unheard: bool = False
    draining: bool = False
    deadline: float = 0.0
    spot: bool = False
    zone: str = ""
    phase: str = ""
    restarts: int = 0
    started_at: float | str | None = None
    message: str = ""


class FleetSnapshot(ApiType):
    """Declared objects, and pods with their addresses."""

    model_config = ConfigDict(extra="ignore")

    version: int = 0
    models: tuple[Model, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    slos: tuple[SLO, ...] = ()
    autoscaling_policies: tuple[AutoscalingPolicy, ...] = ()
    pods: tuple[PodSnapshot, ...] = ()


Kind = Literal["models", "adapters", "slos", "autoscalingPolicies", "pods"]
Item: TypeAlias = Model | Adapter | SLO | AutoscalingPolicy | PodSnapshot
Key = tuple[Kind, str]
Changes = Mapping[Key, Item | None]
"""What came or changed, by kind and name; None: it is gone."""

KINDS: Mapping[Kind, type[Item]] = {
    "models": Model,
    "adapters": Adapter,
    "slos": SLO,
    "autoscalingPolicies": AutoscalingPolicy,
    "pods": PodSnapshot,
}

_FIELDS: Mapping[str, str] = {"autoscalingPolicies": "autoscaling_policies"}


def read_snapshot(document: object) -> tuple[FleetSnapshot, tuple[str, ...]]:
    """The snapshot in a parsed JSON document, and one line for each part that was left out.

    Raises:
        TypeError: The document is not an object, or its version or one of its lists has the wrong type.
    """
    if not isinstance(document, dict):
        raise TypeError("the fleet snapshot is not a JSON object")
    version = document.get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError("`version` of the fleet snapshot is not an integer")
    problems: list[str] = []
    parts = {kind: tuple(_accepted(kind, type_, _listed(document, kind), problems)) for kind, type_ in KINDS.items()}
    return snapshot_of(version, parts), tuple(problems)


def snapshot_of(version: int, parts: Mapping[Kind, tuple[Item, ...]]) -> FleetSnapshot:
    """A snapshot of checked objects."""
    named: dict[str, Any] = {_FIELDS.get(kind, kind): part for kind, part in parts.items()}
    return FleetSnapshot.model_construct(None, version=version, **named)


def parts_of(snapshot: FleetSnapshot) -> Mapping[Kind, tuple[Item, ...]]:
    """The objects of a snapshot by kind."""
    return {
        "models": snapshot.models,
        "adapters": snapshot.adapters,
        "slos": snapshot.slos,
        "autoscalingPolicies": snapshot.autoscaling_policies,
        "pods": snapshot.pods,
    }


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, with the path of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'object'}: {first['msg']}"


def _listed(document: dict[str, Any], key: str) -> list[object]:
    found = document.get(key, [])
    if not isinstance(found, list):
        raise TypeError(f"`{key}` of the fleet snapshot is not a list")
    return found


def _accepted(key: str, kind: type[T], items: Iterable[object], problems: list[str]) -> Iterable[T]:
    for position, item in enumerate(items):
        try:
            yield kind.model_validate(item)
        except ValidationError as error:
            problems.append(f"{key}[{position}]: {first_problem(error)}")
