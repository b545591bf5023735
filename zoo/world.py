"""The embedded world: small pictures drawn by our own code, whose every attribute is known.

A picture is a deterministic function of (split, index). There are three kinds of scene: one object, big or small;
two or three equal objects; a pair of different objects beside or above one another. `train` and `test` share their
(colour, shape) combinations; each `heldout` scene has at least one combination that never occurs in the other two.

Geometry is in units of the picture's side, x to the right and y down, so a scene can be drawn at any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UsageError, nearest

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (224, 50, 52),
    "orange": (248, 144, 36),
    "yellow": (252, 212, 54),
    "green": (62, 166, 84),
    "teal": (32, 164, 166),
    "blue": (48, 104, 218),
    "violet": (140, 80, 204),
    "pink": (244, 120, 178),
}

# Name -> colour of the top and of the bottom edge.
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((253, 253, 254), (234, 237, 242)),
    "black": ((40, 40, 48), (12, 12, 16)),
    "navy": ((38, 54, 120), (14, 22, 66)),
    "grey": ((166, 168, 176), (124, 127, 138)),
    "sand": ((248, 233, 206), (226, 203, 162)),
    "sky": ((204, 232, 253), (146, 202, 246)),
    "mint": ((216, 246, 229), (166, 224, 196)),
    "lilac": ((231, 220, 248), (198, 180, 232)),
}

SHAPES = ("disc", "square", "triangle", "star", "heart", "moon", "ring", "cross", "flower", "house", "fish", "tree")
_PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses", "fish": "fish"}
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()}
_PLACES = {
    "top": "at the top",
    "bottom": "at the bottom",
    "left": "at the left",
    "right": "at the right",
    "centre": "in the centre",
}

# Heads of the classifiers and the names of their classes, in the order of `labels`.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "count": ("one", "two", "three"),
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "shape2": ("none", *SHAPES),
    "colour2": ("none", *COLOURS),
    "relation": ("none", "left", "above"),
    "size": ("none", "big", "small"),
    "place": ("none", *_PLACES),
}

# One colour of each shape is kept for the `heldout` split: 12 of 96 combinations, every colour once or twice.
HELD_OUT = frozenset((tuple(COLOURS)[(3 * i + 1) % len(COLOURS)], shape) for i, shape in enumerate(SHAPES))
SPLITS = ("train", "test", "heldout")

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            *[
                "a",
                "an",
                "one",
                "two",
                "three",
                "on",
                "in",
                "at",
                "the",
                "of",
                "with",
                "and",
                "background",
                "big",
                "small",
                "left",
                "right",
                "above",
                "below",
            ],
            *["top", "bottom", "centre"],
            *COLOURS,
            *BACKGROUNDS,
            *SHAPES,
            *_PLURALS.values(),
        ]
    )
)

_SUPERSAMPLING = 4
_MINIMUM_SEPARATION = 34.0  # CIE 1976 colour difference between an object and either end of its background


def _lab(colour: RGB) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour, float64 (3,)."""
    c = np.asarray(colour, dtype=np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.asarray(matrix) @ linear / np.asarray([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.asarray([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@cache
def separation(colour: str, background: str) -> float:
    """Smallest CIE 1976 difference between a colour and its background; about 2 is just noticeable."""
    return min(float(np.linalg.norm(_lab(COLOURS[colour]) - _lab(end))) for end in BACKGROUNDS[background])


@cache
def _backgrounds_for(colours: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(b for b in BACKGROUNDS if all(separation(c, b) >= _MINIMUM_SEPARATION for c in colours))


@dataclass(frozen=True)
class Object:
    """One drawn thing: its centre (x, y) and radius are fractions of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. In a pair the first object is the left or the upper one."""

    kind: str  # "single", "group" or "pair"
    objects: tuple[Object, ...]
    background: str
    size: str = "none"
    place: str = "none"
    relation: str = "none"
    wording: tuple[int, ...] = (0, 0, 0, 0)

    @property
    def attributes(self) -> dict[str, str]:
        """The true class name of every head of `ATTRIBUTES`."""
        first = self.objects[0]
        second = self.objects[1] if self.kind == "pair" else None
        return {
            "background": self.background,
            "count": ATTRIBUTES["count"][len(self.objects) - 1],
            "shape": first.shape,
            "colour": first.colour,
            "shape2": second.shape if second else "none",
            "colour2": second.colour if second else "none",
            "relation": self.relation,
            "size": self.size,
            "place": self.place,
        }

    @property
    def caption(self) -> str:
        """A true sentence about the scene. It may leave out the background, the size or the place."""
        turn, frame, say_size, say_place = self.wording
        first = self.objects[0]
        if self.kind == "group":
            what = f"{ATTRIBUTES['count'][len(self.objects) - 1]} {first.colour} {_PLURALS[first.shape]}"
        elif self.kind == "pair":
            one, two = (_noun(o.colour, o.shape) for o in self.objects)
            there, back = {"left": ("left of", "right of"), "above": ("above", "below")}[self.relation]
            what = f"{two} {back} {one}" if turn else f"{one} {there} {two}"
        else:
            what = _noun(first.colour, first.shape, self.size if say_size else "")
            if say_place and self.place != "none":
                what += f" {_PLACES[self.place]}"
        return _FRAMES[frame].format(what=what, background=self.background)

    def draw(self, size: int = 32) -> np.ndarray:
        """The picture as uint8 (size, size, 3), drawn at four times the size and averaged down."""
        side = size * _SUPERSAMPLING
        image = _canvas(self.background, side).copy()
        pen = ImageDraw.Draw(image)
        for thing in self.objects:
            _PAINTERS[thing.shape](_Brush(pen, thing.x * side, thing.y * side, thing.radius * side, thing.colour))
        return np.asarray(image.reduce(_SUPERSAMPLING))


# -- captions -------------------------------------------------------------------------------------------------------

_FRAMES = ("{what} on {background}", "on {background}, {what}", "{what} on a {background} background", "{what}")
_FRAME_PROBABILITIES = (0.45, 0.25, 0.2, 0.1)


def _noun(colour: str, shape: str, size: str = "") -> str:
    words = f"{size} {colour} {shape}".split()
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _one_of(names: Iterable[str]) -> str:
    return "(?:" + "|".join(sorted(names, key=len, reverse=True)) + ")"


_COLOUR, _SHAPE, _BACKGROUND = _one_of(COLOURS), _one_of(SHAPES), _one_of(BACKGROUNDS)
_ONE = r"(?:a|an|one)"
_FRAME_PATTERNS = tuple(
    re.compile(pattern.format(background=f"(?P<background>{_BACKGROUND})", what="(?P<what>.+?)"))
    for pattern in (
        r"on (?:a )?{background}(?: background)?,? {what}",
        r"{what},? on (?:a )?{background}(?: background)?",
    )
)
_SINGLE = re.compile(
    rf"{_ONE}(?: (?P<size>big|small))? (?P<colour>{_COLOUR}) (?P<shape>{_SHAPE})"
    rf"(?: (?P<place>{_one_of(_PLACES.values())}))?"
)
_GROUP = re.compile(rf"(?P<count>two|three) (?P<colour>{_COLOUR}) (?P<shape>{_one_of(_SINGULARS)})")
_PAIR = re.compile(
    rf"{_ONE} (?P<colour>{_COLOUR}) (?P<shape>{_SHAPE}) (?:to the )?(?P<relation>left of|right of|above|below) "
    rf"{_ONE} (?P<colour2>{_COLOUR}) (?P<shape2>{_SHAPE})"
)
_EXAMPLE = "a blue ring left of a yellow heart on white"


def parse(caption: str) -> dict[str, str]:
    """The attributes that a caption states, head -> class name: the inverse of the grammar.

    A group of equal objects states the relation "none", which sets it apart from a pair. What the caption leaves
    open is left out. Anything outside the grammar is a `UsageError`.
    """
    text = " ".join(caption.lower().strip().rstrip(".").split())
    stated: dict[str, str] = {}
    what = text
    for pattern in _FRAME_PATTERNS:
        if found := pattern.fullmatch(text):
            stated["background"], what = found["background"], found["what"]
            break
    if found := _SINGLE.fullmatch(what):
        stated |= {"count": "one", "shape": found["shape"], "colour": found["colour"]}
        if found["size"]:
            stated["size"] = found["size"]
        if found["place"]:
            stated["place"] = next(place for place, phrase in _PLACES.items() if phrase == found["place"])
    elif found := _GROUP.fullmatch(what):
        stated |= {"count": found["count"], "shape": _SINGULARS[found["shape"]], "colour": found["colour"]}
        stated["relation"] = "none"
    elif found := _PAIR.fullmatch(what):
        one, two = (found["colour"], found["shape"]), (found["colour2"], found["shape2"])
        if found["relation"] in ("right of", "below"):
            one, two = two, one
        stated |= {"count": "two", "colour": one[0], "shape": one[1], "colour2": two[0], "shape2": two[1]}
        stated["relation"] = "left" if found["relation"] in ("left of", "right of") else "above"
    else:
        known = set(VOCABULARY)
        strange = next((word for word in re.findall(r"[a-z]+", text) if word not in known), None)
        why = f"unknown word {strange!r} ({nearest(strange, known)})" if strange else "not in the world's grammar"
        raise UsageError(f"caption {caption!r}: {why}; write for example {_EXAMPLE!r}")
    return {head: stated[head] for head in ATTRIBUTES if head in stated}


# -- scenes ---------------------------------------------------------------------------------------------------------


def scene(index: int, split: str = "train") -> Scene:
    """The scene with this number; any index from 0 up, always the same one."""
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: {nearest(split, SPLITS)}")
    rng = np.random.default_rng([SPLITS.index(split) + 1, index])
    kind = ("single", "group", "pair")[int(rng.choice(3, p=(0.4, 0.25, 0.35)))]
    while True:
        combinations = [_combination(rng, held_out=split == "heldout")]
        if kind == "pair":
            combinations.append(_combination(rng, held_out=False))
            if combinations[0] == combinations[1]:
                continue
            if rng.random() < 0.5:
                combinations.reverse()
        backgrounds = _backgrounds_for(tuple(sorted({colour for colour, _ in combinations})))
        if backgrounds:
            break
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    size = place = relation = "none"
    if kind == "single":
        size = ("big", "small")[int(rng.integers(2))]
        if size == "big":
            spots, radius = [(rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58))], rng.uniform(0.30, 0.36)
        else:
            place = tuple(_PLACES)[int(rng.integers(len(_PLACES)))]
            spots, radius = [_spot(rng, place)], rng.uniform(0.15, 0.18)
    elif kind == "group":
        count = int(rng.integers(2, 4))
        radius = rng.uniform(0.16, 0.20) if count == 2 else rng.uniform(0.145, 0.165)
        spots = _scatter(rng, count, radius)
    else:
        relation = ("left", "above")[int(rng.integers(2))]
        radius = rng.uniform(0.17, 0.21)
        ends = rng.uniform(0.24, 0.28), rng.uniform(0.72, 0.76)
        middle = rng.uniform(0.36, 0.64)
        spots = [(end, middle + rng.uniform(-0.06, 0.06)) for end in ends]
        if relation == "above":
            spots = [(y, x) for x, y in spots]
    if len(combinations) < len(spots):
        combinations *= len(spots)
    wording = draw_wording(rng)
    objects = tuple(Object(s, c, float(x), float(y), float(radius)) for (c, s), (x, y) in zip(combinations, spots))
    return Scene(kind, objects, background, size, place, relation, wording)


def draw_wording(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """How a caption is put: which object comes first, which frame, whether size and place are said."""
    frame = int(rng.choice(len(_FRAMES), p=_FRAME_PROBABILITIES))
    return int(rng.integers(2)), frame, int(rng.random() < 0.8), int(rng.random() < 0.7)


_HELD_OUT_LIST = sorted(HELD_OUT)
_COMMON_LIST = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT]


def _combination(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    choices = _HELD_OUT_LIST if held_out else _COMMON_LIST
    return choices[int(rng.integers(len(choices)))]


def _spot(rng: np.random.Generator, place: str) -> Point:
    """Where a small single object stands."""
    near, far, along = rng.uniform(0.21, 0.27), rng.uniform(0.73, 0.79), rng.uniform(0.40, 0.60)
    if place == "centre":
        return rng.uniform(0.46, 0.54), rng.uniform(0.46, 0.54)
    return {"top": (along, near), "bottom": (along, far), "left": (near, along), "right": (far, along)}[place]


def _scatter(rng: np.random.Generator, count: int, radius: float) -> list[Point]:
    """Places for equal objects that do not touch, from left to right."""
    low, high = radius + 0.05, 0.95 - radius
    while True:
        points = rng.uniform(low, high, size=(count, 2))
        gaps = np.abs(points[:, None] - points[None]) / (2.4 * radius)
        distance = (gaps**2).sum(-1)[np.triu_indices(count, 1)]
        if distance.min() >= 1.0:
            return [(float(x), float(y)) for x, y in points[np.argsort(points[:, 0])]]


# -- drawing --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _canvas(background: str, side: int) -> Image.Image:
    top, bottom = (np.asarray(end, dtype=np.float64) for end in BACKGROUNDS[background])
    ramp = ((np.arange(side) + 0.5) / side)[:, None]
    rows = np.rint(top + (bottom - top) * ramp).astype(np.uint8)
    return Image.fromarray(np.repeat(rows[:, None], side, axis=1))


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    r, g, b = (round(c + (o - c) * share) for c, o in zip(colour, other))
    return r, g, b


@dataclass(frozen=True)
class _Brush:
    """Draws in an object's own units: the centre at (0, 0), the radius 1."""

    pen: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    name: str

    @property
    def colour(self) -> RGB:
        return COLOURS[self.name]

    def polygon(self, points: Sequence[Point], fill: RGB | None = None) -> None:
        placed = [(self.x + self.radius * px, self.y + self.radius * py) for px, py in points]
        self.pen.polygon(placed, fill=fill or self.colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB | None = None) -> None:
        self.pen.ellipse(self._box(x, y, rx, ry), fill=fill or self.colour)

    def _box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        cx, cy = self.x + self.radius * x, self.y + self.radius * y
        return cx - self.radius * rx, cy - self.radius * ry, cx + self.radius * rx, cy + self.radius * ry


def _disc(b: _Brush) -> None:
    b.ellipse(0, 0, 0.94, 0.94)


def _square(b: _Brush) -> None:
    b.pen.rounded_rectangle(b._box(0, 0, 0.84, 0.84), radius=0.14 * b.radius, fill=b.colour)


def _triangle(b: _Brush) -> None:
    b.polygon([(0, -0.98), (1.0, 0.78), (-1.0, 0.78)])


def _star(b: _Brush) -> None:
    corners = [(1.1 if i % 2 == 0 else 0.47, math.pi * (i / 5 - 0.5)) for i in range(10)]
    b.polygon([(r * math.cos(angle), r * math.sin(angle) + 0.08) for r, angle in corners])


@lru_cache(maxsize=1)
def _heart_outline() -> tuple[Point, ...]:
    ts = [2 * math.pi * i / 60 for i in range(60)]
    return tuple(
        (
            0.98 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5 - 0.08,
        )
        for t in ts
    )


def _heart(b: _Brush) -> None:
    b.polygon(_heart_outline())


@lru_cache(maxsize=1)
def _moon_outline() -> tuple[Point, ...]:
    # The part of a unit disc outside a second disc; they meet 0.9 radians off its right.
    open_at, inner = 0.9, 0.80
    tip = (math.cos(open_at), math.sin(open_at))
    shift = tip[0] - math.sqrt(inner**2 - tip[1] ** 2)
    start = math.atan2(tip[1], tip[0] - shift)
    outer = [open_at + (2 * math.pi - 2 * open_at) * i / 40 for i in range(41)]
    back = [2 * math.pi - start + (2 * start - 2 * math.pi) * i / 40 for i in range(41)]
    points = [(math.cos(a), math.sin(a)) for a in outer]
    points += [(shift + inner * math.cos(a), inner * math.sin(a)) for a in back]
    return tuple((x + 0.12, y) for x, y in points)


def _moon(b: _Brush) -> None:
    b.polygon(_moon_outline())


def _ring(b: _Brush) -> None:
    b.pen.ellipse(b._box(0, 0, 0.98, 0.98), outline=b.colour, width=max(1, round(0.44 * b.radius)))


def _cross(b: _Brush) -> None:
    a, r = 0.33, 0.96
    b.polygon([(-a, -r), (a, -r), (a, r), (-a, r)])
    b.polygon([(-r, -a), (r, -a), (r, a), (-r, a)])


def _flower(b: _Brush) -> None:
    for i in range(5):
        angle = math.pi * (0.4 * i - 0.5)
        b.ellipse(0.58 * math.cos(angle), 0.58 * math.sin(angle) + 0.03, 0.44, 0.44)
    b.ellipse(0, 0.03, 0.34, 0.34, (150, 84, 30) if b.name in ("yellow", "orange") else (255, 240, 170))


def _house(b: _Brush) -> None:
    b.polygon([(-0.74, -0.14), (0.74, -0.14), (0.74, 0.9), (-0.74, 0.9)])
    b.polygon([(0, -1.0), (1.02, -0.1), (-1.02, -0.1)], _mix(b.colour, (20, 16, 40), 0.42))
    b.polygon([(-0.22, 0.26), (0.22, 0.26), (0.22, 0.9), (-0.22, 0.9)], _mix(b.colour, (20, 16, 40), 0.6))


def _fish(b: _Brush) -> None:
    b.polygon([(0.34, 0), (1.08, -0.58), (1.08, 0.58)])
    b.ellipse(-0.22, 0, 0.86, 0.62)
    b.ellipse(-0.6, -0.12, 0.17, 0.17, (255, 255, 255))
    b.ellipse(-0.63, -0.12, 0.10, 0.10, (16, 16, 24))


def _tree(b: _Brush) -> None:
    b.polygon([(-0.17, 0.5), (0.17, 0.5), (0.17, 1.04), (-0.17, 1.04)], (122, 78, 44))
    b.polygon([(0, -0.5), (0.88, 0.62), (-0.88, 0.62)])
    b.polygon([(0, -1.06), (0.66, 0.0), (-0.66, 0.0)])


_PAINTERS = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "cross": _cross,
    "flower": _flower,
    "house": _house,
    "fish": _fish,
    "tree": _tree,
}


# -- batches --------------------------------------------------------------------------------------------------------


def pictures(indices: Iterable[int], split: str = "train", size: int = 32) -> np.ndarray:
    """Pictures as uint8 (N, size, size, 3)."""
    drawn = [scene(i, split).draw(size) for i in indices]
    return np.stack(drawn) if drawn else np.zeros((0, size, size, 3), np.uint8)


def captions(indices: Iterable[int], split: str = "train") -> list[str]:
    """One caption for each index."""
    return [scene(i, split).caption for i in indices]


def labels(indices: Iterable[int], split: str = "train") -> np.ndarray:
    """Class numbers as int64 (N, heads), in the order of `ATTRIBUTES`."""
    return encode(scene(i, split).attributes for i in indices)


def encode(attributes: Iterable[dict[str, str]]) -> np.ndarray:
    """Attribute dictionaries -> class numbers, int64 (N, heads); -1 where a head is not given."""
    rows = [[names.index(a[head]) if head in a else -1 for head, names in ATTRIBUTES.items()] for a in attributes]
    return np.asarray(rows, dtype=np.int64).reshape(-1, len(ATTRIBUTES))
