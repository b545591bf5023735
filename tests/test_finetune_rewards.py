"""The rewards that need no download: values by hand, gradients, grammar, mixing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pilotage import registry
from pilotage.errors import UsageError
from pilotage.evaluation.judges import open_judge
from pilotage.finetune.rewards import (
    COMBINATIONS,
    REWARDS,
    Moments,
    Reward,
    ensemble,
    harmonic,
    minimum,
    near,
    normalised,
    open_rewards,
    up_to,
    weighted_sum,
)
from pilotage.finetune.rewards.jpeg import CHROMA_TABLE, LUMA_TABLE, cosines, soft_round, table_of
from pilotage.finetune.rewards.table import rows, with_settings
from pilotage.zoo import world

FORMULAS = ["colour", "colour:over=mean", "saturation", "brightness", "symmetry", "jpeg", "jpeg:sign=1,quality=40"]
EMBEDDED = [*FORMULAS, "adherence"]
CAPTION = "a red star on white"


def random(rows: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth random pictures well inside [0, 1]."""
    noise = torch.rand(rows, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic", align_corners=False)
    return (0.15 + 0.7 * smooth).clamp(0.05, 0.95)


def plain(*rgb: float, side: int = 16) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32)[None, :, None, None].expand(1, 3, side, side).clone()


def score(line: str, pictures: Tensor, prompt: str = CAPTION) -> list[float]:
    return open_rewards(line)(pictures, [prompt] * len(pictures)).tolist()


def constant(name: str, *values: float) -> Reward:
    return Reward(name, lambda pictures, prompts: torch.tensor(values)[: len(pictures)] + 0 * pictures.sum((1, 2, 3)))


# -- values -----------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    teal = plain(0.0, 0.5, 0.5)
    assert score("saturation", teal) == pytest.approx([0.5 / (0.5 + 1 / 255)])
    assert score("brightness", teal) == pytest.approx([0.587 * 0.5 + 0.114 * 0.5])
    assert score("symmetry", teal) == [0]
    assert score("colour:target='#00ff00'", teal) == pytest.approx([-math.sqrt((0 + 0.25 + 0.25) / 3)])
    halves = torch.cat([plain(1, 0, 0), plain(0, 1, 0)], 3)  # red | green
    assert score("colour:target='#808000',over=mean", halves) == pytest.approx(
        [-math.sqrt(2 / 3) * (128 / 255 - 0.5)], rel=1e-4
    )
    assert score("colour:target='#ff0000'", halves) == pytest.approx([-math.sqrt(2 / 3) / 2])
    assert score("symmetry", halves) == pytest.approx([-2 / 3])
    assert score("symmetry:axis=top-bottom", halves) == [0]


def test_what_is_cut_off_when_saved_is_worth_nothing() -> None:
    for line in EMBEDDED:
        assert score(line, plain(1.4, -0.3, 0.5)) == score(line, plain(1.0, 0.0, 0.5)), line


