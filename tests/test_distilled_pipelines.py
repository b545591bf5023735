"""Models without a negative branch: negative prompts inside the attention, and worse versions of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_tokens
import tiny_unets
import torch
from tiny_parts import Case, run
from torch import Tensor

import pilotage
from pilotage import samplers
from pilotage.errors import UsageError
from pilotage.guidance import NAG, NASA


def schnell() -> Case:
    """Flux without a scale of its own, and without true_cfg: one branch, one to four steps."""
    return tiny_tokens.distilled(tiny_tokens.flux(), guidance_scale=0.0)


def with_controlnet() -> Case:
    case = tiny_tokens.flux_controlnet_image_to_image()
    case.call["strength"] = 1.0
    return case


CASES: dict[str, Callable[[], Case]] = {
    "latent consistency": tiny_unets.consistency_text_to_image,
    "Flux schnell": schnell,
    "Flux Fill": tiny_tokens.flux_fill,
    "Flux Control": tiny_tokens.flux_control,
    "Flux ControlNet": with_controlnet,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: Any) -> Case:
    return CASES[request.param]()


def steered(case: Case, rule: Any, steps: int, **settings: Any) -> tuple[Tensor, dict[str, int]]:
    with pilotage.attach(case.pipe, rule, **settings) as made:
        return run(case, steps), made.evaluations


def embedded(case: Case, text: str) -> Tensor:
    """What the pipeline makes of a text."""
    pipe = case.pipe
    with torch.no_grad():
        if hasattr(pipe, "unet"):
            return pipe.encode_prompt(text, "cpu", 1, False)[0]
        return pipe.encode_prompt(text, text, max_sequence_length=16)[0]


@pytest.mark.parametrize("rule", [NAG, NASA])
def test_a_negative_prompt_at_one_step(case: Case, rule: Any) -> None:
    """One evaluation a picture, and another picture; weight 0 is the stock pipeline to the bit."""
    plain = run(case, 1)
    off = {"scale": 1.0} if rule is NAG else {"weight": 0.0}
    assert torch.equal(steered(case, rule(**off, branch="prompt:grey_and_blurry"), 1)[0], plain)
    grey, evaluations = steered(case, rule(branch="prompt:grey_and_blurry"), 1)
    assert evaluations == {"cond": 2} and (grey - plain).abs().max() > 1e-4
    other, _ = steered(case, rule(branch="prompt:rain"), 1)
    assert (other - grey).abs().max() > 1e-5
    same, evaluations = steered(case, rule(negative=embedded(case, "grey and blurry")), 1)
    assert torch.equal(same, grey) and evaluations == {"cond": 2}


def test_a_name_may_stand_for_the_negative_prompt(case: Case) -> None:
    long, _ = steered(case, "nag:branch=prompt:grey_and_blurry", 2)
    named, _ = steered(case, "nag:branch=prompt:bad", 2, prompts={"bad": "grey and blurry"})
    assert torch.equal(long, named)


def test_a_negative_prompt_does_not_see_batch_mates(case: Case) -> None:
    together, _ = steered(case, "nasa:weight=0.5,branch=prompt:rain", 2)
    padded, evaluations = steered(case, "nasa:weight=0.5,branch=prompt:rain", 2, rows_per_call=1)
    assert torch.allclose(together, padded, atol=2e-4 * float(together.abs().max())) and set(evaluations) == {"cond"}


@pytest.mark.parametrize("line", ["pag:weight=2", "slg:weight=2", "autoguidance:weak=skip", "autoguidance:weak=dropout",
                                  "autoguidance:weak=tokens,drop=0.5"])  # fmt: skip
def test_worse_versions_of_itself(case: Case, line: str) -> None:
    plain, single = steered(case, "none", 2)
    guided, evaluations = steered(case, line, 2)
    assert evaluations == {"cond": 2 * single["cond"]}
    assert guided.isfinite().all() and (guided - plain).abs().max() > 1e-4
    assert torch.equal(run(case, 2), plain)  # nothing stays behind


def test_what_needs_a_negative_branch_is_refused(case: Case) -> None:
    if case.pipe.__class__.__name__ == "FluxPipeline":  # has one, if it is asked to
        with pilotage.attach(case.pipe, "cfg"), pytest.raises(UsageError, match="true_cfg_scale"):
            run(case, 1)
    else:
        with pytest.raises(UsageError, match=r"no ('uncond'|negative) branch"):
            pilotage.attach(case.pipe, "cfg")


@pytest.mark.parametrize("make", [tiny.text_to_image, tiny.stable_diffusion_xl, tiny.stable_diffusion_3, tiny.flux])
def test_a_further_prompt_as_the_negative_of_a_guided_pipeline(make: Callable[[], Case]) -> None:
    """The rows of the negative branch are not evaluated, though the pipeline prepares them."""
    case = make()
    for rule in (NAG, NASA):
        ours, evaluations = steered(case, rule(branch="prompt:rain"), 2)
        plain, _ = steered(case, "none", 2)
        assert set(evaluations) == {"cond"} and (ours - plain).abs().max() > 1e-5


def test_a_class_is_no_negative_text() -> None:
    case = tiny.dit()
    with pilotage.attach(case.pipe, "nag:branch=prompt:11"), pytest.raises(UsageError, match="attends to no text"):
        run(case, 1)


@pytest.mark.parametrize("make", [tiny_unets.consistency_text_to_image, tiny_unets.consistency_image_to_image])
def test_our_lcm_serves_the_pipelines_of_consistency_models(make: Callable[[], Case]) -> None:
    """They want the denoised sample of a step, and may say how many times the student was distilled on."""
    case = make()
    case.call["original_inference_steps"] = 20
    stock = run(case, 3)
    case.pipe.scheduler = samplers.LCM.from_config(case.pipe.scheduler.config)
    assert torch.allclose(run(case, 3), stock, atol=2e-4)
    assert case.pipe.scheduler.config.original_inference_steps == 20
    with pilotage.attach(case.pipe, case.rule) as made:
        attached = run(case, 3)
    assert torch.allclose(attached, stock, atol=2e-4) and made.evaluations == {"cond": 3 * len(attached)}
