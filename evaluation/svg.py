"""Elements of SVG with everything in them escaped, and scales from values to places."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Scale:
    """Values from low to high onto places from start to stop."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten apart) within the scale."""
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class LogScale(Scale):
    """The same with equal ratios in equal lengths; low and high above 0."""

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Powers of ten within the scale, with 2 and 5 or 3 times them where there is room, else every so many."""
        first, last = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
        powers = range(first, last + 1)
        for factors, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), every) for every in range(1, len(powers) + 1))):
            found = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
            inside = [v for v in found if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
            if len(inside) <= most:
                break
        return inside


def widened(low: float, high: float, share: float = 0.0) -> tuple[float, float]:
    """The range from low to high, not empty, and larger by a share of itself on both sides."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        more = abs(low) * 0.05
        return (low - more, high + more) if more else (0.0, 1.0)
    return low - share * (high - low), high + share * (high - low)


def tag(name: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """An element. Text and values are escaped; `class_` and `text_anchor` become `class` and `text-anchor`."""
    told = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
    ]
    inner = Markup().join(escape(part) for part in content)
    return Markup("<{}{}>{}</{}>").format(name, Markup().join(told), inner, name)


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def line(kind: str, x1: float | str, y1: float, x2: float | str, y2: float) -> Markup:
    """A line of a class of the page."""
    return tag("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def percent(place: float) -> str:
    """A place along an element as wide as there is room."""
    return f"{place:.2f}%"
