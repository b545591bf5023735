"""Curves of numbers over a run, as inline SVG. Colours are classes of the page, so that its dark mode is theirs too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..evaluation.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, number_of, plot
from ..evaluation.svg import LogScale, Scale, line, tag, widened

COLOURS = 8  # classes c0 to c7 of the page
WINDOW = 5  # values that a trailing mean takes
MOST = 300  # points that a curve is drawn with

Points = tuple[tuple[float, float], ...]  # (x, y), x ascending, all finite


@dataclass(frozen=True)
class Curve:
    name: str
    points: Points

    @property
    def noisy(self) -> bool:
        """Drawn faintly with its trailing mean on top; others are joined, with dots while they are few."""
        return noisy(self.points)


def smoothed(points: Points, window: int = WINDOW) -> Points:
    """Each y replaced by the mean of the last `window` ones up to it: nothing of what comes later."""
    ys = [y for _, y in points]
    last = [ys[max(0, i + 1 - window) : i + 1] for i in range(len(ys))]
    return tuple((x, math.fsum(part) / len(part)) for (x, _), part in zip(points, last, strict=True))


def thinned(points: Points, most: int = MOST) -> Points:
    """At most so many points: means of equal groups, where there are more."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else []
    return tuple(_mean(group) for group in groups) if groups else points


def _mean(group: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)


def noisy(points: Points) -> bool:
    """Does y go up and down by far more than it gets anywhere?"""
    ys = [y for _, y in points]
    way = math.fsum(abs(b - a) for a, b in zip(ys, ys[1:], strict=False))
    return len(ys) > WINDOW and way > 3 * (max(ys) - min(ys))


def reaches(points: Points, level: float) -> float | None:
    """The first x where y is at least `level`; None where it never is."""
    return next((x for x, y in points if y >= level), None)


def chart(
    curves: Sequence[Curve], x_name: str, y_name: str, *, log_x: bool = False, mark: float | None = None
) -> Markup:
    """The curves in one plot, each in the colour of its place. log_x: leaves out points where x is not above 0.

    mark: a value of y that a dashed line is drawn at. Empty where there is nothing to draw.
    """
    kept = [(n, Curve(c.name, _above_zero(c.points) if log_x else c.points)) for n, c in enumerate(curves)]
    kept = [(number, curve) for number, curve in kept if curve.points]
    if not kept:
        return Markup()
    xs = [x for _, curve in kept for x, _ in curve.points]
    ys = [y for _, curve in kept for _, y in curve.points] + ([] if mark is None else [mark])
    y = Scale(*widened(min(ys), max(ys), 0.05), HEIGHT - BOTTOM, TOP)
    left = max(LEFT, 22 + 6 * max(len(number_of(tick)) for tick in y.ticks()))  # long numbers need more room
    ends = _a_power(min(xs), max(xs)) if log_x else widened(min(xs), max(xs))
    x = (LogScale if log_x else Scale)(*ends, left, WIDTH - RIGHT)
    parts = axes(x, y, x_name, y_name)
    if mark is not None:
        parts.append(line("null", x.start, y(mark), x.stop, y(mark)))
    for number, curve in kept:
        parts += _drawn(curve, f"c{number % COLOURS}", x, y)
    return plot(f"{y_name} against {x_name}", parts)


def _above_zero(points: Points) -> Points:
    return tuple((x, y) for x, y in points if x > 0)


def _a_power(low: float, high: float) -> tuple[float, float]:
    """The range, at least a power of ten long, so that a log scale of it has numbers."""
    middle, reach = math.sqrt(low * high), max(math.sqrt(high / low) * 1.05, math.sqrt(10))
    return middle / reach, middle * reach


def _drawn(curve: Curve, colour: str, x: Scale, y: Scale) -> list[Markup]:
    title = tag("title", curve.name)
    if not curve.noisy:
        dots = [_dot(curve, point, colour, x, y) for point in curve.points] if len(curve.points) <= 40 else []
        return [_line(thinned(curve.points), f"curve {colour}", x, y, title), *dots]
    mean = thinned(smoothed(curve.points))
    return [_line(thinned(curve.points), f"curve faint {colour}", x, y), _line(mean, f"curve {colour}", x, y, title)]


def _line(points: Points, kind: str, x: Scale, y: Scale, *content: Markup) -> Markup:
    return tag("polyline", *content, class_=kind, points=" ".join(f"{x(a):.2f},{y(b):.2f}" for a, b in points))


def _dot(curve: Curve, point: tuple[float, float], colour: str, x: Scale, y: Scale) -> Markup:
    title = tag("title", f"{curve.name}: {point[1]:.4g} at {point[0]:.6g}")
    return tag("circle", title, class_=f"dot {colour}", cx=x(point[0]), cy=y(point[1]), r=2.6)
