"""`sheaf simulate`: what a fleet would do with a trace, before anything is applied."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from sheaf_crds import Adapter, KubeObject, Model
from sheaf_engine.timing import PRESETS, TimingProfile

from sheaf.cli.errors import CliError
from sheaf.local.manifests import NoManifestsError, read_files, require_files
from sheaf.simulator.calls import Call
from sheaf.simulator.figures import Figures, bounds_of, figures
from sheaf.simulator.market import DEFAULT_PRICES, Market, Zone, read_prices, read_zone
from sheaf.simulator.naming import UnknownNameError, named
from sheaf.simulator.picture import KINDS, PictureError, kind_of, picture
from sheaf.simulator.policies.registry import POLICIES
from sheaf.simulator.report import HEADINGS, Run, columns, drawings, page, panels
from sheaf.simulator.traces import Chat, Shape, TraceError, conversations, read_trace, shaped
from sheaf.simulator.world import COLD_START_S, Result, Setting, World

MONDAY = datetime(2024, 1, 1)  # noqa: DTZ001 - as the command line reads it
Paths = Annotated[list[Path], typer.Option("--file", "-f", help="Manifest files, or folders of them.")]


def simulate(
    files: Paths,
    trace: Annotated[
        Path | None, typer.Option(help="Requests: Mooncake or Sheaf JSON lines, Azure CSV [default: generated chats].")
    ] = None,
    spot_trace: Annotated[
        list[Path] | None, typer.Option(help="Spot capacity of a zone over time; repeat for more zones.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="JSON of prices an hour by accelerator type.")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Run beside it: other manifests by path, or route=POLICY; repeat for more."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, charts and figures.json.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for all charts in one picture: .svg or .png.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    speed: Annotated[float, typer.Option(min=0.001, max=1000.0, help="Arrivals so many times as fast.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Timing profile: a preset's name or a JSON file [default: by accelerator].")
    ] = None,
    cold_start: Annotated[float, typer.Option(min=0.0, max=86_400.0, help="Seconds until a new pod serves.")] = (
        COLD_START_S
    ),
    begin: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="When the trace begins, UTC: schedules go by it."),
    ] = MONDAY,
    notice: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Seconds of warning before spot is taken.")] = 30.0,
) -> int:
    """Show what the manifests would do with a trace: latency, SLO attainment, cost, replicas, preemptions."""
    if plot is not None and kind_of(plot) not in KINDS:
        raise CliError(f"--plot {plot}: name a file that ends in .svg or .png", code=2)
    try:
        objects = _objects(files)
        market, at = _market(spot_trace or [], prices, notice), begin.replace(tzinfo=UTC).timestamp()
        setting = Setting(market=market, cold_start_s=cold_start, profile=_profile(profile), begin=at)
        calls = _calls(trace, Shape(speed=speed, seed=seed, limit=limit))
        plans = [("sheaf", objects, "sheaf"), *(_variant(text, objects) for text in compare or [])]
        bounds = bounds_of(objects)
        runs = []
        for name, declared, route in plans:
            result = _run(declared, route, calls, setting, seed)
            runs.append((figures(name, result, bounds), result))
    except (TraceError, NoManifestsError, UnknownNameError) as error:
        raise CliError(str(error)) from error
    _show([row for row, _ in runs])
    if out is not None:
        _write(out, page("Simulation", runs, bounds), [row for row, _ in runs], drawings(runs))
    if plot is not None:
        _plot(plot, runs)
    return 0


def _objects(paths: Sequence[Path]) -> list[KubeObject]:
    reading = read_files(require_files(paths))
    broken = [line for line in reading.problems if "there is no folder" not in line]
    if broken:
        raise CliError(f"{broken[0]}{f' (and {len(broken) - 1} more; sheaf validate)' if len(broken) > 1 else ''}")
    found = [item for content in reading.files.values() for item in content.objects]
    if not any(isinstance(item, Model) for item in found):
        raise CliError(f"{paths[0]}: declares no Model; a simulation needs one at least")
    return [_with_uid(item) for item in found]


def _with_uid(item: KubeObject) -> KubeObject:
    metadata = item.metadata.model_copy(update={"uid": f"uid-{type(item).__name__}-{item.name}", "generation": 1})
    return item.model_copy(update={"metadata": metadata})


def _market(traces: Sequence[Path], prices: Path | None, notice: float) -> Market:
    zones = tuple(read_zone(path) for path in traces) or (Zone("zone"),)
    return Market(zones, read_prices(prices) if prices else DEFAULT_PRICES, notice)


def _profile(text: str | None) -> TimingProfile | None:
    if text is None or text in PRESETS:
        return None if text is None else PRESETS[text]
    path = Path(text)
    if not path.is_file():
        raise CliError(f"{text}: no such timing preset or file; presets are {', '.join(sorted(PRESETS))}")
    try:
        return TimingProfile.from_json(path.read_text())
    except ValueError as error:
        raise CliError(f"{path}: {error}") from error


def _calls(trace: Path | None, shape: Shape) -> list[Call]:
    found = read_trace(trace) if trace is not None else conversations(Chat(), shape.seed)
    return shaped(found, Shape(speed=shape.speed, seed=shape.seed, limit=shape.limit, model=""))


def _variant(text: str, objects: list[KubeObject]) -> tuple[str, list[KubeObject], str]:
    kind, _, name = text.partition("=")
    if kind == "route":
        if name not in POLICIES:
            raise CliError(f"--compare {text}: no such routing policy; there are {', '.join(POLICIES)}")
        return name, objects, name
    return text, _objects([Path(text)]), "sheaf"


def _run(objects: list[KubeObject], route: str, calls: list[Call], setting: Setting, seed: int) -> Result:
    models = [item.name for item in objects if isinstance(item, Model)]
    adapters = {item.name: item.spec.model_ref.name for item in objects if isinstance(item, Adapter)}
    asked = named(calls, models, adapters, seed)
    try:
        return World(objects, POLICIES[route](seed), setting).run(asked)
    except ValueError as error:
        raise CliError(f"the timing profile and the Model's engine arguments do not go together: {error}") from error


def _show(rows: Sequence[Figures]) -> None:
    table = Table(*HEADINGS[:1], *(row.name for row in rows), box=None)
    found = columns(rows)
    for place, heading in enumerate(HEADINGS[1:], start=1):
        table.add_row(heading, *(column[place] for column in found))
    Console().print(table)


def _write(folder: Path, html: str, rows: Sequence[Figures], charts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(html)
        (folder / "figures.json").write_bytes(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2))
        for name, svg in charts.items():
            stem = "-".join(name.split("(")[0].split(",")[0].lower().split())
            (folder / f"{stem}.svg").write_text(svg)
    except OSError as error:
        raise CliError(f"{folder}: cannot be written: {error.strerror}") from error


def _plot(path: Path, runs: Sequence[Run]) -> None:
    try:
        path.write_bytes(picture(kind_of(path), [row.name for row, _ in runs], panels(runs)))
    except PictureError as error:
        raise CliError(f"--plot {path}: {error}") from error
    except OSError as error:
        raise CliError(f"{path}: cannot be written: {error.strerror}") from error
