"""The frame of a plot: its size, its grid lines with their numbers, and what the axes are."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup

from .svg import Scale, line, tag

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40  # margins of a plot with axes


def axes(x: Scale, y: Scale, x_name: str, y_name: str, ticks: int = 6) -> list[Markup]:
    """Grid lines with their numbers, and what the axes are."""
    parts = []
    for value in x.ticks(ticks):
        parts.append(line("grid", x(value), y.start, x(value), y.stop))
        parts.append(tag("text", number_of(value), class_="tick", x=x(value), y=y.start + 14, text_anchor="middle"))
    for value in y.ticks(ticks):
        parts.append(line("grid", x.start, y(value), x.stop, y(value)))
        parts.append(tag("text", number_of(value), class_="tick", x=x.start - 5, y=y(value) + 4, text_anchor="end"))
    middle = (y.start + y.stop) / 2
    turned = {"transform": f"rotate(-90 11 {middle:.2f})", "text_anchor": "middle"}
    parts.append(tag("text", x_name, class_="axis", x=(x.start + x.stop) / 2, y=HEIGHT - 6, text_anchor="middle"))
    parts.append(tag("text", y_name, class_="axis", x=11, y=middle, **turned))
    return parts


def number_of(value: float) -> str:
    return f"{round(value, 12):.6g}"


def plot(label: str, parts: Iterable[Markup]) -> Markup:
    """A drawing of this size, as wide as there is room."""
    return tag("svg", *parts, class_="plot", role="img", aria_label=label, viewBox=f"0 0 {WIDTH} {HEIGHT}")
