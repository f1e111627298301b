"""`sheaf explain REQUEST`: why a request went where it went, every candidate's cost term by term."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sheaf.cli.client import fetch
from sheaf.cli.errors import CliError
from sheaf.cli.explain_model import explain_model

_WIDEST = 1_000
TERMS = ("queue", "prefill", "adapter", "harm", "silence", "total")


def explain(
    request_id: Annotated[str, typer.Argument(help="What the answer's x-request-id header said; or the word model.")],
    name: Annotated[str | None, typer.Argument(help="After the word model: the Model's name.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
    url: Annotated[
        str | None, typer.Option(help="Where Sheaf answers [default: $SHEAF_URL or port 8000 here].")
    ] = None,
    key: Annotated[str | None, typer.Option(help="API key with the scope admin [default: $SHEAF_API_KEY].")] = None,
) -> None:
    """Say why a request went to its pod, or (model NAME) why a Model has so many replicas."""
    if name is not None:
        if request_id != "model":
            raise CliError(f"explain {request_id} takes no second name; write `sheaf explain model {name}`")
        explain_model(name, output, url, key)
        return
    record = fetch(f"/sheaf/v1/decisions/{quote(request_id, safe='')}", url, key)
    if output == "json":
        print(orjson.dumps(record, option=orjson.OPT_INDENT_2).decode())
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(headline(record)))
    for number, attempt in enumerate(record.get("attempts", ()), start=1):
        print_whole(console, attempt_table(number, attempt))


def print_whole(console: Console, table: Table) -> None:
    """Print a table with nothing cut off, however narrow the terminal: a cost that is not shown explains nothing."""
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def headline(record: Mapping[str, Any]) -> str:
    """What was asked and how it ended, in one line."""
    tenant = f", tenant {record['tenant']}" if record.get("tenant") else ""
    parts = [f"{record.get('served')} ({record.get('path')}{tenant}): status {record.get('status')}"]
    parts += [f"{label} {record[field]:.0f} ms" for label, field in _TIMES if record.get(field) is not None]
    parts += [f"{record[field]} {label}" for label, field in _TOKENS if record.get(field) is not None]
    return ", ".join(parts) + (f"; {record['error']}" if record.get("error") else "")


_TIMES = (("queued", "queued_ms"), ("TTFT", "ttft_ms"), ("total", "total_ms"))
_TOKENS = (("prompt tokens", "prompt_tokens"), ("cached", "cached_tokens"), ("output tokens", "output_tokens"))


def attempt_table(number: int, attempt: Mapping[str, Any]) -> Table:
    """One attempt: every candidate, cheapest first, the chosen one marked."""
    decision = attempt.get("decision", {})
    title = f"attempt {number}: {attempt.get('outcome', '')} (mode {decision.get('mode', '')}, costs in ms)"
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for heading in ("", "POD", "STANDING", "CACHED"):
        table.add_column(heading)
    for term in TERMS:
        table.add_column(term.upper(), justify="right")
    for candidate in by_cost(decision.get("candidates", ())):
        mark = "->" if candidate.get("pod") == decision.get("pod") else ""
        table.add_row(mark, *(escape(cell) for cell in _cells(candidate)))
    return table


def by_cost(candidates: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Healthy candidates first, the cheapest of them first."""
    return sorted(candidates, key=lambda c: (c.get("standing") != "Healthy", c.get("terms", {}).get("total", 0.0)))


def _cells(candidate: Mapping[str, Any]) -> list[str]:
    terms = candidate.get("terms", {})
    cached = f"{candidate.get('cached_bytes', 0)} B"
    return [str(candidate.get("pod")), str(candidate.get("standing")), cached] + [
        f"{terms[term]:.1f}" if term in terms else "" for term in TERMS
    ]
