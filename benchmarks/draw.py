"""Pictures for the docs, from recorded figures: plain SVG, the same bytes for the same figures, light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLOURS = ("#2f6fde", "#d1495b", "#2a9d8f", "#e08a1e", "#9b5de5", "#6b7280", "#5aa9e6", "#8a5a2b", "#c026a3", "#7a9a01")
PLOT, HEIGHT = 506, 420  # width of what is drawn, height of the whole
LEFT, TOP, BOTTOM = 64, 24, 52
LEGEND, LETTER = 40, 6.4  # beside the plot: marks and margin, and the width of a letter
APART = 5.0  # between bars that would lie on each other


@dataclass(frozen=True)
class Line:
    """Points with a spread, drawn as a line with bars, or alone where ``joined`` is false."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    joined: bool = True


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _aside(lines: Sequence[Line], i: int, x: float) -> float:
    """How far a point at ``x`` is moved, so that the bars of all lines that have one there can be told apart."""
    here = [j for j, line in enumerate(lines) if line.spread and x in line.x]
    return APART * (here.index(i) - (len(here) - 1) / 2) if i in here else 0.0


def draw(path: Path, lines: Sequence[Line], *, x: str, y: str, title: str) -> Path:
    """Write one chart."""
    xs = [v for line in lines for v in line.x]
    bars = [(v, s) for line in lines for v, s in zip(line.y, line.spread or [0.0] * len(line.y), strict=True)]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = min(v - s for v, s in bars), max(v + s for v, s in bars)
    pad_x, pad_y = 0.04 * (high_x - low_x or 1), 0.06 * (high_y - low_y or 1)
    low_x, high_x, low_y, high_y = (
        low_x - pad_x,
        high_x + pad_x,
        low_y - pad_y if low_y < 0 else max(low_y - pad_y, 0.0),
        high_y + pad_y,
    )
    end = LEFT + PLOT
    width = end + LEGEND + round(LETTER * max(len(line.name) for line in lines))

    def at_x(v: float) -> float:
        return LEFT + (v - low_x) / (high_x - low_x) * PLOT

    def at_y(v: float) -> float:
        return HEIGHT - BOTTOM - (v - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{html.escape(title)}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<style>text{fill:#3b4252}.grid{stroke:#d8dee9}@media(prefers-color-scheme:dark){text{fill:#d8dee9}.grid{stroke:#434c5e}}"
        "</style>",
        f"<title>{html.escape(title)}</title>",
    ]
    for v in _ticks(low_y, high_y):
        out.append(f'<path class="grid" d="M{LEFT} {at_y(v):.1f}H{end}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at_y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for v in _ticks(low_x, high_x):
        out.append(f'<text x="{at_x(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{v:g}</text>')
    out.append(f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(x)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{html.escape(y)}</text>')
    assert len(lines) <= len(COLOURS), "two lines would have one colour"
    for i, line in enumerate(lines):
        colour = COLOURS[i]
        points = [(at_x(a) + _aside(lines, i, a), at_y(b)) for a, b in zip(line.x, line.y, strict=True)]
        if line.joined and len(points) > 1:
            path_ = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            out.append(f'<path d="{path_}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (a, _), v, s in zip(points, line.y, line.spread or [0.0] * len(line.y), strict=True):
            if s:
                out.append(f'<path d="M{a:.1f} {at_y(v - s):.1f}V{at_y(v + s):.1f}" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) <= 40:
            out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        top = TOP + 8 + 20 * i
        out.append(f'<circle cx="{end + 18}" cy="{top}" r="4" fill="{colour}"/>')
        out.append(f'<text x="{end + 28}" y="{top + 4}">{html.escape(line.name)}</text>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")
    return path
