"""A run, or several side by side, as a self-contained HTML page with charts in SVG. Same runs, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from sheaf.simulator.figures import Bounds, Figures
from sheaf.simulator.outcome import quantile
from sheaf.simulator.world import Result, Sample

COLORS = ("#2458a6", "#c4581b", "#2c7a4b", "#8a3ffc", "#9f1853", "#6f6f6f")
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 180, 56, 22
Run = tuple[Figures, Result]
Series = list[tuple[float, float]]

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
svg{display:block;margin:.3em 0 1.2em}h2{font-size:1em;margin:1.4em 0 0}.key{margin-right:1.2em}"""


def page(title: str, runs: Sequence[Run], bounds: Bounds) -> str:
    """The whole page."""
    charts = "".join(f"<h2>{escape(name)}</h2>{svg}" for name, svg in drawings(runs).items())
    keys = "".join(
        f'<span class="key" style="color:{color(place)}">&#9632; {escape(row.name)}</span>'
        for place, (row, _) in enumerate(runs)
    )
    promise = f"attained: first token within {bounds.ttft:g} s and {bounds.tpot * 1000:g} ms for each further one"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>{promise}</p>{_table(runs)}<p>{keys}</p>{charts}</html>\n"
    )


def drawings(runs: Sequence[Run]) -> dict[str, str]:
    """One chart for each figure over time, by its name."""
    return {name: chart(rows) for name, rows in panels(runs).items()}


def panels(runs: Sequence[Run]) -> dict[str, list[Series]]:
    """What is drawn: a line for each run, by the chart's name."""
    wanted: dict[str, Callable[[Sequence[Sample]], Series]] = {
        "Replicas that serve": lambda found: [(one.at, float(one.ready)) for one in found],
        "Requests in flight": lambda found: [(one.at, float(one.running + one.waiting)) for one in found],
        "Time to first token, p95 of each interval (s)": _p95,
        "Money spent": lambda found: [(one.at, one.money) for one in found],
        "Preemptions": lambda found: [(one.at, float(one.preemptions)) for one in found],
    }
    return {name: [draw(result.samples) for _, result in runs] for name, draw in wanted.items()}


def chart(rows: Sequence[Series]) -> str:
    """Lines over time in seconds, as SVG."""
    right, top = extent(rows)

    def place(point: tuple[float, float]) -> str:
        x, y = placed(point, right, top)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{color(index)}" stroke-width="1.5" points="{" ".join(map(place, row))}"/>'
        for index, row in enumerate(rows)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="#666">{_axes(right, top)}{lines}</svg>'
    )


def extent(rows: Sequence[Series]) -> tuple[float, float]:
    """How far the axes go."""
    right = max((x for row in rows for x, _ in row), default=0.0) or 1.0
    return right, max((y for row in rows for _, y in row), default=0.0) or 1.0


def placed(point: tuple[float, float], right: float, top: float) -> tuple[float, float]:
    """Where a point is in a chart, from its upper left corner."""
    x = LEFT + (WIDTH - LEFT - 8) * max(0.0, point[0]) / right
    return x, 8 + (HEIGHT - BOTTOM - 8) * (1.0 - point[1] / top)


def marks(right: float, top: float) -> list[tuple[float, float, str, str]]:
    """What stands at the axes: where, how it is anchored, and the text."""
    base = HEIGHT - BOTTOM
    rising = [(LEFT - 6.0, 8 + (base - 8) * (1 - share) + 4, "end", f"{top * share:.3g}") for share in (0.0, 0.5, 1.0)]
    times = [
        (LEFT + (WIDTH - LEFT - 8) * share, HEIGHT - 6.0, "middle", f"{right * share / 60.0:.3g} min")
        for share in (0.25, 0.5, 0.75)
    ]
    return rising + times


def _axes(right: float, top: float) -> str:
    texts = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in marks(right, top)
    )
    return f'<path d="M{LEFT} 8V{HEIGHT - BOTTOM}H{WIDTH - 8}" fill="none" stroke="#bbb"/>{texts}'


def _p95(samples: Sequence[Sample]) -> Series:
    return [(one.at, quantile(one.first_s, 0.95)) for one in samples if one.first_s]


def color(place: int) -> str:
    """Of the run at that place."""
    return COLORS[place % len(COLORS)]


HEADINGS = (
    "run",
    "requests",
    "refused",
    "moved",
    "broken",
    "attained",
    "TTFT p50",
    "p95",
    "p99",
    "TPOT p50",
    "p99",
    "cached",
    "cost",
    "pod hours",
    "on spot",
    "most pods",
    "preempted",
)


def cells(row: Figures) -> list[str]:
    """A row of the table."""
    return [
        row.name,
        str(row.requests),
        str(row.refused),
        str(row.moved),
        str(row.broken),
        f"{row.attainment:.1%}",
        *(f"{value:.2f} s" for value in row.ttft),
        f"{row.tpot[0] * 1000:.0f} ms",
        f"{row.tpot[2] * 1000:.0f} ms",
        f"{row.hit_rate:.1%}",
        f"{row.money:.2f}",
        f"{row.pod_hours:.1f}",
        f"{row.spot_share:.0%}",
        str(row.most_pods),
        str(row.preemptions),
    ]


def columns(rows: Sequence[Figures]) -> list[list[str]]:
    """The cells of each run; behind those of runs that are compared with the first, by how much they differ from it."""
    first, *others = map(cells, rows)
    return [first, *([other[0], *map(_against, first[1:], other[1:])] for other in others)]


def _against(before: str, now: str) -> str:
    """The second figure with its change in per cent; shares change in points."""
    one, other = _number(before), _number(now)
    if one is None or other is None or one == other or (one == 0.0 and not now.endswith("%")):
        return now
    return f"{now} ({other - one:+.1f} pt)" if now.endswith("%") else f"{now} ({(other / one - 1.0):+.0%})"


def _number(text: str) -> float | None:
    found = text.removesuffix(" ms").removesuffix(" s").removesuffix("%")
    return float(found) if found.replace(".", "", 1).isdecimal() else None


def _table(runs: Sequence[Run]) -> str:
    """Turned on its side: one column for each run."""
    found = columns([row for row, _ in runs])
    lines = ["".join(f"<th>{escape(text)}</th>" for text in (HEADINGS[0], *(column[0] for column in found)))]
    for place, heading in enumerate(HEADINGS[1:], start=1):
        lines.append(f"<td>{heading}</td>" + "".join(f"<td>{escape(column[place])}</td>" for column in found))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
