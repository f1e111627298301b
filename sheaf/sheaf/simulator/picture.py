"""The charts of a report in one picture: SVG, or PNG where Pillow is installed (vLLM brings it along)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from sheaf.simulator.report import BOTTOM, HEIGHT, LEFT, WIDTH, Series, chart, color, extent, marks, placed

if TYPE_CHECKING:
    from PIL import ImageDraw

TITLE = 24
KINDS = (".svg", ".png")


class PictureError(Exception):
    """A picture that cannot be drawn: what is wrong and what to do, in one line."""


def picture(kind: str, names: Sequence[str], panels: Mapping[str, Sequence[Series]]) -> bytes:
    """All panels, one below the other, under a line that names the runs.

    Args:
        kind: `.svg` or `.png`.
        names: of the runs, in the order of each panel's lines.
        panels: lines by title.

    Raises:
        PictureError: for another kind, or where Pillow is missing.
    """
    if kind not in KINDS:
        raise PictureError(f"{kind or 'no ending'} is no kind of picture; name a file that ends in .svg or .png")
    return _svg(names, panels).encode() if kind == ".svg" else _png(names, panels)


def kind_of(path: Path) -> str:
    """The kind of picture that a file's name asks for."""
    return path.suffix.lower()


def _height(panels: Mapping[str, Sequence[Series]]) -> int:
    return TITLE + len(panels) * (TITLE + HEIGHT)


def _svg(names: Sequence[str], panels: Mapping[str, Sequence[Series]]) -> str:
    keys = "".join(
        f'<tspan fill="{color(place)}" dx="12">&#9632; {escape(name)}</tspan>' for place, name in enumerate(names)
    )
    body = "".join(
        f'<g transform="translate(0 {TITLE + place * (TITLE + HEIGHT)})">'
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>'
        f'<g transform="translate(0 {TITLE})">{chart(rows)}</g></g>'
        for place, (title, rows) in enumerate(panels.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{_height(panels)}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="16">{keys}</text>{body}</svg>\n'
    )


def _png(names: Sequence[str], panels: Mapping[str, Sequence[Series]]) -> bytes:
    try:
        from PIL import Image, ImageDraw  # noqa: PLC0415 - not a dependency of Sheaf's own
    except ImportError as error:
        raise PictureError(
            "a PNG needs Pillow, which is not installed; install pillow, or name an .svg file"
        ) from error
    image = Image.new("RGB", (WIDTH, _height(panels)), "white")
    draw = ImageDraw.Draw(image)
    left = LEFT
    for place, name in enumerate(names):
        draw.text((left, 6), name, fill=color(place))
        left += int(draw.textlength(name)) + 16
    for place, (title, rows) in enumerate(panels.items()):
        _panel(draw, TITLE + place * (TITLE + HEIGHT), title, rows)
    found = io.BytesIO()
    image.save(found, "PNG")
    return found.getvalue()


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, rows: Sequence[Series]) -> None:
    """One chart, its title above it."""
    draw.text((LEFT, top + 6), title, fill="black")
    top += TITLE
    base = top + HEIGHT - BOTTOM
    draw.line([(LEFT, top + 8), (LEFT, base), (WIDTH - 8, base)], fill="#bbbbbb")
    size = extent(rows)
    for x, y, anchor, text in marks(*size):
        draw.text((x, top + y), text, fill="#666666", anchor="rs" if anchor == "end" else "ms")
    for place, row in enumerate(rows):
        points = [(x, top + y) for x, y in (placed(point, *size) for point in row)]
        draw.line(points, fill=color(place), width=2)
