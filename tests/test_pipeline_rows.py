"""Every adapter row, proven on a tiny pipeline of its own: CFG equals stock, and a skipping rule saves the rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import pytest
import tiny_tokens
import tiny_transformers
import tiny_unets
import tiny_videos
import torch
from attach_tools import Elsewhere
from tiny_parts import Case, run

from pilotage import attach
from pilotage.errors import UsageError
from pilotage.guidance import CFG, ImageCFG, Rule
from pilotage.guidance.grammar import parse
from pilotage.guidance.pipelines import ADAPTERS, adapter_of, coverage
from pilotage.guidance.pipelines.adapters import REFUSED
from pilotage.guidance.rule import Ask, Context, Guide
from pilotage.samplers.stock import calls_of

MODULES = (tiny_unets, tiny_transformers, tiny_tokens, tiny_videos)
CASES: dict[str, Any] = {name: build for module in MODULES for name, build in module.CASES.items()}

# Classes that inherit their `__call__`, by the class whose case proves it.
ALIASES: dict[str, str] = {}


def steps_of(case: Case) -> int:
    """Enough for two network calls after the noisy part of an image is skipped."""
    return 3 if case.call.get("strength", 1) < 1 else 2


def rule_of(case: Case) -> Rule:
    """What the stock pipeline does by itself."""
    if case.rule is not None:
        return parse(case.rule) if isinstance(case.rule, str) else case.rule
    if "image_guidance_scale" in case.call:
        return ImageCFG(case.call["guidance_scale"], case.call["image_guidance_scale"])
    return CFG(case.call[case.scale])


@contextmanager
def rows_through(pipe: Any) -> Iterator[list[int]]:
    """Rows that the networks really compute, call by call: their class's `forward` is below whatever is attached."""
    row, seen = adapter_of(pipe), []
    networks = [getattr(pipe, name) for name in (row.network, *row.experts) if getattr(pipe, name, None) is not None]
    classes = {type(network) for network in networks}
    plain = {cls: cls.forward for cls in classes}

    def counted(forward: Any) -> Any:
        @wraps(forward)
        def count(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any(self is network for network in networks):
                seen.append(len(kwargs[row.sample] if row.sample in kwargs else args[0]))
            return forward(self, *args, **kwargs)

        return count

    try:
        for cls in classes:
            cls.forward = counted(cls.forward)
        yield seen
    finally:
        for cls, forward in plain.items():
            cls.forward = forward


@dataclass(frozen=True, repr=False)
class Runs:
    """Everything that the laws of one case look at, each run once."""

    case: Case
    rule: Rule
    stock: torch.Tensor
    ours: torch.Tensor  # under the rule, while the pipeline's own scale has another value
    skipped: torch.Tensor
    off: torch.Tensor | None  # the pipeline's own guidance switched off, where it can be
    rows: dict[str, list[int]]
    evaluations: dict[str, dict[str, int]]


@lru_cache(maxsize=1)
def runs_of(name: str) -> Runs:
    case: Case = CASES[name]()
    steps, rule = steps_of(case), rule_of(case)
    stock = run(case, steps)
    other = {case.scale: 2.0} if case.other is None else case.other
    rows, evaluations, results = {}, {}, {}
    for what, with_rule, changes in (("ours", rule, other), ("skipped", "none", {})):
        with rows_through(case.pipe) as seen, attach(case.pipe, with_rule) as attached:
            results[what] = run(case, steps, **changes)
        rows[what], evaluations[what] = seen, dict(attached.evaluations)
    off = run(case, steps, **case.off) if case.off else None
    return Runs(case, rule, stock, **results, off=off, rows=rows, evaluations=evaluations)


@pytest.fixture(scope="module", params=sorted(CASES))
def runs(request: Any) -> Runs:
    return runs_of(request.param)


def test_every_row_has_a_case_of_its_own() -> None:
    proven = {type_name(name) for name in CASES} | set(ALIASES)
    assert set(ADAPTERS) - proven == set()
    assert proven - set(ADAPTERS) == set()
    for name, other in ALIASES.items():
        ours, theirs = getattr(diffusers, name), getattr(diffusers, other)
        assert ours.__call__ is theirs.__call__ and ADAPTERS[name] == ADAPTERS[other]


def type_name(case_name: str) -> str:
    """Some classes have several cases, "WanPipeline (two experts)"."""
    return case_name.split(" ")[0]


def test_the_case_is_of_the_class_that_it_names(runs: Runs, request: Any) -> None:
    name = request.node.callspec.params["runs"]
    assert type(runs.case.pipe).__name__ == type_name(name)
    assert adapter_of(runs.case.pipe) is ADAPTERS[type_name(name)]


def test_the_rule_equals_the_stock_pipeline(runs: Runs) -> None:
    """Bit for bit, unless the case says why not; and though the pipeline itself is given another scale."""
    assert runs.stock.isfinite().all()
    assert difference(runs.ours, runs.stock) <= runs.case.tolerance


def test_a_skipping_rule_computes_the_conditional_rows_alone(runs: Runs) -> None:
    """Half of the rows where there are two branches, in as many calls (stacked) or in fewer (in turn)."""
    needs = len(runs.rule.needs)
    assert set(runs.evaluations["skipped"]) == {"cond"} and set(runs.evaluations["ours"]) == set(runs.rule.needs)
    assert sum(runs.rows["ours"]) == needs * sum(runs.rows["skipped"])
    stacked = adapter_of(runs.case.pipe).layout != "in turn"
    assert len(runs.rows["ours"]) == len(runs.rows["skipped"]) * (1 if stacked else needs)
    steps = runs.evaluations["skipped"]["cond"] // len(runs.case.seeds)
    assert steps >= 2 and runs.evaluations["ours"] == dict.fromkeys(runs.rule.needs, steps * len(runs.case.seeds))


def test_a_skipping_rule_equals_guidance_off(runs: Runs) -> None:
    if len(runs.rule.needs) > 1:
        assert difference(runs.skipped, runs.stock) > 1e-3  # guidance is visible in this fixture
    if runs.off is not None:
        assert difference(runs.skipped, runs.off) <= runs.case.off_tolerance


def test_another_point_is_told_to_the_network_as_its_own(runs: Runs) -> None:
    """From x and a level to the network's arguments and back: the step's own point, given by hand, has its answer."""
    with attach(runs.case.pipe, Elsewhere()) as attached:
        ours = run(runs.case, steps_of(runs.case))
    assert difference(ours, runs.skipped) <= 1e-3 and attached.evaluations["cond"] > 2 * len(runs.case.seeds)


def test_a_further_prompt_is_what_the_pipeline_makes_of_the_text(runs: Runs) -> None:
    """Where a row can encode: a rule's text in the prompts' stead is a call with that text for every picture. Not with
    a ControlNet, which is called by the pipeline itself, with the prompts of the call."""
    case = runs.case
    distilled = adapter_of(case.pipe).branches == ("cond",)
    if adapter_of(case.pipe).encode is None or "prompt" not in case.call or not (case.off or distilled):
        return
    with attach(case.pipe, OtherText()) as attached:
        ours = run(case, steps_of(case))
    assert difference(ours, runs.skipped) > 1e-3 and set(attached.evaluations) == {"prompt:a_green_cube"}
    if not hasattr(case.pipe, "controlnet"):
        text = "a green cube" if isinstance(case.call["prompt"], str) else ["a green cube"] * len(case.seeds)
        assert difference(ours, run(case, steps_of(case), **{**case.off, "prompt": text})) <= 1e-4


@dataclass(frozen=True)
class OtherText(Rule):
    passes: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ("prompt:a_green_cube",)

    def guide(self, ctx: Context) -> Guide:
        (other,) = yield (Ask("prompt:a_green_cube"),)
        return other


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# -- what is refused, and the page of all -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_pipelines_say_why(name: str) -> None:
    assert name not in ADAPTERS and name not in coverage.UNPROVEN
    with pytest.raises(UsageError, match=f"^{name}: .*(attach|use) "):
        adapter_of(type(name, (), {})())


def test_a_combined_pipeline_is_steered_through_its_parts() -> None:
    """What the refusal recommends."""
    prior, decoder = CASES["KandinskyV22PriorPipeline"]().pipe, CASES["KandinskyV22Pipeline"]().pipe
    parts = {f"prior_{name}": part for name, part in prior.components.items()}
    pipe = diffusers.KandinskyV22CombinedPipeline(**decoder.components, **parts)
    pipe.set_progress_bar_config(disable=True)

    def image(**settings: Any) -> torch.Tensor:
        call = dict(num_inference_steps=2, prior_num_inference_steps=2, height=16, width=16, output_type="latent")
        generator = torch.Generator().manual_seed(1)
        return pipe("a red star", generator=generator, return_dict=False, **{**call, **settings})[0]

    stock = image(guidance_scale=5.0, prior_guidance_scale=3.0)
    with attach(pipe.decoder_pipe, CFG(5.0)) as run, attach(pipe.prior_pipe, CFG(3.0)) as prior_run:
        ours = image(guidance_scale=2.0, prior_guidance_scale=2.0)
    assert torch.equal(ours, stock)
    assert run.evaluations == prior_run.evaluations == {"cond": 2, "uncond": 2}


def test_a_prior_steps_to_the_next_time_of_its_list() -> None:
    """UnCLIP's steps are told where they end; the last one ends at clean data."""
    scheduler = diffusers.UnCLIPScheduler(prediction_type="sample")
    scheduler.set_timesteps(4)
    calls = calls_of(scheduler)
    assert [call.goal for call in calls[:-1]] == [call.level for call in calls[1:]]
    assert (calls[-1].goal.alpha, calls[-1].goal.sigma) == (1.0, 0.0)


def test_every_pipeline_of_diffusers_is_accounted_for() -> None:
    found = {name: coverage.status(pipeline) for name, pipeline in coverage.pipelines().items()}
    assert [name for name, status in found.items() if status == "unknown"] == []
    named = {*ADAPTERS, *REFUSED, *coverage.UNPROVEN, *coverage.WITHOUT_BRANCH}
    assert named - set(found) == set()


def test_the_page_of_pipelines_is_up_to_date() -> None:
    """`python -m pilotage.guidance.pipelines.coverage > docs/pipelines.md` makes it."""
    page = (Path(__file__).parents[1] / "docs" / "pipelines.md").read_text(encoding="utf-8")
    if f"diffusers {diffusers.__version__}" not in page.splitlines()[0]:
        pytest.skip(f"{page.splitlines()[0]}, and here is {diffusers.__version__}")
    assert page == coverage.markdown()
