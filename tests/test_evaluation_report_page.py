"""The page of a report: whole, escaped, self-contained, the same each time; its galleries show what was planted."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pilotage.errors import UsageError
from pilotage.evaluation import Report, Result, reference
from pilotage.evaluation.collect import Collected
from pilotage.evaluation.galleries import Gallery, Tile, galleries, write_suspects
from pilotage.evaluation.measures.evidence import Evidence
from pilotage.evaluation.metrics.colour import Colour
from pilotage.evaluation.report_page import as_data, render, write_page
from pilotage.evaluation.report_plots import bar, bar_range, colour_histograms, front, part_of, strip
from pilotage.evaluation.svg import Scale

EVIL = '<script>alert("1")</script> & \'<b>$x^2$'


def pictures(n: int, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def result(name: str, value: float, **rest: Any) -> Result:
    return Result(name, value, **{"higher_is_better": True, "n_real": 50, "n_generated": 40} | rest)


def report(shift: float = 0.0, **rest: Any) -> Report:
    results = (
        result("frechet", 12 - shift, higher_is_better=False, null=3.25, null_kind="halves", protocol="fd_pixels"),
        result("coverage", 0.5 + shift / 10, interval=(0.4, 0.7), interval_kind="Wilson", null=0.97, null_kind="exact"),
        result("adherence", 0.75 - shift / 10, interval=(0.5, 0.875), real=0.9),
        result("adherence/colour", 0.625, interval=(0.5, 0.75), real=1.0),
        result("adherence/shape", 0.25, interval=(0.125, 0.375), real=1.0),
        result("saturation", 0.3, higher_is_better=None, interval=(0.2, 0.4), real=0.35, details={"wasserstein": 0.02}),
    )
    about = {"generated": {"name": "folder/of mine", "pictures": 40}, "real": {"name": "test", "pictures": 50}}
    content = {"skipped": {"clip-score": "no weights"}, "warnings": ("few pictures",), "sources": about}
    return Report(results, **content | {"environment": {"torch": "2.13.0", "seconds": 1.5}} | rest)


class Page(HTMLParser):
    """Text, tags and attributes of a page; every element that is opened must be closed in turn."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())

    @property
    def said(self) -> str:
        return " ".join(self.text)

    def of(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and (not kind or kind in a.get("class", "").split())]


def test_a_page_says_all_of_its_report() -> None:
    said = Page(render(report())).said
    for piece in (
        "Scores of of mine",
        "few pictures",
        "left out: no weights",
        "fd_pixels",
        "halves",
        "exact",
        "12",
        "3.25",
        "0.4 … 0.7",
        "0.625 (0.5 … 0.75)",
        "40 generated (folder/of mine)",
        "wasserstein 0.02",
        "torch",
        "2.13.0",
    ):
        assert piece in said, piece


def test_the_page_needs_nothing_from_elsewhere_and_is_the_same_each_time() -> None:
    gallery = Gallery("Worst", "how", ((Tile(pictures(1)[0], "a.png\n0.5"),),))
    spread = Colour(*np.random.default_rng(1).random((4, 30)))
    drawn = colour_histograms(real=spread, generated=spread)
    text = render({"a": report(), "b": report(1.0)}, {"a": [gallery]}, {"b": drawn})
    assert text == render({"a": report(), "b": report(1.0)}, {"a": [gallery]}, {"b": drawn})
    page = Page(text)
    assert not page.of("script") and not page.of("link") and not page.of("iframe")
    assert all(a["src"].startswith("data:image/") for a in page.of("img"))
    assert "url(" not in text and "http" not in text and "@import" not in text
    assert not [name for _, a in page.tags for name in a if name.startswith("on") or name == "href"]


def test_every_text_of_a_user_is_escaped() -> None:
    results = [replace(r, protocol=EVIL, null_kind=EVIL, interval_kind=EVIL, details={EVIL: EVIL}) for r in report()]
    results += [result(EVIL, 0.5, interval=(0.2, 0.8)), result(f"adherence/{EVIL[10:]}", 0.5)]
    about = {"generated": {"name": EVIL, "pictures": EVIL}}
    evil = Report(tuple(results), {EVIL: EVIL}, (EVIL,), about, {EVIL: EVIL})
    gallery = Gallery(EVIL, EVIL, ((Tile(pictures(1)[0], EVIL),),))
    for given in (render(evil, [gallery, Gallery(EVIL, missing=EVIL)]), render({EVIL: evil, "b": report()})):
        page = Page(given)
        assert not page.of("script") and not page.of("b")
        assert page.said.count('<script>alert("1")</script>') > 5


