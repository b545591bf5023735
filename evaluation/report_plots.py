"""The plots of the report page as inline SVG. Colours are classes of the page, so that its dark mode is theirs too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, plot
from .metrics.colour import Colour
from .results import Result
from .svg import Scale, line, percent, tag, widened

LETTER = 6.1  # of a label, in the size that the page gives them
BINS = 24


@dataclass(frozen=True)
class Histogram:
    """Shares of pictures in equal bins of one statistic. edges: float64 (bins + 1,). real: None without real ones."""

    name: str
    edges: np.ndarray
    generated: np.ndarray
    real: np.ndarray | None


@dataclass(frozen=True)
class Point:
    """A report in a plane of two metrics, with the intervals that it has there."""

    name: str
    x: Result
    y: Result
    best: bool = True  # on the Pareto front


@dataclass(frozen=True)
class Panel:
    """A drawing, or bars (label, drawing, value), and how to read it in a line."""

    title: str
    reading: str
    drawing: str = ""  # Markup
    bars: tuple[tuple[str, Markup, str], ...] = ()


def part_of(name: str) -> tuple[str, str]:
    """("adherence", "colour") of "adherence/colour", the result of a part; (name, "") of any other name."""
    head, _, part = name.rpartition("/")
    return (head, part) if head and ":" not in head else (name, "")  # behind a colon it may be a path


def number_text(number: float | None) -> str:
    """Four digits; nothing of None."""
    return "" if number is None else f"{number:.4g}"


def interval_text(result: Result) -> str:
    """Both ends in three digits; nothing without an interval."""
    return f"{result.interval[0]:.3g} … {result.interval[1]:.3g}" if result.interval else ""


def colour_histograms(*, real: Colour | None, generated: Colour, bins: int = BINS) -> tuple[Histogram, ...]:
    """Of saturation and contrast, a number a picture, in bins that both sets share."""
    found = []
    for name in ("saturation", "contrast"):
        ours = getattr(generated, name)
        theirs = getattr(real, name) if real is not None and len(real) else None
        together = np.concatenate([ours, theirs]) if theirs is not None else ours
        low, high = widened(float(together.min()), float(together.max()))
        edges = np.linspace(low, high, bins + 1)
        shares = [None if v is None else np.histogram(v, edges)[0] / len(v) for v in (ours, theirs)]
        assert shares[0] is not None
        found.append(Histogram(name, edges, shares[0], shares[1]))
    return tuple(found)


def front(points: Sequence[tuple[float, float]], up: tuple[bool, bool]) -> list[bool]:
    """Which points no other one beats: at least as good in both coordinates and better in one. up: higher is better."""
    signed = [tuple(v if way else -v for v, way in zip(point, up, strict=True)) for point in points]
    return [
        not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in signed) and all(math.isfinite(v) for v in p)
        for p in signed
    ]


def strip(result: Result) -> Markup:
    """A line with the interval, the value, and a mark for the null and the real value, on a scale of its own.

    Without an interval zero is on the scale, so that a gap is seen in proportion.
    """
    shown = _numbers(result)
    if not math.isfinite(result.value) or len(set(shown)) < 2:
        return Markup()
    scale = Scale(*widened(min(shown), max(shown), 0), 4, 96)
    return _fluid(18, f"{result.name} beside its null and real value", _marks(result, scale, 9))


def bar(result: Result, low: float, high: float) -> Markup:
    """A bar from zero with its interval and the real value, on a scale that its neighbours share."""
    scale = Scale(low, high, 0.5, 99)
    zero, value = scale(0), scale(result.value) if math.isfinite(result.value) else scale(0)
    body = tag(
        "rect", class_="bar", x=percent(min(zero, value)), width=percent(abs(value - zero)), y=3, height=12, rx=2
    )
    return _fluid(18, f"{result.name} {result.value:.3g}", [body, *_marks(result, scale, 9, dot=False)])


def bar_range(results: Iterable[Result]) -> tuple[float, float]:
    """A scale for bars: 0 to 1 for shares, else from zero to the farthest mark."""
    numbers = [number for result in results for number in _numbers(result)]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    return (low, 1.0 if 0.2 < high <= 1 else high) if high > low else (0.0, 1.0)


def histogram(found: Histogram) -> Markup:
    """Bars of generated pictures and the outline of real ones."""
    top = max(float(shares.max()) for shares in (found.generated, found.real) if shares is not None)
    x = Scale(float(found.edges[0]), float(found.edges[-1]), LEFT, WIDTH - RIGHT)
    y = Scale(0, top * 1.05, HEIGHT - BOTTOM, TOP)
    bars = [
        tag("rect", class_="bar soft", x=x(a), width=x(b) - x(a), y=y(share), height=y(0) - y(share))
        for a, b, share in zip(found.edges[:-1], found.edges[1:], found.generated, strict=True)
        if share
    ]
    outline = [] if found.real is None else [tag("path", class_="outline", d=_steps(found.edges, found.real, x, y))]
    framed = axes(x, y, found.name, "share of pictures", ticks=5)
    return plot(f"{found.name} of generated and of real pictures", [*framed, *bars, *outline])


def pareto(points: Sequence[Point], x_name: str, y_name: str) -> Markup:
    """Points with their intervals and names; those that none beats are filled and joined."""
    xs, ys = ([n for p in points for n in _extent(result(p))] for result in (lambda p: p.x, lambda p: p.y))
    x = Scale(*widened(min(xs), max(xs), 0.06), LEFT, WIDTH - RIGHT)
    y = Scale(*widened(min(ys), max(ys), 0.06), HEIGHT - BOTTOM, TOP)
    best = sorted((x(p.x.value), y(p.y.value)) for p in points if p.best)
    joined = [tag("polyline", class_="front", points=" ".join(f"{a:.2f},{b:.2f}" for a, b in best))]
    whiskers = [whisker for point in points for whisker in _whiskers(point, x, y)]
    dots = [_dot(p, x(p.x.value), y(p.y.value)) for p in points]
    labels = _labels([(p.name, x(p.x.value), y(p.y.value)) for p in points])
    framed = axes(x, y, f"{x_name} {_better(points[0].x)}", f"{y_name} {_better(points[0].y)}")
    return plot(f"{y_name} against {x_name}", [*framed, *joined, *whiskers, *dots, *labels])


def _better(result: Result) -> str:
    return {True: "(more is better)", False: "(less is better)", None: ""}[result.higher_is_better]


def _numbers(result: Result) -> list[float]:
    """All that is drawn of a result; with zero where there is no interval."""
    found = [result.value, result.null, result.real, *(_ends(result) or (0.0,))]
    return [float(n) for n in found if n is not None and math.isfinite(n)]


def _extent(result: Result) -> tuple[float, ...]:
    return (result.value, *(_ends(result) or ()))


def _ends(result: Result) -> tuple[float, float] | None:
    """The interval, where there is one that can be drawn."""
    return result.interval if result.interval and all(map(math.isfinite, result.interval)) else None


def _marks(result: Result, scale: Scale, middle: int, dot: bool = True) -> list[Markup]:
    """Interval, null, real and value of a result along a line, in percent of its length."""
    marks = []
    if ends := _ends(result):
        low, high = (scale(n) for n in ends)
        kind = "interval" if dot else "whisker"
        marks.append(line(kind, percent(low), middle, percent(high), middle))
    if result.null is not None and math.isfinite(result.null):
        place = percent(scale(result.null))
        marks.append(line("null", place, middle - 8, place, middle + 8))
    if result.real is not None and math.isfinite(result.real):
        place = percent(scale(result.real))
        marks.append(line("real", place, middle - 8, place, middle + 8))
    if dot:
        marks.append(tag("circle", class_="value", cx=percent(scale(result.value)), cy=middle, r=4))
    return marks


def _steps(edges: np.ndarray, shares: np.ndarray, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """The path of an outline over bins."""
    parts = [f"M{x(float(edges[0])):.2f},{y(0):.2f}"]
    parts += [f"V{y(float(share)):.2f}H{x(float(edge)):.2f}" for share, edge in zip(shares, edges[1:], strict=True)]
    return "".join([*parts, f"V{y(0):.2f}"])


def _whiskers(point: Point, x: Scale, y: Scale) -> list[Markup]:
    across, along = x(point.x.value), y(point.y.value)
    found = []
    if ends := _ends(point.x):
        found.append(line("whisker", x(ends[0]), along, x(ends[1]), along))
    if ends := _ends(point.y):
        found.append(line("whisker", across, y(ends[0]), across, y(ends[1])))
    return found


def _dot(point: Point, x: float, y: float) -> Markup:
    title = tag("title", f"{point.name}: {point.x.name} {point.x.value:.4g}, {point.y.name} {point.y.value:.4g}")
    return tag("circle", title, class_="value" if point.best else "value beaten", cx=x, cy=y, r=4.5)


def _labels(points: Sequence[tuple[str, float, float]]) -> list[Markup]:
    """Names beside their points where there is room, each at the first place that is free, else nowhere."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y in points]
    found = []
    for name, x, y in points:
        text = name if len(name) <= 28 else name[:27] + "…"
        wide = LETTER * len(text)
        right, left_of = x + 6, x - 6 - wide
        for left, base in ((right, y - 5), (right, y + 13), (left_of, y - 5), (left_of, y + 13), (right + 2, y + 4)):
            box = (left, base - 10, left + wide, base + 3)
            inside = box[0] >= LEFT + 2 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(tag("text", text, class_="name", x=left, y=base))
                break
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fluid(height: int, label: str, parts: Iterable[Markup]) -> Markup:
    """As wide as there is room; places along it are percentages."""
    return tag("svg", *parts, class_="fluid", role="img", aria_label=label, width="100%", height=height)
