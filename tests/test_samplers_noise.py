"""Randomness belongs to the picture: the same noise alone, in any batch, again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotage.errors import UsageError
from pilotage.samplers import SeededNoise
from pilotage.samplers.noise import derived_seed, generator_of

LIKE = torch.zeros(3, 2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_first_draw_is_that_of_a_plain_cpu_generator(dtype: torch.dtype) -> None:
    ours = SeededNoise([7, 12345678901]).initial((4, 8), dtype=dtype)
    for row, seed in zip(ours, (7, 12345678901), strict=True):
        assert torch.equal(row, torch.randn(4, 8, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype))


def test_the_first_draw_is_that_of_a_diffusers_pipeline() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    generators = [generator_of(s) for s in (1, 2, "3:1")]
    assert torch.equal(randn_tensor((3, 4, 8), generator=generators), SeededNoise([1, 2, "3:1"]).initial((4, 8)))


@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), step=st.integers(0, 999))
def test_a_row_does_not_know_its_batch(seeds: list[int], step: int) -> None:
    together = SeededNoise(seeds).draw("step", step, LIKE)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row[None], SeededNoise([seed]).draw("step", step, LIKE[:1]))
    assert torch.equal(together.flip(0), SeededNoise(seeds[::-1]).draw("step", step, LIKE))


def test_purposes_steps_seeds_and_repeats_are_independent() -> None:
    noise = SeededNoise([5])
    like = torch.zeros(1, 4000)
    draws = [
        noise.initial((4000,)),
        noise.draw("step", 0, like),
        noise.draw("step", 1, like),
        noise.draw("restart", 0, like),
        SeededNoise([6]).draw("step", 0, like),
        SeededNoise(["5:1"]).draw("step", 0, like),
        SeededNoise(["5:1"]).initial((4000,)),
    ]
    table = torch.corrcoef(torch.cat(draws))
    assert float((table - torch.eye(len(draws))).abs().max()) < 0.06  # 4 standard errors
    assert torch.equal(noise.draw("step", 0, like), draws[1])
    assert abs(float(draws[1].std()) - 1) < 0.05 and abs(float(draws[1].mean())) < 0.06


def test_the_same_seed_in_other_words_is_the_same_picture() -> None:
    for spelling in ("17", "17:0", "017"):
        assert torch.equal(SeededNoise([spelling]).initial((3,)), SeededNoise([17]).initial((3,)))
        assert torch.equal(SeededNoise([spelling]).draw("a", 1, LIKE[:1]), SeededNoise([17]).draw("a", 1, LIKE[:1]))


def test_derived_seeds_never_change() -> None:
    # pictures of past runs depend on these numbers
    assert derived_seed(17, "step", 3) == 2890633400665917620
    assert 0 <= derived_seed("x") < 2**63


@pytest.mark.parametrize("seed", ["", "x", "-1", "1:", "1:x", "1.5", 2**64, True])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(UsageError, match="a seed is a whole number"):
        SeededNoise([seed])  # type: ignore[list-item]


def test_rows_and_seeds_must_match() -> None:
    with pytest.raises(UsageError, match="2 seeds for 3 rows"):
        SeededNoise([1, 2]).draw("step", 0, LIKE)
    assert SeededNoise([1, 2, 3]).draw("step", 0, LIKE.double()).dtype == torch.float64