def test_a_sweep_is_compared_and_drawn() -> None:
    bad = [replace(r, value=13.0 if r.name == "frechet" else 0.45, interval=None) for r in report()]
    text = render({"low": report(0), "high": report(2), "bad": Report(tuple(bad))})
    page = Page(text)
    for title in ("Side by side", "adherence against coverage", "adherence against frechet"):
        assert title in page.said
    best = re.findall(r'<td class="best">([\d.]+)', text)
    # row by row; without an interval only the best distance, else what the intervals do not tell apart
    assert best == ["0.5", "0.75", "10", "0.7", "0.55"]
    plots = text[text.index("adherence against coverage") : text.index("<section>")]
    dots = re.findall(r'<circle class="([a-z ]+)"[^>]*><title>(\w+):', plots)
    assert dots == [("value", "low"), ("value", "high"), ("value beaten", "bad")] * 2


def test_what_is_no_comparison_is_said() -> None:
    few = replace(report(), results=tuple(replace(r, n_generated=8) for r in report()))
    assert "the numbers of pictures differ in frechet, coverage" in Page(render([report(), few])).said
    other = replace(report(), sources={"real": {"name": "others"}})
    assert "the real pictures differ (others, test)" in Page(render([report(), other])).said
    assert "no fair comparison" not in Page(render([report(), report(1)])).said


def test_names_of_reports() -> None:
    said = Page(render([report(), report(1)])).said
    assert "of mine (1)" in said and "of mine (2)" in said
    gallery = Gallery("Worst")
    with pytest.raises(UsageError, match="lwo"):
        render({"low": report(), "high": report()}, {"lwo": [gallery]})
    with pytest.raises(UsageError, match="whose"):
        render([report(), report()], [gallery])
    with pytest.raises(UsageError, match="score some"):
        render([])


def test_numbers_that_are_not_finite_are_told_and_not_drawn() -> None:
    odd = (
        result("precision", math.nan, interval=(math.nan, math.nan), null=math.inf),
        result("density", math.inf, interval=(0.0, math.inf), real=math.nan),
        result("adherence/colour", math.nan, interval=(0.1, math.nan)),
        result("coverage", 0.5, interval=(math.nan, 0.6)),
        result("adherence", 0.5, interval=(0.1, math.inf)),
    )
    text = render({"a": Report(odd), "b": Report(odd), "c": Report(())})
    page = Page(text)
    assert "nan" in page.said and "inf" in page.said and "adherence against coverage" in page.said
    drawn = [v for tag, a in page.tags if tag in ("line", "circle", "rect", "polyline", "path") for v in a.values()]
    assert not [v for v in drawn if "nan" in v or "inf" in v.replace("interval", "")]


def test_a_report_with_nan_survives_the_disk(tmp_path: Path) -> None:
    Report((result("precision", math.nan, interval=(math.nan, 1.0)),)).write(tmp_path)
    again = Report.read(tmp_path)
    assert again.results[0].interval is not None and math.isnan(again.results[0].interval[0])
    assert "nan … 1" in Page(render(again)).said


def test_the_page_is_written_whole_or_not(tmp_path: Path) -> None:
    written = write_page(report(), tmp_path / "new" / "folder")
    assert written == tmp_path / "new" / "folder" / "report.html"
    assert written.read_text(encoding="utf-8") == render(report())
    assert write_page(report(), tmp_path / "page.html").name == "page.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "page.html"]
    with pytest.raises(UsageError):
        write_page(report(), tmp_path / "page.html" / "below")


def test_marks_stand_where_the_numbers_are() -> None:
    drawn = str(strip(result("coverage", 0.5, interval=(0.4, 0.7), null=0.9, real=0.4)))
    assert 'cx="22.40%"' in drawn  # 4 + 92 (0.5 - 0.4) / (0.9 - 0.4)
    assert re.search(r'class="interval" x1="4.00%" y1="9" x2="59.20%"', drawn)
    assert re.search(r'class="null" x1="96.00%"', drawn) and re.search(r'class="real" x1="4.00%"', drawn)
    far = str(strip(result("frechet", 12.0, null=9.0)))  # no interval: from zero
    assert 'cx="96.00%"' in far and 'x1="73.00%"' in far
    assert strip(result("frechet", 0.0)) == ""


def test_bars_share_a_scale() -> None:
    group = [result("a/x", 0.25, interval=(0.125, 0.5)), result("a/y", 0.5)]
    assert bar_range(group) == (0, 1)
    assert 'width="24.62%"' in str(bar(group[0], 0, 1))
    assert bar_range([result("a/x", -2.0), result("a/y", 8.0)]) == (-2, 8)
    below = str(bar(result("a/x", -2.0), -2, 8))
    assert 'x="0.50%"' in below and 'width="19.70%"' in below
    assert bar_range([result("a/x", 0.001)]) == (0, 0.001)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 12.2), (0.912, 0.934), (1e-7, 3e-7), (0, 5e9), (99.99, 100)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks(6)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 * abs(high) <= t <= high * (1 + 1e-9) for t in ticks)
    step = ticks[1] - ticks[0]
    assert np.allclose(np.diff(ticks), step)
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), f) for f in (1, 2, 5))


