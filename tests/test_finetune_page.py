"""The page of a training run and that of several: from whatever a log holds, whole, escaped, the same each time."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pilotage.errors import UsageError
from pilotage.evaluation.svg import LogScale
from pilotage.training.curves import MOST, Curve, chart, noisy, reaches, smoothed, thinned
from pilotage.training.history import read_history
from pilotage.training.page import ordered, write_comparison, write_page
from pilotage.training.run_folder import add_to_log, write_sheet

EVIL = "<script>alert('1')</script> & \"<b>"


class Page(HTMLParser):
    """Every element that is opened is closed in turn; text and tags."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
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
        self.text += " ".join(data.split()) + "\n" if data.strip() and self.open[-1] != "style" else ""

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def entry(update: int, pictures: int, rate: float = 0.1) -> dict[str, Any]:
    """A line as the trainer writes it; an evaluation every fifth."""
    gain = 1 - math.exp(-rate * update)
    found: dict[str, Any] = {"update": update, "seconds": 90.0 * update, "pictures": pictures}
    if update:
        found |= {"reward": gain + 0.3 * (-1) ** update, "loss": -gain, "kl": 0.01 * update, "lora_norm": 0.1 * update}
    if update % 5 == 0:
        found |= {"held_out": {"reward": gain, "diversity": 1 - gain / 2}, "judge": {EVIL: 0.5 + gain / 4}}
    return found


def run(folder: Path, per_update: int = 8, rate: float = 0.1, updates: int = 20) -> Path:
    """A run folder."""
    folder.mkdir(parents=True)
    for update in range(updates + 1):
        add_to_log(folder, entry(update, per_update * update, rate))
    settings = f"  method: {json.dumps(EVIL)}\n  reward: colour\n  limits:\n    diversity: 0.6\n"
    (folder / "run.yaml").write_text(f"spec:\n{settings}")
    for update in range(0, updates + 1, 5):
        write_sheet(folder, update, torch.full((2, 3, 3, 8, 8), 10 * update, dtype=torch.uint8))
    return folder


# -- curves -----------------------------------------------------------------------------------------------------------


def test_the_trailing_mean_knows_nothing_of_what_comes_later() -> None:
    points = tuple((float(i), float(i % 3)) for i in range(9))
    found = smoothed(points, 3)
    assert found[:2] == ((0.0, 0.0), (1.0, 0.5)) and all(y == 1.0 for _, y in found[2:])
    assert smoothed(points[:5], 3) == found[:5]


def test_thinning_keeps_the_mean_and_leaves_short_curves_alone() -> None:
    points = tuple((float(i), math.sin(i)) for i in range(10 * MOST))
    found = thinned(points)
    assert len(found) == MOST and thinned(points[:MOST]) == points[:MOST]
    assert sum(y for _, y in found) / MOST == pytest.approx(sum(y for _, y in points) / len(points))


def test_noise_is_told_from_a_way_up() -> None:
    assert not noisy(tuple((float(i), math.tanh(i / 5)) for i in range(30)))
    assert noisy(tuple((float(i), i / 30 + 0.5 * (-1) ** i) for i in range(30)))
    assert not noisy(((0.0, 0.0), (1.0, 1.0), (2.0, 0.0), (3.0, 1.0)))


def test_the_first_place_that_reaches_a_level() -> None:
    points = ((1.0, 0.0), (2.0, 0.4), (3.0, 0.3), (4.0, 0.9))
    assert reaches(points, 0.35) == 2.0 and reaches(points, 0.9) == 4.0 and reaches(points, 1.0) is None


@pytest.mark.parametrize(("low", "high"), [(1, 10), (3, 47), (150, 5e4), (0.02, 0.4), (1, 1e9), (9, 91)])
def test_a_log_scale_has_equal_ratios_and_a_few_round_numbers(low: float, high: float) -> None:
    scale = LogScale(low, high, 50, 350)
    assert scale(low) == pytest.approx(50) and scale(high) == pytest.approx(350)
    assert scale(math.sqrt(low * high)) == pytest.approx(200)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6 and ticks == sorted(ticks) and all(low * 0.999 < t < high * 1.001 for t in ticks)
    assert all(f"{tick:e}"[0] in "1235" and float(f"{tick:.0e}") == pytest.approx(tick) for tick in ticks)


