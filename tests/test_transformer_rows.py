"""What single adapter rows of transformers have to get right beyond CFG and skipping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny_tokens
import tiny_transformers
import torch
from tiny_parts import Case, run

from pilotage import attach
from pilotage.errors import UsageError
from pilotage.guidance import CFG
from pilotage.guidance.pipelines import ADAPTERS
from pilotage.guidance.rule import Ask, Context, Guide, Point, Rule

STEPS = 3


@dataclass(frozen=True)
class Again(Rule):
    """Asks for everything again in later rounds, at the same point given by hand: for all rows, then row by row."""

    branches: tuple[str, ...] = ("cond", "uncond")
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        first = yield tuple(Ask(branch) for branch in self.branches)
        for rows in (ctx.every_row, *torch.eye(len(ctx.x), dtype=torch.bool)):
            here = Point(ctx.x.clone(), ctx.level)  # another tensor, so nothing is known of it
            again = yield tuple(Ask(branch, at=here, rows=rows) for branch in self.branches)
            for a, b in zip(first, again, strict=True):
                assert (a.native - b.native)[rows].abs().max() < 1e-4 * a.native.abs().max()
        return first[0]


ALL = {**tiny_tokens.CASES, **tiny_transformers.CASES, "GlmImagePipeline (edit)": tiny_transformers.glm_image_edit}


@pytest.mark.parametrize("name", sorted(ALL))
def test_later_rounds_and_single_rows_get_the_arguments_of_their_branch(name: str) -> None:
    """All that has a row a sample is picked, time and x are put where the network looks for them, and the answer is
    read as it was."""
    case = ALL[name]()
    known = ADAPTERS[type(case.pipe).__name__].branches  # distilled ones have no null branch
    with attach(case.pipe, Again(tuple(b for b in ("cond", "uncond") if b in known))) as attached:
        run(case, 2)
    assert attached.evaluations["cond"] >= 2 * len(case.seeds)


def test_calls_that_only_fill_a_cache_are_left_alone() -> None:
    """GLM-Image shows the network the pictures to edit before the first step."""
    case = tiny_transformers.glm_image_edit()
    stock = run(case, STEPS)
    with attach(case.pipe, CFG(5.0)) as attached:
        ours = run(case, STEPS, guidance_scale=2.0)
    assert torch.equal(ours, stock) and attached.evaluations == {"cond": 6, "uncond": 6}
    with attach(case.pipe, "none"):
        assert torch.equal(run(case, STEPS), run(case, STEPS, **case.off))
    assert (stock - run(tiny_transformers.glm_image(), STEPS)).abs().max() > 1e-3  # the pictures are seen


def test_a_pipeline_that_stops_calling_for_the_second_branch_stops_the_rule() -> None:
    """Lumina 2 guides only the first share of the steps when `cfg_trunc_ratio` says so."""
    case = tiny_transformers.lumina_2()
    stock = run(case, STEPS, cfg_trunc_ratio=0.4)
    assert (stock - run(case, STEPS)).abs().max() > 1e-3
    with attach(case.pipe, CFG(5.0)) as attached:
        ours = run(case, STEPS, cfg_trunc_ratio=0.4)
    assert torch.equal(ours, stock)
    assert attached.evaluations == {"cond": 6, "uncond": 2}
    assert [step["scale"] for step in attached.steps] == [5.0, 1.0, 1.0]
    with attach(case.pipe, "cfg++:lam=0") as attached:  # it had not asked for the conditional branch
        run(case, STEPS, cfg_trunc_ratio=0.4)
    assert attached.evaluations == {"cond": 4, "uncond": 2}


@pytest.mark.parametrize("build", [tiny_tokens.flux, tiny_transformers.lumina_2, tiny_transformers.stable_diffusion_3])
def test_a_pipeline_that_never_guides_is_refused_with_the_setting_that_helps(build: Callable[[], Case]) -> None:
    case = build()
    with attach(case.pipe, CFG(5.0)), pytest.raises(UsageError, match="above 1"):
        run(case, STEPS, **case.off)


def test_a_cache_is_not_asked_for_what_a_rule_skipped() -> None:
    """Qwen-Image 2.1 fills its cache of a branch at the first step, which this rule skips."""
    line = "cfg:scale=5 + interval:low=0,high={}"
    cached, plain = tiny_tokens.qwen_image_21_cached(), tiny_tokens.qwen_image_21_edit()
    with attach(plain.pipe, "none") as attached:
        run(plain, STEPS)
    line = line.format(attached.steps[1]["rho"] * 1.01)
    results = []
    for case in (cached, plain):
        with attach(case.pipe, line) as attached:
            results.append(run(case, STEPS))
        assert attached.evaluations == {"cond": 6, "uncond": 4}
    assert torch.allclose(*results, atol=1e-5)


def test_the_dictionary_that_a_pipeline_changes_between_its_calls_is_kept() -> None:
    """Flux exchanges the IP-Adapter's pictures in the dictionary that both calls of a step are given."""
    shared = {"ip_adapter_image_embeds": "positive"}
    kept = ADAPTERS["FluxPipeline"].kept
    assert kept is not None
    arguments = kept({"joint_attention_kwargs": shared, "timestep": 1.0})
    shared["ip_adapter_image_embeds"] = "negative"
    assert arguments == {"joint_attention_kwargs": {"ip_adapter_image_embeds": "positive"}, "timestep": 1.0}


def test_z_image_truncation_is_followed() -> None:
    """It stops guiding when its clock is past `cfg_truncation`; the rule stops with it."""
    case = tiny_transformers.z_image()
    stock = run(case, STEPS, cfg_truncation=0.2)
    with attach(case.pipe, CFG(5.0)) as attached:
        ours = run(case, STEPS, cfg_truncation=0.2)
    assert 0 < attached.evaluations["uncond"] < attached.evaluations["cond"]
    assert torch.allclose(ours, stock, atol=1e-5)
