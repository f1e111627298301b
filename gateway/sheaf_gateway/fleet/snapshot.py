"""The fleet as its owner writes it: one JSON file, atomically replaced, that is also how a gateway starts cold.

Objects are checked one by one, so that a broken one is left out and named while the rest keeps serving.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

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
    """A pod as the one who started it knows it. Unknown fields are those of a newer writer."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=253)]
    uid: str = ""
    model: Annotated[str, Field(min_length=1, max_length=253)]
    engine_url: Url
    agent_url: Url | Literal[""] = ""
    kv_events: str | None = None
    kv_replay: str | None = None
    ready: bool = False
    draining: bool = False
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


_LISTS: dict[str, type[ApiType]] = {
    "models": Model,
    "adapters": Adapter,
    "slos": SLO,
    "autoscalingPolicies": AutoscalingPolicy,
    "pods": PodSnapshot,
}


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
    parts = {key: tuple(_accepted(key, kind, _listed(document, key), problems)) for key, kind in _LISTS.items()}
    return FleetSnapshot.model_construct(version=version, **_snake(parts)), tuple(problems)


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
            problems.append(f"{key}[{position}]: {_first(error)}")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'object'}: {first['msg']}"


def _snake(parts: dict[str, tuple[ApiType, ...]]) -> dict[str, Any]:
    return {"autoscaling_policies" if key == "autoscalingPolicies" else key: value for key, value in parts.items()}