def test_points_are_where_they_belong() -> None:
    drawn = str(chart([Curve("a", ((10.0, 0.0), (100.0, 1.0), (1000.0, 2.0)))], "pictures", "reward", log_x=True))
    places = [tuple(map(float, p.split(","))) for p in re.findall(r'<polyline[^>]*points="([^"]*)"', drawn)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) and y0 > y1 > y2 and y0 - y1 == pytest.approx(y1 - y2, abs=0.02)
    assert not chart([Curve("a", ())], "x", "y") and not chart([Curve("a", ((0.0, 1.0),))], "x", "y", log_x=True)
    assert "polyline" in chart([Curve("a", ((3.0, 1.0),))], "x", "y", log_x=True)  # one point is a range too


def test_long_numbers_have_room_beside_the_name_of_the_axis() -> None:
    def first_x(values: tuple[float, float]) -> float:
        drawn = str(chart([Curve("a", ((0.0, values[0]), (1.0, values[1])))], "x", "y"))
        return float(re.findall(r'points="([\d.]+)', drawn)[0])

    assert first_x((0.010001, 0.010005)) > first_x((0, 1)) + 10


# -- one run ----------------------------------------------------------------------------------------------------------


def test_the_page_of_a_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "a <b> run")
    line = entry(20, 160) | {"notices": [f"update 20: {EVIL}", "the pictures grew alike"]}
    add_to_log(folder, line)
    path = write_page(folder)
    assert path == folder / "index.html"
    text = path.read_text()
    page = Page(text)
    assert not page.count("script") and EVIL not in text
    assert "a <b> run" in page.text and "20 updates, 160 pictures sampled" in page.text and "30 min" in page.text
    assert page.text.index(f"update 20: {EVIL}") < page.text.index("Before and after")  # notices come first
    assert "update 20: the pictures grew alike" in page.text
    titles = re.findall(r"<figure class=\"panel\"><h3>([^<]*)</h3><svg", text)
    assert titles[:2] == ["reward", "reward, held out"] and {"KL", "LoRA norm", "loss", "diversity, held out"} <= set(
        titles
    )
    assert page.count("svg") == len(titles) == 7
    assert "60% of the first" in page.text
    assert page.text.index("Settings") > page.text.index("KL") and "method:" in page.text
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources) and len(sources) == 5
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert write_page(folder).read_text() == text


def test_before_and_after_are_the_first_and_the_last_sheet(tmp_path: Path) -> None:
    text = write_page(run(tmp_path / "run")).read_text()
    figures = re.findall(
        r"<h3>(before training|after \d+ updates)</h3><img src=\"data:image/jpeg;base64,([^\"]*)", text
    )
    assert [when for when, _ in figures] == [
        "before training",
        "after 20 updates",
        *(f"after {u} updates" for u in (5, 10, 15)),
    ]
    shades = [Image.open(io.BytesIO(base64.b64decode(data))).getpixel((60, 60)) for _, data in figures]
    for shade, wanted in zip(shades, (0, 200, 50, 100, 150), strict=True):
        assert isinstance(shade, tuple) and all(abs(channel - wanted) <= 3 for channel in shade)


