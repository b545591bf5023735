"""Gradient hygiene, once for every rule with a gradient.

A rule opens its own graph whatever the mode outside, differentiates the sum over the batch (each row then gets its own
gradient, for no row sees another), and hands back tensors without a graph. State never holds one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ...samplers.prediction import Prediction
from ...samplers.schedule import Level
from ..reduce import norm, safe_ratio
from ..rule import Ask, Asks, Context, Guide, Point, Rule, as_round
from ..scale import Scale
from ..trees import map_tensors

HALF_GAIN = 1024.0  # gradients of float16 classifiers underflow; a power of two changes no other bit


@contextmanager
def graph() -> Iterator[None]:
    """Gradients are recorded inside, also under no_grad and inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def gradient(values: Callable[[Tensor], Tensor], at: Tensor, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """values(at) (B,) and its gradient, row by row, in the shape of `at`; both without a graph."""
    with graph():
        leaf = at.detach().clone().requires_grad_()
        result = values(leaf)
        return result.detach(), pulled(result, leaf, gain)


def pulled(values: Tensor, at: Tensor, gain: float = 1.0, keep: bool = False) -> Tensor:
    """Gradient of the rows' sum; `keep` leaves the graph for others."""
    if not values.requires_grad:
        raise UsageError(
            "the loss has no gradient: does it, its classifier or decode run under torch.no_grad or on integers?"
        )
    with graph():
        total = values.sum() * gain
        (found,) = torch.autograd.grad(total, at, retain_graph=keep, allow_unused=True)
    if found is None:
        return torch.zeros_like(at)
    return found.detach() / gain if gain != 1 else found.detach()


def half_gain(network: Any) -> float:
    """The gain for this network's gradients."""
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else ()
    return HALF_GAIN if any(p.dtype == torch.float16 for p in parameters) else 1.0


# -- through the denoiser ---------------------------------------------------------------------------------------------


def traced(rule: Rule, ctx: Context, point: Point, keep: bool = True) -> Generator[Asks, Any, Prediction]:
    """The whole rule's prediction at a point whose x carries a graph, with the graph through every network it asks.

    keep: write what the rule remembers, without its graph; not for looks that lie off the trajectory.
    """
    there = replace(ctx, x=point.x, level=point.level, kept={}, memory=plain(ctx.memory))

    def moved(ask: Ask) -> Ask:
        edit = ask.edit if not torch.is_inference_mode_enabled() else Plain(ask.edit)
        return replace(ask, at=ask.at or point, grad=True, edit=edit)

    prediction = yield from _in_graph(rule.guide(there), moved)
    if point.x.requires_grad and not prediction.native.requires_grad:
        raise UsageError(
            f"{type(rule).__name__} answers without a gradient in x: use a network that does not switch "
            "gradients off itself"
        )
    if keep:
        ctx.kept.update({key: map_tensors(value, Tensor.detach) for key, value in there.kept.items()})
    return prediction


def _in_graph(guide: Guide, edit: Callable[[Ask], Ask]) -> Generator[Asks, Any, Prediction]:
    """The rule's arithmetic is recorded; what happens between its rounds is not."""
    answers: Any = None
    try:
        while True:
            with graph():
                asks = as_round(guide.send(answers))
            answers = yield tuple(edit(ask) for ask in asks)
    except StopIteration as stop:
        return stop.value
    finally:
        guide.close()


@dataclass(frozen=True)
class Plain:
    """An edit whose result may be saved for a backward pass, also under inference_mode."""

    edit: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None

    def __call__(self, conditioning: Any) -> Any:
        return plain(self.edit(conditioning) if self.edit else conditioning)


def plain(tree: Any) -> Any:
    """The tree with copies for tensors made under inference_mode, which no graph may hold."""
    with torch.inference_mode(False):
        return map_tensors(tree, lambda t: t.clone() if t.is_inference() else t)


def at_rest(rule: Rule, ctx: Context, point: Point, keep: bool = True) -> Generator[Asks, Any, Prediction]:
    """The rule's prediction at another point, without a graph."""
    there = replace(ctx, x=point.x, level=point.level, kept={})
    guide = rule.guide(there)
    answers: Any = None
    try:
        while True:
            asks = as_round(guide.send(answers))
            answers = yield tuple(replace(ask, at=ask.at or point) for ask in asks)
    except StopIteration as stop:
        if keep:
            ctx.kept.update(there.kept)
        return stop.value
    finally:
        guide.close()


def without_graph(p: Prediction, x: Tensor) -> Prediction:
    """The same answer at x (the same values), with nothing that leads into the network."""
    base = without_graph(p.base, x) if p.base is not None else None
    return Prediction(x, p.level, p.native.detach(), p.kind, base)


# -- what a gradient does to a prediction -----------------------------------------------------------------------------


def nudged(p: Prediction, change: Tensor | None) -> Prediction:
    """The clean estimate moved by `change`, and the noise with it: another score at the same point."""
    _, slope = p.kind.denoised(p.level)
    if change is None or slope == 0:
        return p
    return p.like(torch.add(p.native, change, alpha=1 / slope))


def nudged_score(p: Prediction, change: Tensor) -> Prediction:
    """The score moved by `change`: noise - sigma change, denoised + sigma^2 / alpha change. At alpha = 0, where the
    noise is x itself, nothing moves."""
    level = p.level
    return p if level.alpha == 0 else nudged(p, change * (level.sigma**2 / level.alpha))


def shifted(p: Prediction, change: Tensor | None) -> Prediction:
    """The clean estimate moved, its noise kept: any sampler's step then ends alpha' change away."""
    return p if change is None else nudged(p, change).renoised_with(p)


def seen_from(ctx: Context, p: Prediction) -> Prediction:
    """A prediction made at a moved x, for a step that starts at ctx.x: the step runs on its clean estimate, and the
    displacement follows as sigma'/sigma of itself, as the step from the moved x has it (DDIM, Euler, DPM++ 2M)."""
    if p.x is ctx.x:
        return p
    base = Prediction(ctx.x, p.level, p.native, p.kind).with_denoised(p.step_on.denoised)
    carried = (p.x - ctx.x) * (ctx.goal.sigma / (p.level.sigma * ctx.goal.alpha)) + (p.denoised - p.step_on.denoised)
    return shifted(base, carried)


# -- sizes ------------------------------------------------------------------------------------------------------------

NORMALISATIONS = ("none", "loss", "root", "unit", "x")


def normalised(how: str, grad: Tensor, values: Tensor, x: Tensor, ctx: Context) -> Tensor:
    """A loss's gradient, each row by itself: "none" as it is; "loss" / |loss|; "root" / (2 sqrt |loss|), which is the
    gradient of the residual's norm when the loss is its square; "unit" of norm 1; "x" of the norm of x."""
    if how == "none":
        return grad
    if how in ("loss", "root"):
        size = values.abs() if how == "loss" else 2 * values.abs().sqrt()
        factor = safe_ratio(torch.ones_like(size), size)
    else:
        wanted = norm(x) if how == "x" else torch.ones_like(norm(grad))
        factor = safe_ratio(wanted, norm(grad))
    return grad * ctx.column(factor.to(grad.dtype))


def check_word(who: str, setting: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UsageError(f"{who} {setting}={word!r} is unknown: {nearest(word, known)}")


def is_zero(weight: Scale) -> bool:
    return all(w == 0 for w in weight) if isinstance(weight, tuple) else weight == 0


def posterior_variance(start: Level, goal: Level) -> float:
    """Variance of the ancestral step, sigma'^2 (1 - rho'^2 / rho^2)."""
    ratio = goal.rho / start.rho if start.rho < float("inf") else 0.0
    return goal.sigma**2 * (1 - ratio**2)
