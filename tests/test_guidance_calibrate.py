"""The threshold of adaptive guidance, measured."""

from __future__ import annotations

import pytest
import tiny
import torch

import pilotage
from pilotage import guidance
from pilotage.errors import UsageError
from pilotage.guidance.calibrate import agreements_of, calibrate_adaptive, calibrate_apg, choose_threshold


def evaluated(agreements: torch.Tensor, threshold: float) -> int:
    """Uncond rows by the rule's own words: guided up to and with the first step that reaches the threshold."""
    total = 0
    for row in agreements.T.tolist():
        reached = [i for i, value in enumerate(row) if value >= threshold]
        total += (reached[0] + 1) if reached else len(row)
    return total


@pytest.mark.parametrize("saving", [0.05, 0.2, 0.25, 0.4, 0.45])
def test_the_highest_threshold_that_saves_enough(saving: float) -> None:
    """Against a search through all thresholds; agreements that go up and down again."""
    steps, batch = 10, 7
    noise = torch.randn(steps, batch, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    agreements = torch.linspace(0.7, 0.99, steps, dtype=torch.float64)[:, None] + 0.05 * noise
    found = choose_threshold(agreements, saving)

    def saved(threshold: float) -> float:
        return (steps * batch - evaluated(agreements, threshold)) / (2 * steps * batch)

    assert found.saving == pytest.approx(saved(found.threshold)) and found.saving >= saving
    records = torch.cummax(agreements, dim=0).values.flatten()  # other values can cross no threshold first
    higher = sorted(float(v) for v in records if v > found.threshold)
    assert saved(higher[0]) == pytest.approx(found.saving)  # the threshold lies between two agreements
    assert all(saved(v + 1e-9) < saving for v in higher)
    for row in range(batch):
        assert evaluated(agreements[:, row : row + 1], found.threshold) == int(found.last_guided[row]) + 1


def test_savings_that_cannot_be_had() -> None:
    flat = torch.zeros(4, 2)
    for saving in (0.0, -0.1, 0.376, 0.5):
        with pytest.raises(UsageError, match="cannot be had"):
            choose_threshold(flat, saving)
    assert choose_threshold(flat, 0.375).threshold == -0.5  # all agree alike: dropped after the first step


def test_a_run_at_the_threshold_saves_what_was_promised() -> None:
    case = tiny.text_to_image()
    prompts = ["a red star", "two blue rings", "a moon", "a green fish", "a house"]
    generators = [torch.Generator().manual_seed(s) for s in range(5)]
    call = dict(height=16, width=16, num_inference_steps=8)
    found = calibrate_adaptive(case.pipe, prompts, saving=0.2, rule="cfg:scale=5", generator=generators, **call)
    assert found.agreements.shape == (8, 5) and found.saving >= 0.2
    rule = guidance.parse(f"cfg:scale=5 + adaptive:threshold={found.threshold}")
    generators = [torch.Generator().manual_seed(s) for s in range(5)]
    with pilotage.attach(case.pipe, rule) as run:
        case.pipe(prompts, guidance_scale=2.0, output_type="latent", generator=generators, **call)
    assert run.evaluations == {"cond": 40, "uncond": 80 - round(found.saving * 80) - 40}
    assert run.evaluations["uncond"] == int((found.last_guided + 1).sum())


def test_batches_are_put_together_and_other_pipelines_switched_on() -> None:
    found = calibrate_adaptive(tiny.dit().pipe, [1, 2, 3], saving=0.1, batch_size=2, argument="class_labels",
                               num_inference_steps=4)  # fmt: skip
    assert found.agreements.shape == (4, 3)
    case = tiny.flux()
    with pytest.warns(UserWarning, match="space='denoised'"):  # an untrained network's branches part at the end
        found = calibrate_adaptive(case.pipe, ["a", "b"], saving=0.1, height=16, width=16, max_sequence_length=16,
                               negative_prompt=["", ""], num_inference_steps=4)  # fmt: skip
    assert found.agreements.shape == (4, 2)


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match="no prompts"):
        calibrate_adaptive(tiny.text_to_image().pipe, [])
    with pytest.raises(UsageError, match="recorded no agreement"):
        agreements_of([{"rho": 1.0}])
    with pytest.raises(UsageError, match="no prompts"):
        calibrate_apg(tiny.text_to_image().pipe, [])


def test_the_cap_of_apg_is_the_median_length_of_cfgs_difference() -> None:
    """Against the native differences that every run records: an epsilon model's D differs by rho times as much."""
    case = tiny.text_to_image()
    prompts = ["a red star", "two blue rings", "a moon"]
    call = dict(height=16, width=16, num_inference_steps=5, latents=torch.randn(3, 4, 8, 8))
    cap = calibrate_apg(case.pipe, prompts, scale=4, **call)
    with pilotage.attach(case.pipe, "cfg:scale=4") as run:
        case.pipe(prompts, output_type="latent", guidance_scale=2.0, **call)
    lengths = torch.cat([step["rho"] * step["difference"] for step in run.steps])
    assert cap == pytest.approx(float(lengths.median()), rel=1e-5)
