"""attach on one pipeline of each kind: equal to stock, fewer rows, and everything restored."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from attach_tools import Elsewhere, OtherCondition, network_of, rows_seen

import pilotage
from pilotage import guidance
from pilotage.guidance.pipelines import ADAPTERS
from pilotage.guidance.rule import Rule


@pytest.fixture(scope="module", params=list(tiny.CASES))
def case(request: Any) -> tiny.Case:
    return tiny.CASES[request.param]()


def rule_of(case: tiny.Case) -> guidance.Rule:
    """What the stock pipeline does by itself."""
    if "image_guidance_scale" in case.call:
        return guidance.ImageCFG(5.0, 1.5)
    return guidance.CFG(case.call[case.scale])


def test_every_layout_is_among_the_cases() -> None:
    """Every single row has a case of its own in `test_pipeline_rows.py`."""
    tested = {ADAPTERS[name].layout for name in tiny.CASES}
    assert tested == {adapter.layout for adapter in ADAPTERS.values()}


def test_cfg_equals_the_stock_pipeline(case: tiny.Case) -> None:
    """The same bits: one call, the same rows, the same formula; whatever scale the pipeline itself is given.

    Z-Image writes c + s (c - u), which is CFG at s + 1 with other roundings.
    """
    stock = tiny.run(case)
    listed = type(case.pipe).__name__ == "ZImagePipeline"
    rule = guidance.CFG(case.call[case.scale] + 1) if listed else rule_of(case)
    for scale in (case.call[case.scale], 2.0, 1.5):
        with pilotage.attach(case.pipe, rule) as run:
            ours = tiny.run(case, **{case.scale: scale})
        assert (ours - stock).abs().max() <= (1e-5 if listed else 0)
    steps = 3 if "strength" in case.call else 4
    assert run.evaluations == dict.fromkeys(rule.needs, 2 * steps)
    assert (tiny.run(case, **case.off) - stock).abs().max() > 1e-2  # guidance is visible in this fixture


def test_scale_one_halves_the_rows_and_equals_guidance_off(case: tiny.Case) -> None:
    off = tiny.run(case, **case.off)
    for rule in ("none", "cfg:scale=1", "cfg + interval:low=1e6,high=1e7"):
        with pilotage.attach(case.pipe, rule) as run:
            ours = tiny.run(case)
        # The ControlNet still sees every row, which changes the roundings of its residuals.
        assert (ours - off).abs().max() <= (1e-5 if "ControlNet" in type(case.pipe).__name__ else 0)
        assert set(run.evaluations) == {"cond"}
    with pilotage.attach(case.pipe, "none"):
        assert torch.equal(tiny.run(case, **case.off), off)  # the pipeline's own guidance off: nothing to split


def test_the_network_really_sees_fewer_rows(case: tiny.Case) -> None:
    counts = []
    for rule in (rule_of(case), "none"):
        with rows_seen(network_of(case)) as seen, pilotage.attach(case.pipe, rule):
            tiny.run(case)
        counts.append(sum(seen))
    assert counts[0] == counts[1] * len(rule_of(case).needs)


def test_everything_is_restored(case: tiny.Case) -> None:
    network, scheduler = network_of(case), case.pipe.scheduler
    before, stock = (set(vars(network)), set(vars(scheduler))), tiny.run(case)
    with pilotage.attach(case.pipe, "none"):
        tiny.run(case)
    assert (set(vars(network)), set(vars(scheduler))) == before and torch.equal(tiny.run(case), stock)
    with pytest.raises(ZeroDivisionError), pilotage.attach(case.pipe, "none") as run:
        tiny.run(case, callback_on_step_end=lambda *a: 1 / 0) if "DiT" not in type(case.pipe).__name__ else 1 / 0
    assert (set(vars(network)), set(vars(scheduler))) == before and torch.equal(tiny.run(case), stock)
    assert run.steering is None


@pytest.mark.parametrize("rule", [Elsewhere(), OtherCondition()], ids=["point", "edit"])
def test_other_points_and_conditions(case: tiny.Case, rule: Rule) -> None:
    """The adapter's way from x and level to the network's arguments and back."""
    with pilotage.attach(case.pipe, rule) as run:
        ours = tiny.run(case)
    assert torch.allclose(ours, tiny.run(case, **case.off), atol=1e-4)
    assert run.evaluations["cond"] > 8 - 2


@pytest.mark.parametrize("line", ["apg:scale=5", "cfg++:lam=0.4", "cfg:scale=4 + adaptive:threshold=-1 + rescale"])
def test_every_rule_runs_everywhere(case: tiny.Case, line: str) -> None:
    with pilotage.attach(case.pipe, line) as run:
        ours = tiny.run(case)
    assert ours.isfinite().all() and (ours - tiny.run(case)).abs().max() > 1e-3
    if "adaptive" in line:
        assert run.evaluations["uncond"] == 2  # the first step of two rows


def test_cfgpp_at_zero_runs_the_unconditional_branch_alone(case: tiny.Case) -> None:
    with pilotage.attach(case.pipe, "cfg++:lam=0") as run:
        ours = tiny.run(case)
    with pilotage.attach(case.pipe, "cfg:scale=0"):
        assert torch.allclose(ours, tiny.run(case), atol=2e-5, rtol=1e-5)
    assert set(run.evaluations) == {"uncond"}


def test_what_a_run_records(case: tiny.Case) -> None:
    with pilotage.attach(case.pipe, guidance.CFG(3.0)) as run:
        tiny.run(case)
        first = run.steps
        tiny.run(case)
    steps = 3 if "strength" in case.call else 4
    assert len(run.steps) == len(first) == steps  # each call is a run of its own
    rhos = [step["rho"] for step in run.steps]
    assert rhos == sorted(rhos, reverse=True) and all(step["scale"] == 3.0 for step in run.steps)
    assert [step["step"] for step in run.steps] == list(range(4 - steps, 4))
    for step in run.steps:
        assert step["difference"].shape == (2,) and (step["difference"] > 0).all()
        assert (step["cosine"] < 1).all() and (step["cosine"] > -1).all()
    assert torch.equal(first[0]["cosine"], run.steps[0]["cosine"])