def test_similarity_of_pixels(tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.new("RGB", (8, 12), (51, 51, 51)).save(file)
    assert score(f"similarity:reference={file}", plain(0.2, 0.5, 0.2)) == pytest.approx([1 - 0.1])
    own = random()
    for features in ("pixels", "embedded"):
        made = open_rewards(
            registry.make("rewards", REWARDS, "similarity", "reward", reference=own[1], features=features)
        )
        found = made(own, [""] * 3).tolist()
        assert found[1] == pytest.approx(1, abs=1e-5) and max(found[0], found[2]) < 0.99, features


# -- gradients, rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", FORMULAS)
def test_gradient_against_finite_differences(line: str) -> None:
    pictures = random(2, 16).double().requires_grad_()
    reward = open_rewards(line)
    assert torch.autograd.gradcheck(lambda x: reward.scores(x, [""] * 2), (pictures,), eps=1e-6, atol=1e-5)


def test_gradient_of_adherence() -> None:
    """Along a direction, central differences in float32: the steps are as large as the third derivative allows."""
    pictures, reward = random(2), open_rewards("adherence")
    direction = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    at = pictures.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward(at, [CAPTION] * 2).sum(), at)
    found, step = (slope * direction).sum((1, 2, 3)), 2e-4
    ahead, behind = (reward(pictures + s * step * direction, [CAPTION] * 2) for s in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("line", EMBEDDED)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_pictures_have_finite_gradients(line: str, value: float) -> None:
    pictures = plain(value, value, value, side=32).requires_grad_()
    scores = open_rewards(line)(pictures, [CAPTION])
    scores.sum().backward()
    assert torch.isfinite(scores).all() and pictures.grad is not None and torch.isfinite(pictures.grad).all()


@pytest.mark.parametrize("line", [*EMBEDDED, "jpeg-kilobytes", "0.5 * colour + (minimum of saturation + brightness)"])
def test_no_row_sees_its_neighbours(line: str) -> None:
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reward, pictures = open_rewards(line), random(4) + noise * torch.tensor([0.0, 0.02, 0.05, 0.1])[:, None, None, None]
    captions = [CAPTION, "two blue discs", CAPTION, "a small green fish"]
    whole = reward(pictures, captions)
    alone = torch.cat([reward(p[None], [c]) for p, c in zip(pictures, captions)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)
    assert whole.dtype == torch.float32 and len(set(whole.tolist())) == 4


# -- adherence --------------------------------------------------------------------------------------------------------


def test_adherence_knows_the_caption() -> None:
    scenes = [world.scene(i, "test") for i in range(100)]
    pictures = torch.from_numpy(np.stack([s.draw() for s in scenes])).permute(0, 3, 1, 2) / 255
    captions = [s.caption for s in scenes]
    reward = open_rewards("adherence")
    right, wrong = reward(pictures, captions), reward(pictures, captions[1:] + captions[:1])
    assert right.median() > -0.5 and wrong.median() < -20
    assert (right > wrong).float().mean() >= 0.99


def test_adherence_with_a_floor_is_log_of_p_and_least() -> None:
    from pilotage.zoo import world

    caption = "a red star on navy"
    numbers = [world.captions(range(2000), "train").index(c) for c in world.captions(range(2), "train")]
    pictures = torch.from_numpy(world.pictures(numbers, "train", 32)).permute(0, 3, 1, 2).float() / 255
    plain, floored = (open_rewards(line)(pictures, [caption] * 2) for line in ("adherence", "adherence:least=0.02"))
    stated = len(world.parse(caption))
    assert (floored > plain).all() and (floored >= stated * math.log(0.02) - 1e-4).all() and (plain < -5).any()
    with pytest.raises(UsageError, match="is no probability"):
        open_rewards("adherence:least=2")


def test_adherence_is_not_the_judge() -> None:
    """The judge of evaluation is never the reward that is trained on."""
    judge = open_judge("embedded")
    assert judge.identity[:16] not in open_rewards("adherence").model


def test_adherence_wants_the_worlds_captions() -> None:
    with pytest.raises(UsageError, match="unknown word 'zebra'"):
        score("adherence", random(1), "a zebra")


# -- JPEG -------------------------------------------------------------------------------------------------------------


def mixed(rng: np.random.Generator, side: int) -> np.ndarray:
    """A picture of random complexity: shapes, noise, blur."""
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 30))):
        low, high = np.sort(rng.integers(0, side, (2, 2)), axis=0)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape([*low.tolist(), *(high + 1).tolist()], fill=tuple(rng.integers(0, 256, 3).tolist()))
    noisy = np.asarray(image) + rng.normal(size=(side, side, 3)) * rng.choice([0, 0, 1, 4, 16, 64])
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    small = side // int(rng.choice([1, 1, 2, 4]))
    blurred = image.resize((small, small), Image.Resampling.BILINEAR).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(blurred)


@pytest.mark.parametrize(("side", "quality"), [(32, 95), (96, 95), (96, 50)])
def test_the_stand_in_orders_pictures_as_real_jpeg_does(side: int, quality: int) -> None:
    """Rank correlation .988 to .997 where .9 is asked."""
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(np.stack([mixed(rng, side) for _ in range(200)])).permute(0, 3, 1, 2) / 255
    soft = score(f"jpeg:sign=1,quality={quality}", pictures)
    real = score(f"jpeg-kilobytes:sign=1,quality={quality}", pictures)
    ranks = np.argsort(np.argsort([soft, real], axis=1), axis=1)
    assert np.corrcoef(ranks)[0, 1] > 0.98


def test_directions_of_jpeg() -> None:
    grey, noise = plain(0.5, 0.5, 0.5), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("jpeg", "jpeg-kilobytes"):
        assert score(f"{name}:sign=-1", grey) > score(f"{name}:sign=-1", noise)
        assert score(f"{name}:sign=1", noise) == [-v for v in score(name, noise)]


