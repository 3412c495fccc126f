"""Charts of a report as SVG text: lines, dots per view, bars, and maps seen from above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scene_distill.export.report_page import text

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34
"""Size of a chart and its margins in pixels."""

GRID = "#e6eaee"


@dataclass(frozen=True, eq=False)
class Series:
    """A line or a set of dots: name, colour, and x and y [P]."""

    name: str
    colour: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Where values lie on a chart: ends of x and y, and the chart's size in pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a value."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = LEFT + (x - x0) / ((x1 - x0) or 1) * (self.width - LEFT - RIGHT)
        return across, self.height - BOTTOM - (y - y0) / ((y1 - y0) or 1) * (self.height - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, *, numbered: bool = True) -> str:
        """Grid lines with their values (of x only where ``numbered``), and the labels of both axes."""
        parts = []
        for value in ticks(*self.y):
            _, py = self.at(self.x[0], value)
            parts.append(f'<line x1="{LEFT}" x2="{self.width - RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="{GRID}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{py + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
        for value in ticks(*self.x) if numbered else ():
            px, _ = self.at(value, self.y[0])
            bottom = self.height - BOTTOM + 15
            parts.append(f'<text x="{px:.1f}" y="{bottom}" text-anchor="middle">{tick_text(value)}</text>')
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 4}" text-anchor="middle">{text(x_label)}</text>')
        turn = f"rotate(-90 12 {self.height / 2})"
        parts.append(
            f'<text x="12" y="{self.height / 2}" text-anchor="middle" transform="{turn}">{text(y_label)}</text>'
        )
        return "".join(parts)

    def svg(self, inside: str, title: str) -> str:
        """The chart."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img" '
            f'aria-label="{text(title)}">{inside}</svg>'
        )


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round values between low and high: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A short number: 0.25, 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def span(values: Sequence[np.ndarray], quantile: float = 0.0, room: float = 0.04) -> tuple[float, float]:
    """Ends of an axis that shows the values but the farthest ``quantile`` on each side, with a little room."""
    together = np.concatenate([np.asarray(v, dtype=float) for v in values]) if values else np.zeros(1)
    low, high = (float(v) for v in np.quantile(together, [quantile, 1 - quantile]))
    edge = room * (high - low) or abs(high) * 0.05 or 1.0
    return low - edge, high + edge


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Lines; the first 1 % highest and lowest values may lie outside, where a start is far from what follows."""
    frame = Frame(span([s.x for s in series], room=0.0), span([s.y for s in series], 0.01))
    parts = [frame.axes(x_label, y_label)]
    for one in series:
        y = np.clip(one.y, *frame.y)
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (frame.at(*p) for p in zip(one.x, y, strict=True)))
        title = f"<title>{text(one.name)}</title>"
        style = f'fill="none" stroke="{one.colour}" stroke-width="1.6" stroke-linejoin="round"'
        parts.append(f'<polyline points="{points}" {style}>{title}</polyline>')
    return frame.svg("".join(parts), f"{y_label} over {x_label}")


def dot_chart(series: Sequence[Series], names: Sequence[str], y_label: str, width: int = 1130) -> str:
    """Dots of every series over the same places, named by ``names``, joined by a thin line per place."""
    frame = Frame((-0.7, len(names) - 0.3), span([s.y for s in series], room=0.08), width, 230)
    parts = [frame.axes("", y_label, numbered=False)]
    for place in range(len(names)):
        ys = [frame.at(place, float(s.y[place]))[1] for s in series]
        x = frame.at(place, 0)[0]
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{min(ys):.1f}" y2="{max(ys):.1f}" stroke="#c8d0d8"/>')
    for one in series:
        for place, value in enumerate(one.y):
            px, py = frame.at(place, float(value))
            title = f"<title>{text(names[place])}: {text(one.name)} {value:.2f}</title>"
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.2" fill="{one.colour}">{title}</circle>')
    return frame.svg("".join(parts), y_label)