def test_what_is_missing_or_broken_is_left_out(tmp_path: Path) -> None:
    lines = [
        '{"update": 0}', '{"update": 1, "reward": null, "held_out": 3, "judge": []}', "[1]", "7", "not json",
        '{"reward": 5}', '{"update": 2, "reward": NaN, "loss": Infinity, "kl": true, "deep": {"er": {"x": 1}}}',
        '{"update": "3"}', '{"update": 3, "reward": 1.5, "own number": 2, "notices": "said so"}', '{"update": 4, "rew',
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    (tmp_path / "run.yaml").write_text("{ no: [yaml")
    (tmp_path / "sheets").mkdir()
    (tmp_path / "sheets" / "000000.png").write_bytes(b"cut")
    (tmp_path / "sheets" / "about.png").write_bytes(b"")
    history = read_history(tmp_path)
    assert [line["update"] for line in history.lines] == [0, 1, 2, 3]
    assert history.series("reward") == ((3.0, 1.5),) and history.names == ("held_out", "reward", "own number")
    page = Page(write_page(tmp_path).read_text())
    assert "update 3: said so" in page.text and "3 updates" in page.text and "own number" in page.text
    assert not page.count("img")


def test_an_update_that_was_computed_again_counts_once(tmp_path: Path) -> None:
    for update, reward in ((1, 1.0), (2, 2.0), (2, 5.0), (3, 3.0)):
        add_to_log(tmp_path, {"update": update, "pictures": 4 * update, "reward": reward})
    assert read_history(tmp_path).series("reward", "pictures") == ((4.0, 1.0), (8.0, 5.0), (12.0, 3.0))


def test_many_notices_do_not_bury_the_page(tmp_path: Path) -> None:
    for update in range(50):
        add_to_log(tmp_path, {"update": update, "notices": [f"update {update}: look"]})
    page = Page(write_page(tmp_path).read_text())
    assert page.text.count("look") == 20 and "and 30 before these" in page.text and "update 49: look" in page.text


def test_no_log_no_page(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="give the folder of a training run"):
            write_page(folder)
    assert not list(tmp_path.iterdir())


def test_the_known_numbers_come_first() -> None:
    names = ["zeal", "loss", "held_out/saturation", "kl", "judge/a", "held_out/reward", "clamped", "alpha", "reward"]
    wanted = ["reward", "held_out/reward", "judge/a", "kl", "clamped", "held_out/saturation", "loss", "alpha", "zeal"]
    assert ordered(names) == wanted


# -- several runs -----------------------------------------------------------------------------------------------------


def test_the_comparison_counts_pictures_until_each_best(tmp_path: Path) -> None:
    """Fast reaches slow's best, 1 - exp(-.02 * 20) = .330, at its fifth update (.393), 40 pictures; slow took 6400."""
    fast, slow = run(tmp_path / "fast"), run(tmp_path / "slow", per_update=320, rate=0.02)
    path = write_comparison({"fast": fast, EVIL: slow}, tmp_path / "both.html")
    text = path.read_text()
    page = Page(text)
    assert EVIL not in text and not page.count("script") and "2 training runs" in page.text
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert cells == [
        "0.8647", "160<small></small>", "40<small>160x fewer</small>",
        "0.3297", "not reached<small></small>", "6400<small></small>",
    ]  # fmt: skip
    assert "the model before training" in page.text and "until the held-out reward" in page.text
    titles = re.findall(r"<h3>([^<]*)</h3>", text)
    assert titles[:2] == ["reward", "reward, held out"] and "loss" not in titles
    assert page.text.count("pictures sampled") >= len(titles)
    assert write_comparison({"fast": fast, EVIL: slow}, tmp_path / "both.html").read_text() == text


def test_without_evaluations_the_training_reward_races(tmp_path: Path) -> None:
    for name, gain in (("a", 1.0), ("b", 2.0)):
        for update in range(1, 21):
            (tmp_path / name).mkdir(exist_ok=True)
            add_to_log(tmp_path / name, {"update": update, "pictures": 10 * update, "reward": gain * update})
    text = write_comparison({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "out").read_text()
    # a's best mean of five is 18; b's passes it at update 11 (2 * 9 = 18)
    assert re.findall(r"<td>(.*?)</td>", text)[3:] == ["36", "110<small>1.82x fewer</small>", "200<small></small>"]
    assert "mean training reward of 5 updates" in text


def test_runs_that_share_nothing_and_no_runs(tmp_path: Path) -> None:
    for name, key in (("a", "reward"), ("b", "loss")):
        (tmp_path / name).mkdir()
        add_to_log(tmp_path / name, {"update": 1, "pictures": 8, key: 1.0})
    page = Page(write_comparison({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path).read_text())
    assert "a: 1 update, 8 pictures sampled" in page.text and not page.count("svg")
    with pytest.raises(UsageError, match="no run to compare"):
        write_comparison({}, tmp_path)
    with pytest.raises(UsageError, match="give the folder"):
        write_comparison({"a": tmp_path / "a", "c": tmp_path / "c"}, tmp_path)