def test_a_step_along_the_gradient_makes_smaller_files() -> None:
    pictures = random(4).add(0.05 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    before = score("jpeg-kilobytes", pictures)
    for _ in range(30):
        pictures = pictures.detach().requires_grad_()
        (slope,) = torch.autograd.grad(open_rewards("jpeg")(pictures, [""] * 4).sum(), pictures)
        pictures = pictures + 0.004 * slope.sign()
    after = score("jpeg-kilobytes", pictures)
    assert all(a > 0.95 * b and a > b for a, b in zip(after, before))


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
def test_tables_are_those_of_pillow(quality: int, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", quality=quality)
    with Image.open(tmp_path / "x.jpg") as file:
        found = file.quantization  # type: ignore[attr-defined]
    for number, base in enumerate((LUMA_TABLE, CHROMA_TABLE)):
        assert [v for row in table_of(base, quality) for v in row] == list(found[number])


def test_parts_of_the_stand_in() -> None:
    basis = cosines()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(basis[0], torch.full((8,), 1 / math.sqrt(8), dtype=torch.float64))
    whole = torch.arange(-3.0, 4)
    torch.testing.assert_close(soft_round(whole), whole, atol=1e-6, rtol=0)
    assert (soft_round(whole + 0.2) - whole).abs().max() < 0.06


# -- mixing -----------------------------------------------------------------------------------------------------------


def test_mixing_by_hand() -> None:
    pictures, prompts = random(2), ["", ""]
    a, b = constant("a", 1.0, 4.0), constant("b", 3.0, 4.0)

    def of(reward: Reward) -> list[float]:
        return reward(pictures, prompts).tolist()

    assert of(weighted_sum([(0.5, a), (-2, b)])) == [-5.5, -6]
    assert of(minimum([a, b])) == [1, 4]
    assert of(ensemble([a, b])) == [1, 4] and of(ensemble([a, b], c=0.5)) == [1.5, 4]
    assert of(harmonic([a, b], weight=0.25)) == pytest.approx([1 / (0.25 / 1 + 0.75 / 3), 4])
    assert of(harmonic([a, b], weight=0)) == pytest.approx([3, 4])
    assert of(near(a, 3)) == [-2, -1] and of(up_to(a, 3)) == [-2, 0]
    assert of(normalised(a, 2, 0.5)) == [-2, 4]


def test_gradients_where_a_mix_has_a_corner() -> None:
    """All rewards alike, a target met exactly, one below 0."""
    pictures = random(2).requires_grad_()
    alike = open_rewards("saturation")
    at = float(alike(pictures, ["", ""])[0].detach())
    mixes = [ensemble([alike, alike]), minimum([alike, alike]), near(alike, at), up_to(alike, at)]
    for mix in [*mixes, harmonic([alike, open_rewards("colour")])]:
        (slope,) = torch.autograd.grad(mix(pictures, ["", ""]).sum(), pictures)
        assert torch.isfinite(slope).all(), mix.name


def test_an_ensemble_of_one_scale() -> None:
    """z-scores on pictures of the base model have mean 0 and deviation 1 there."""
    reward, scores = open_rewards("jpeg"), []
    moments = Moments()
    for seed in range(4):
        found = reward(random(5, seed=seed), [""] * 5)
        moments = moments.with_scores(found)
        scores.append(found.double())
    together = torch.cat(scores)
    assert moments.count == 20 and moments.with_scores(torch.zeros(0)) is moments
    assert moments.mean == pytest.approx(float(together.mean()))
    assert moments.deviation == pytest.approx(float(together.std()))
    scaled = normalised(reward, moments.mean, moments.deviation)
    found = torch.cat([scaled(random(5, seed=seed), [""] * 5) for seed in range(4)])
    assert float(found.mean()) == pytest.approx(0, abs=1e-4) and float(found.std()) == pytest.approx(1, abs=1e-4)


def test_what_a_mix_says_of_itself() -> None:
    mix = open_rewards("0.7 * adherence + 0.3 * jpeg:sign=-1")
    assert mix.name == "0.7 * adherence + 0.3 * jpeg:sign=-1"
    assert mix.needs_prompt and mix.differentiable and mix.licence == "Apache-2.0"
    assert [part.name for part in mix.parts] == ["adherence", "jpeg:sign=-1"] and mix.model == mix.parts[0].model
    assert open_rewards("saturation + jpeg").model == "none"
    assert not open_rewards("adherence + jpeg-kilobytes").differentiable


# -- the grammar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("saturation", "saturation"),
        ("colour:target=red,over=mean", "colour:target=red"),
        (" -0.5*saturation +  1e-1 * brightness ", "-0.5 * saturation + 0.1 * brightness"),
        ("up-to:value=.5 of saturation", "up-to:value=0.5 of saturation"),
        ("near:value=1 of saturation + brightness", "near:value=1 of saturation + brightness"),
        (
            "minimum of 0.5 * saturation + (near:value=.4 of brightness)",
            "minimum of (0.5 * saturation) + (near:value=0.4 of brightness)",
        ),
        (
            "saturation + 2 * (harmonic of saturation + brightness)",
            "saturation + 2 * (harmonic:weight=0.3 of saturation + brightness)",
        ),
        (["saturation", "2 * brightness"], "saturation + (2 * brightness)"),
        ({"saturation": 0.7, "up-to:value=1 of brightness": 2}, "0.7 * saturation + 2 * (up-to:value=1 of brightness)"),
    ],
)
def test_lines(line: object, name: str) -> None:
    pictures, made = random(2), open_rewards(line)
    assert made.name == name
    again = open_rewards(name) if "over" not in str(line) else made  # a name is a line
    torch.testing.assert_close(made(pictures, ["", ""]), again(pictures, ["", ""]))