@pytest.mark.parametrize("up", [(True, True), (True, False), (False, True)])
def test_the_front_is_that_of_loops(up: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(3)
    points = [tuple(p) for p in rng.integers(0, 6, (25, 2)).astype(float)]

    def beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
        better = [b > a if way else b < a for a, b, way in zip(p, q, up, strict=True)]
        worse = [b < a if way else b > a for a, b, way in zip(p, q, up, strict=True)]
        return any(better) and not any(worse)

    assert front(points, up) == [not any(beats(q, p) for q in points) for p in points]


def test_histograms_are_shares_in_common_bins() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = Colour(*rng.random((4, 30))), Colour(*(rng.random((4, 70)) + 0.5))
    for found in colour_histograms(real=theirs, generated=ours, bins=10):
        assert found.real is not None
        assert np.isclose(found.generated.sum(), 1) and np.isclose(found.real.sum(), 1)
        low, high = getattr(ours, found.name).min(), getattr(theirs, found.name).max()
        assert found.edges[0] == low and found.edges[-1] == high and len(found.edges) == 11
        inside = (getattr(ours, found.name) < found.edges[3]).mean()
        assert np.isclose(found.generated[:3].sum(), inside)
    flat = Colour(*np.full((4, 5), 0.25))
    alone = colour_histograms(real=None, generated=flat)
    assert alone[0].real is None and alone[0].generated.sum() == 1
    assert "outline" not in str(Page(render(report(), (), alone)).of("path"))


def test_part_of() -> None:
    assert part_of("adherence/colour") == ("adherence", "colour")
    assert part_of("adherence") == ("adherence", "")
    assert part_of("clip-score:weights=/models/clip") == ("clip-score:weights=/models/clip", "")


def decoded(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_pictures_as_data() -> None:
    small = pictures(1)[0]
    assert np.array_equal(decoded(as_data(small)), small)
    assert np.array_equal(decoded(as_data(small[:, ::-1])), small[:, ::-1])
    large = np.full((300, 600, 3), 77, np.uint8)
    assert decoded(as_data(large)).shape == (128, 256, 3)
    assert abs(decoded(as_data(large)).astype(int) - 77).max() <= 1


def evidence_of(k: int = 3, **sets: Any) -> Evidence:
    known = {name: s if isinstance(s, Collected) else reference(s, features="pixels") for name, s in sets.items()}
    if "real" not in known:
        known["real"] = None
    return Evidence(**known, k=k, device=torch.device("cpu"), space="pixels")


def by_title(found: tuple[Gallery, ...]) -> dict[str, Gallery]:
    return {gallery.title: gallery for gallery in found}


def test_planted_copies_come_first() -> None:
    train, test, real = pictures(60, 1), pictures(60, 2), pictures(60, 3)
    generated = pictures(40, 4)
    generated[7] = train[11]
    generated[30] = (train[20].astype(int) + 1).clip(0, 255).astype(np.uint8)
    for held_out in (dict[str, Any](test=test), dict[str, Any]()):
        found = by_title(galleries(evidence_of(generated=generated, real=real, train=train, **held_out), 5))
        copies = found["Suspected copies"]
        assert [row[0].label.split("\n")[0] for row in copies.rows][:2] == ["7", "30"]
        assert [row[1].label for row in copies.rows][:2] == ["11", "20"]
        assert np.array_equal(copies.rows[0][0].picture, train[11])
        assert np.array_equal(copies.rows[0][1].picture, train[11])
        assert np.array_equal(copies.rows[1][1].picture, train[20])
        ratios = [float(line[-1]) for line in copies.csv_rows[1:]]
        assert ratios[0] == 0 and ratios[1] < 0.1 and ratios[2] > 0.5 and ratios == sorted(ratios)
        assert len(copies.rows) == 5


def test_ratios_without_held_out_pictures_are_those_of_loops() -> None:
    train, generated = pictures(20, 1), pictures(15, 4)
    evidence = evidence_of(generated=generated, train=train, k=2)
    copies = by_title(galleries(evidence, 15))["Suspected copies"]
    t, g = evidence.rows("train").double(), evidence.rows("generated").double()
    expected = {}
    for i, row in enumerate(g):
        distances = (t - row).norm(dim=1)
        j = int(distances.argmin())
        others = torch.cat([t[:j], t[j + 1 :]])
        expected[str(i)] = (str(j), float(distances[j]), float(distances[j] / (others - t[j]).norm(dim=1).min()))
    assert len(copies.csv_rows) == 16
    for one, other, distance, ratio in copies.csv_rows[1:]:
        assert other == expected[one][0]
        assert [float(distance), float(ratio)] == pytest.approx(expected[one][1:], rel=1e-6)


def test_without_a_train_set_neighbours_are_no_suspects() -> None:
    found = galleries(evidence_of(generated=pictures(20, 1), real=pictures(20, 2)), 3)
    assert "Suspected copies" not in by_title(found)
    assert "no evidence of copying" in by_title(found)["Nearest real pictures"].explanation


def test_realism_uncovered_and_duplicates() -> None:
    centre = np.full((40, 8, 8, 3), 120) + np.random.default_rng(0).integers(-20, 20, (40, 8, 8, 3))
    real, generated = centre.astype(np.uint8), (centre[::-1] + 2).astype(np.uint8)
    generated[13] = 255  # far from all
    generated[[4, 5]] = generated[2]
    real[9] = 0  # far from all
    found = by_title(galleries(evidence_of(generated=generated, real=real), 4))
    assert found["Lowest realism"].rows[0][0].label.startswith("13\n")
    assert not any(row[0].label.startswith("13\n") for row in found["Highest realism"].rows)
    low, high = ([float(r[1]) for r in found[f"{way} realism"].csv_rows[1:]] for way in ("Lowest", "Highest"))
    assert low == sorted(low) and high == sorted(high, reverse=True) and max(low) <= min(high)
    missed = found["Real pictures that nothing covers"]
    assert missed.rows[0][0].label.startswith("9\n")
    assert np.array_equal(missed.rows[0][0].picture, real[9])
    assert all(float(line[-1]) >= 1 for line in missed.csv_rows[1:])
    twice = found["Exact duplicates"]
    assert twice.rows[0][0].label == "2\n3 times" and twice.rows[0][1].label == "4"
    assert twice.csv_rows == (("group", "picture"), ("0", "2"), ("0", "4"), ("0", "5"))
    assert "2 generated pictures" in twice.explanation


def test_a_gallery_that_cannot_be_made_says_why() -> None:
    stream = reference(iter(pictures(20, 1)), features="pixels")
    for gallery in galleries(evidence_of(generated=stream, real=pictures(20, 2))):
        assert not gallery.rows and "cannot be read again" in gallery.missing
        assert gallery.missing in Page(render(report(), [gallery])).said
    alone = by_title(galleries(evidence_of(generated=pictures(20, 1))))
    assert "give train=" in alone["Suspected copies"].missing
    assert "give real=" in alone["Lowest and highest realism"].missing
    assert alone["Exact duplicates"].explanation.startswith("None") and not alone["Exact duplicates"].missing
    with pytest.raises(UsageError, match="count=0"):
        galleries(evidence_of(generated=pictures(20, 1)), 0)


def test_suspects_as_csv(tmp_path: Path) -> None:
    gallery = Gallery("Suspected copies", csv_rows=(("generated", "ratio"), ('a,"b".png', "0.5")))
    written = write_suspects(gallery, tmp_path / "new" / "suspects.csv")
    assert list(csv.reader(written.open(newline=""))) == [["generated", "ratio"], ['a,"b".png', "0.5"]]
    with pytest.raises(UsageError, match="no train"):
        write_suspects(Gallery("Suspected copies", missing="no train"), tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def printed(shown: Report, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown.table())
    return console.export_text()


def test_the_table_has_protocols_and_kinds_at_100_columns() -> None:
    long = replace(report().results[0], name="kernel-distance/[background]", protocol="fd_embedded, N-1 covariances")
    text = printed(replace(report(), results=(long, replace(long, name="next"), *report().results[1:])), 100)
    assert max(map(len, text.splitlines())) <= 100
    for piece in (
        "kernel-distance/[background] ",
        "12 ↓",
        "0.5 ↑",
        "0.3 ≈",
        "0.4 … 0.7",
        "″",
        "null of kernel-distance/[background], next: halves",
        "null of coverage: exact",
        "clip-score was left out: no weights",
        "↓ lower is better",
    ):
        assert piece in text, piece
    rows = [line for line in text.splitlines() if line.startswith(" adherence/colour")]
    assert rows and "0.625 ↑" in rows[0] and rows[0].rstrip().endswith("1")
    assert printed(Report(()), 100).strip()


def test_the_template_is_in_the_package() -> None:
    found = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "*.j2" in found["tool"]["setuptools"]["package-data"]["pilotage.evaluation"]
