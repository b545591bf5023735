"""Settings that belong to a model: measure them.

    found = calibrate_adaptive(pipe, prompts, saving=0.25, rule="cfg:scale=5", num_inference_steps=20)
    rule = guidance.parse(f"cfg:scale=5 + adaptive:threshold={found.threshold}")
    cap = calibrate_apg(pipe, prompts, scale=5, num_inference_steps=20)
    rule = guidance.APG(scale=5, norm_threshold=cap)

For adaptive guidance the prompts are run with full guidance while the agreement of the two branches is recorded.
Dropping a row changes nothing about it before the drop, so what any threshold would have saved is known exactly from
one run. For APG the length of the difference is recorded on a run of plain CFG.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .cfg import CFG
from .compose import compose
from .grammar import parse
from .modifiers.adaptive import Adaptive
from .reduce import norm
from .rule import Ask, Context, Guide, Rule

_NEVER = 2.0  # a cosine never reaches it


@dataclass(frozen=True)
class Calibration:
    """threshold: for `Adaptive`. saving: the share of full guidance's evaluations that it saves on these runs.
    last_guided: (B,) index of the last guided step of each. agreements: (steps, B)."""

    threshold: float
    saving: float
    last_guided: Tensor
    agreements: Tensor


def calibrate_adaptive(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    saving: float = 0.25,
    rule: Rule | str = "cfg:scale=7.5",
    space: str = "noise",
    batch_size: int = 8,
    argument: str = "prompt",
    networks: Mapping[str, nn.Module] | None = None,
    **call: Any,
) -> Calibration:
    """The highest (most cautious) threshold that saves at least `saving` of the evaluations on these prompts.

    saving: of two branches at most just under a half can be saved. argument: the name under which the pipeline takes
    the prompts ("class_labels" for DiT). call: further arguments of the pipeline; what switches its guidance on is
    added. The threshold depends on model, sampler, number of steps and scale: calibrate with those that will be used.
    space: that of `Adaptive`. A UserWarning says when the branches agree best at the first steps, as noise predictions
    of some models do: a threshold then drops guidance where it matters most, and space="denoised" is what to use.
    """
    plain = parse(rule) if isinstance(rule, str) else rule
    watched = compose(plain, Adaptive(threshold=_NEVER, space=space))
    runs = recorded(pipe, watched, prompts, batch_size, argument, networks, call)
    agreements = torch.cat([agreements_of(steps) for steps in runs], dim=1)
    if not rises(agreements):
        other = "denoised" if space == "noise" else "noise"
        warnings.warn(
            f"in {space} space the two branches agree less and less over the run, so a threshold drops the guidance of "
            f"the first steps; calibrate with space={other!r}",
            stacklevel=2,
        )
    return choose_threshold(agreements, saving)


@dataclass(frozen=True)
class _Measured(CFG):
    """CFG that records |cond - uncond| of the denoised predictions of each row."""

    def guide(self, ctx: Context) -> Guide:
        cond, uncond = yield Ask(), Ask("uncond")
        ctx.log(apart=norm(cond.denoised - uncond.denoised))
        return (yield from super().guide(ctx))


def calibrate_apg(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    scale: float = 7.5,
    batch_size: int = 8,
    argument: str = "prompt",
    networks: Mapping[str, nn.Module] | None = None,
    **call: Any,
) -> float:
    """A `norm_threshold` for `APG`: the median over steps and rows of |D_cond - D_uncond| on runs of plain CFG.

    The card of the paper (2410.02416) has a value for a few models only; this choice for the others is ours. The norm
    grows with the latents' size and scaling: calibrate at the size that will be used. Arguments: as those of
    `calibrate_adaptive`.
    """
    runs = recorded(pipe, _Measured(scale=scale), prompts, batch_size, argument, networks, call)
    return float(torch.cat([step["apart"].double().cpu() for steps in runs for step in steps]).median())


def recorded(
    pipe: Any,
    rule: Rule,
    prompts: Sequence[Any],
    batch_size: int,
    argument: str,
    networks: Mapping[str, nn.Module] | None,
    call: Mapping[str, Any],
) -> Iterator[list[dict[str, Any]]]:
    """The step records of runs of the rule over the prompts, a batch each."""
    from .pipelines import attach

    if not prompts:
        raise UsageError("no prompts to calibrate with; give at least one, better thirty")
    for start in range(0, len(prompts), batch_size):
        with attach(pipe, rule, networks) as run:
            given = {argument: list(prompts[start : start + batch_size]), "output_type": "latent", **call}
            pipe(**{**dict(run.adapter.on_settings), **given})
        yield run.steps


def rises(agreements: Tensor) -> bool:
    """Do the branches agree better in the last third of the steps than in the first?"""
    third = max(1, len(agreements) // 3)
    return bool(agreements[-third:].median() >= agreements[:third].median())


def agreements_of(steps: Sequence[Mapping[str, Any]]) -> Tensor:
    """(steps, B) in float64 from the records of a run with `Adaptive`; steps on which the rule rested count as -1."""
    rows = [step.get("agreement") for step in steps]
    known = next((r for r in rows if r is not None), None)
    if known is None:
        raise UsageError("this run recorded no agreement; run it with an adaptive modifier, and guidance on")
    return torch.stack([torch.full_like(known, -1.0) if r is None else r for r in rows]).double().cpu()


def choose_threshold(agreements: Tensor, saving: float) -> Calibration:
    """The highest threshold that saves at least the share `saving` of the evaluations of two branches.

    agreements: (steps, B) of runs with full guidance. A row that reaches the threshold at step i (of N, from 0) is
    guided up to i and saves N - 1 - i of 2 N evaluations. The threshold is put half-way to the next lower agreement, so
    that rounding does not flip a decision.
    """
    steps = len(agreements)
    most = (steps - 1) / (2 * steps)
    if not 0 < saving <= most:
        raise UsageError(
            f"saving={saving} cannot be had: dropping one of two branches after the first of {steps} steps saves "
            f"{most:.3f}; give a share above 0 and up to that"
        )
    highest = torch.cummax(agreements.double(), dim=0).values  # reached by step i
    values = torch.unique(highest)  # ascending; saving falls as the threshold rises
    low, high = 0, len(values) - 1  # the lowest value saves the most
    while low < high:
        middle = (low + high + 1) // 2
        if _saved(highest, float(values[middle])) >= saving - 1e-12:
            low = middle
        else:
            high = middle - 1
    below = float(values[low - 1]) if low > 0 else -math.inf
    threshold = (max(below, -1.0) + float(values[low])) / 2
    last = (highest < threshold).sum(dim=0).clamp(max=steps - 1)
    return Calibration(threshold, _saved(highest, threshold), last, agreements)


def _saved(highest: Tensor, threshold: float) -> float:
    """Share of the evaluations of two branches that this threshold saves."""
    steps = len(highest)
    guided = ((highest < threshold).sum(dim=0) + 1).clamp(max=steps)
    return float((steps - guided).double().mean()) / (2 * steps)