def test_lines_mean_what_they_say() -> None:
    pictures = random(2)
    saturation, brightness = (np.array(score(line, pictures)) for line in ("saturation", "brightness"))
    found = score("0.5 * (minimum of saturation + brightness) + (near:value=1 of saturation)", pictures)
    np.testing.assert_allclose(found, 0.5 * np.minimum(saturation, brightness) - abs(saturation - 1), rtol=1e-5)
    assert score("near:value=1 of saturation + brightness", pictures) == pytest.approx(
        -abs(saturation + brightness - 1)
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no reward is named"),
        ("saturatoin", "did you mean saturation"),
        ("colour:taget=red", "did you mean target"),
        ("colour:target=rad", "unknown colour 'rad'"),
        ("colour:over=shape", "over 'shape'"),
        ("minium of saturation", "did you mean minimum"),
        ("minimum", "write minimum of A + B"),
        ("saturation + minimum of brightness", "needs brackets"),
        ("harmonic of saturation", "of 2 rewards"),
        ("harmonic:weight=2 of saturation + jpeg", "not within 0..1"),
        ("near of saturation", "near needs a value"),
        ("near:value=x of saturation", "is no number"),
        ("near:valeu=1 of saturation", "did you mean value"),
        ("normalised:mean=1,deviation=0 of saturation", "not above 0"),
        ("(saturation", "do not match"),
        ("saturation)", "do not match"),
        ("saturation + ", "an empty part"),
        ("much * saturation", "cannot read"),
        ("jpeg:sign=2", "neither -1"),
        ("jpeg:quality=0", "not within 1..100"),
        ("symmetry:axis=left", "did you mean left-right"),
        ("similarity", "reference=FILE"),
        ("similarity:reference=none.png", "there is no picture"),
        ([], "no terms"),
        ({"saturation": "much"}, "is no number"),
        (3, "a reward is a line"),
    ],
)
def test_what_is_refused(line: object, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        open_rewards(line)
    assert "\n" not in str(caught.value)


def test_callables() -> None:
    def redness(pictures: Tensor, prompts: list[str]) -> Tensor:
        return pictures[:, 0].mean((1, 2))

    made = open_rewards(redness)
    assert made.name == "redness" and made(random(2), ["", ""]).shape == (2,)
    assert open_rewards(made) is made
    assert open_rewards([redness, "0.5 * saturation"]).name == "redness + (0.5 * saturation)"


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda pictures, prompts: pictures.mean(), "one number a picture"),
        (lambda pictures, prompts: [1.0, 2.0], "gave list"),
        (lambda pictures, prompts: pictures.detach().mean((1, 2, 3)), "gives no gradient"),
    ],
)
def test_callables_that_are_no_reward(scores: Callable[..., Tensor], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_rewards(scores)(random(2).requires_grad_(), ["", ""])


def test_prompts_belong_to_pictures() -> None:
    with pytest.raises(UsageError, match="1 prompts for 2 pictures"):
        open_rewards("saturation")(random(2), [""])
    with pytest.raises(UsageError, match="one text for 2 pictures"):
        open_rewards("saturation")(random(2), "ab")
    with pytest.raises(UsageError, match="divide bytes by 255"):
        open_rewards("saturation")(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["", ""])
    with pytest.raises(UsageError, match="decode latents"):
        open_rewards("saturation")(torch.zeros(2, 4, 8, 8), ["", ""])


def test_full_precision_under_autocast() -> None:
    pictures, reward = random(2), open_rewards("adherence")
    wanted = reward(pictures, [CAPTION] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reward(pictures, [CAPTION] * 2), wanted, rtol=0, atol=0)


def test_every_entry_is_whole() -> None:
    for name, spec in {**REWARDS, **COMBINATIONS}.items():
        assert callable(spec.load()) and spec.summary, name
        assert "device" in spec.defaults or name in COMBINATIONS, name
        assert spec.notes or name in COMBINATIONS, name


def test_tables() -> None:
    assert {row["reward"] for row in rows()} >= {*REWARDS, *(f"{name} of ..." for name in COMBINATIONS)}
    shown = with_settings()
    assert "| `near` | value=(required) |" in shown and "| `colour` | target=red, over=pixels |" in shown
