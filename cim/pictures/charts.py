"""Line charts as inline SVG that follow the page's colours, light or dark; no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 260  # user units; about one phone screen wide, so that letters keep their size there
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 38
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")  # beside colour, for those who do not see it
COLOURS = 8  # CSS variables --c0 .. --c7
_POINTS = 300


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend; empty for none.
        x, y: float [n]; points that are not finite are left out.
        colour: 0..7.
        faint: drawn pale and thin, below the others.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 0
    faint: bool = False


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> Markup:
    """A figure with axes, grid, lines and legend; an empty Markup when no line has a finite point.

    Args:
        x_range, y_range: the axes' ends; None: those of the data (from 0 upwards unless ``log``).
        log: logarithmic y axis; points that are not positive are left out.
    """
    cleaned = [(line, *_finite(line, log)) for line in lines]
    cleaned = [(line, x, y) for line, x, y in cleaned if len(x)]
    if not cleaned:
        return Markup("")
    xs, ys = (np.concatenate([entry[i] for entry in cleaned]) for i in (1, 2))
    x_low, x_high = x_range or _spread(float(xs.min()), float(xs.max()))
    y_low, y_high = y_range or _y_range(ys, log)
    horizontal = _Axis(x_low, x_high, _LEFT, WIDTH - _RIGHT, False)
    vertical = _Axis(y_low, y_high, HEIGHT - _BOTTOM, _TOP, log)
    body = [_grid(horizontal, vertical, x_label, y_label)]
    for line, x, y in sorted(cleaned, key=lambda entry: not entry[0].faint):
        body.append(_path(line, horizontal.at(x), vertical.at(y)))
    legend = [(line.name, line.colour) for line, _, _ in cleaned if line.name]
    label = escape(f"{y_label} over {x_label}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return Markup(svg + _legend(legend))


def smooth(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over a window of that share of the points, [n]; shorter at the ends."""
    half = max(int(len(values) * share / 2), 0)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float  # user units of low and high
    end: float
    log: bool

    def at(self, values: np.ndarray | float) -> np.ndarray:
        values, low, high = (np.log10(v) if self.log else v for v in (values, self.low, self.high))
        return self.start + (np.asarray(values) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            ticks = [10.0**d for d in decades]
            return ticks if len(ticks) > 1 else [self.low, self.high]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _finite(line: Line, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """The drawable points, at most 300, each the mean of its neighbours."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    x, y = x[good], y[good]
    if len(x) <= _POINTS:
        return x, y
    edges = np.linspace(0, len(x), _POINTS + 1).astype(int)[:-1]
    count = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / count, np.add.reduceat(y, edges) / count


def _spread(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def _y_range(values: np.ndarray, log: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = (low, high) if high > low * 1.01 else (low / 2, high * 2)
        return 10 ** (math.floor(math.log10(low) * 4) / 4), 10 ** (math.ceil(math.log10(high) * 4) / 4)
    low, high = _spread(min(low, 0.0), high)
    return low, high + 0.05 * (high - low)


def _grid(horizontal: _Axis, vertical: _Axis, x_label: str, y_label: str) -> str:
    parts = []
    for tick in vertical.ticks():
        y = float(vertical.at(tick))
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in horizontal.ticks():
        x = float(horizontal.at(tick))
        anchor = "end" if x > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{_number(tick)}</text>')
    base, middle = HEIGHT - _BOTTOM, (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    centre = (_TOP + base) / 2
    turned = f'transform="rotate(-90 12 {centre})" text-anchor="middle"'
    parts.append(f'<text x="12" y="{centre}" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _path(line: Line, x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    kind = "line faint" if line.faint else "line"
    colour = line.colour % COLOURS
    dash = "" if line.faint else f' stroke-dasharray="{_DASHES[colour % len(_DASHES)]}"'
    if len(x) == 1:
        return f'<circle cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3" fill="var(--c{colour})"/>'
    return f'<polyline class="{kind}" stroke="var(--c{colour})"{dash} points="{points}"/>'


def _legend(entries: list[tuple[str, int]]) -> str:
    if not entries:
        return ""
    parts = []
    for name, colour in entries:
        colour %= COLOURS
        line = f'<line x1="0" x2="26" y1="5" y2="5" stroke="var(--c{colour})" stroke-width="2.5"'
        line += f' stroke-dasharray="{_DASHES[colour % len(_DASHES)]}"/>'
        parts.append(f'<span><svg class="key" viewBox="0 0 26 10">{line}</svg>{escape(name)}</span>')
    return f'<div class="legend">{"".join(parts)}</div>'


def _number(value: float) -> str:
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}" if abs(value) < 1e4 else f"{value / 1000:g}k"
