"""`sheaf explain model NAME`: how many replicas a Model has, who decides, and the last decisions with their reasons."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sheaf.cli.client import fetch
from sheaf.cli.errors import CliError

HEADINGS = ("WHEN", "REPLICAS", "REASON", "FIGURES")


def explain_model(name: str, output: str, url: str | None, key: str | None) -> None:
    """Print what autoscaling decided for a Model."""
    found = _model(fetch("/sheaf/v1/objects/models", url, key), name)
    demand: Mapping[str, Any] = next(
        (one for one in fetch("/sheaf/v1/demand", url, key)["models"] if one["model"] == name), {}
    )
    if output == "json":
        shown = {"model": name, "demand": demand, "autoscaling": found.get("status", {}).get("autoscaling")}
        print(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in lines(found, demand):
        console.print(escape(line))
    record = found.get("status", {}).get("autoscaling")
    if record and record.get("decisions"):
        console.print(decisions(record))


def lines(model: Mapping[str, Any], demand: Mapping[str, Any]) -> Iterator[str]:
    """The number, who decides it, and what is asked now."""
    spec, status = model.get("spec", {}), model.get("status", {})
    name, ready, record = model["metadata"]["name"], status.get("readyReplicas", 0), status.get("autoscaling")
    if record is None:
        yield f"{name}: {spec.get('replicas', 1)} replicas declared, {ready} serve; no AutoscalingPolicy decides"
    else:
        wanted = record.get("desiredReplicas", 0)
        yield f"{name}: AutoscalingPolicy {record.get('policy')} wants {wanted} replicas, {ready} serve"
        if record.get("coldStart"):
            yield f"a replica takes {record['coldStart']} to start"
    if demand:
        yield (
            f"asked now: {demand.get('arrivalRate', 0.0):.2f} requests/s; {demand.get('running', 0)} running, "
            f"{demand.get('waiting', 0)} waiting, {demand.get('held', 0)} held for a first replica"
        )


def decisions(record: Mapping[str, Any]) -> Table:
    """The last changes of the number, the latest first."""
    table = Table(title="last decisions", title_justify="left", box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading)
    for one in record["decisions"]:
        move = f"{one.get('before')} -> {one.get('after')}"
        table.add_row(*(escape(str(cell)) for cell in (one.get("at"), move, one.get("reason"), one.get("message", ""))))
    return table


def _model(listed: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for item in listed.get("items", ()):
        if item.get("metadata", {}).get("name") == name:
            return dict(item)
    raise CliError(f"there is no Model {name}; `sheaf get models` lists them")
