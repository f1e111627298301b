"""`sheaf get`: what is declared and what is so."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer

from sheaf.cli.client import fetch
from sheaf.cli.errors import CliError
from sheaf.cli.table import age, columns

KINDS = {
    "models": ("model", "mdl"),
    "adapters": ("adapter", "adp"),
    "slos": ("slo",),
    "autoscalingpolicies": ("autoscalingpolicy", "policies", "policy", "asp"),
    "pods": ("pod", "po"),
}
Item = Mapping[str, Any]


def get(
    kind: Annotated[str, typer.Argument(help="models, adapters, slos, policies or pods.")],
    name: Annotated[str | None, typer.Argument(help="Only the object of this name.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    url: Annotated[
        str | None, typer.Option(help="Where Sheaf answers [default: $SHEAF_URL or port 8000 here].")
    ] = None,
    key: Annotated[str | None, typer.Option(help="API key with the scope admin [default: $SHEAF_API_KEY].")] = None,
) -> None:
    """Show objects and pods of a running Sheaf."""
    plural = plural_of(kind)
    if output not in ("table", "json"):
        raise CliError(f"--output is {output!r}; write table or json", 2)
    items = fetch(f"/sheaf/v1/objects/{plural}", url, key)["items"]
    found = [item for item in items if name in (None, name_of(item))]
    if name is not None and not found:
        raise CliError(f"there is no {plural} named {name}; `sheaf get {plural}` shows all")
    print(
        orjson.dumps({"items": found}, option=orjson.OPT_INDENT_2).decode() if output == "json" else show(plural, found)
    )


def plural_of(word: str) -> str:
    """The plural that the API knows for a word that a user may write."""
    lowered = word.lower()
    for plural, others in KINDS.items():
        if lowered == plural or lowered in others:
            return plural
    raise CliError(f"{word!r} cannot be shown; write one of models, adapters, slos, policies, pods", 2)


def show(plural: str, items: Sequence[Item]) -> str:
    """The objects as a table."""
    if not items:
        return f"no {plural}"
    headings, row = _TABLES[plural]
    return columns(headings, [row(item) for item in items])


def name_of(item: Item) -> str:
    """The name of an object or a pod."""
    return str(item["name"] if "name" in item else item["metadata"]["name"])


def _condition(item: Item, kind: str = "Ready") -> Mapping[str, str]:
    found = (c for c in item.get("status", {}).get("conditions", ()) if c.get("type") == kind)
    return next(found, {})


def _model(item: Item) -> list[object]:
    spec, status, ready = item["spec"], item.get("status", {}), _condition(item)
    decided = status.get("autoscaling") or {}
    count = f"{status.get('readyReplicas', 0)}/{decided.get('desiredReplicas', spec.get('replicas', 1))}"
    engine = spec.get("engine", {}).get("name", "vllm")
    common = [count, status.get("adapters", 0), engine, ready.get("status"), ready.get("reason"), _age(item)]
    return [name_of(item), *common, _why(ready)]


def _adapter(item: Item) -> list[object]:
    spec, status, ready = item["spec"], item.get("status", {}), _condition(item)
    count = f"{status.get('readyReplicas', 0)}/{status.get('desiredReplicas', 0)}"
    where = ",".join(p["pod"] for p in status.get("placements", ()) if p["state"] == "Resident")
    return [
        name_of(item), spec["modelRef"]["name"], count, ready.get("status"), ready.get("reason"), _age(item),
        where or _why(ready),
    ]  # fmt: skip


def _slo(item: Item) -> list[object]:
    spec = item["spec"]
    bounds = [" ".join(f"{p}={v}" for p, v in spec.get(key, {}).items()) for key in ("ttft", "tpot", "e2e")]
    return [
        name_of(item),
        spec.get("class", "Interactive"),
        *bounds,
        item.get("status", {}).get("models", 0),
        _age(item),
    ]


def _policy(item: Item) -> list[object]:
    spec = item["spec"]
    bounds = [spec.get("minReplicas", 1), spec.get("maxReplicas", 1)]
    return [name_of(item), spec.get("signal", "SLO"), *bounds, item.get("status", {}).get("models", 0), _age(item)]


def _pod(item: Item) -> list[object]:
    phase = "Draining" if item.get("draining") and item.get("phase") == "Ready" else item.get("phase")
    ready = "yes" if item.get("ready") else "no"
    address = str(item.get("engineUrl", "")).partition("://")[2]
    return [
        name_of(item), item.get("model"), ready, phase, item.get("restarts", 0), address, age(item.get("startedAt")),
        item.get("message"),
    ]  # fmt: skip


def _why(ready: Mapping[str, str]) -> str:
    return ready.get("message", "") if ready.get("status") != "True" else ""


def _age(item: Item) -> str:
    return age(item["metadata"].get("creationTimestamp"))


Table = tuple[Sequence[str], Callable[[Item], list[object]]]
_TABLES: dict[str, Table] = {
    "models": (("NAME", "REPLICAS", "ADAPTERS", "ENGINE", "READY", "REASON", "AGE", "MESSAGE"), _model),
    "adapters": (("NAME", "MODEL", "RESIDENT", "READY", "REASON", "AGE", "PODS"), _adapter),
    "slos": (("NAME", "CLASS", "TTFT", "TPOT", "E2E", "MODELS", "AGE"), _slo),
    "autoscalingpolicies": (("NAME", "SIGNAL", "MIN", "MAX", "MODELS", "AGE"), _policy),
    "pods": (("NAME", "MODEL", "READY", "PHASE", "RESTARTS", "ENGINE", "AGE", "MESSAGE"), _pod),
}
