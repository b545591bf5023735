"""The coefficients of LinearAG belong to a model, a rule, a scheduler and a number of steps: fit them.

fitted = fit_linear(pipe, [dict(prompt=prompts, num_inference_steps=20)], "cfg:scale=5")
fitted.save("linear.json")                       # then: cfg:scale=5 + linear:file=linear.json
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import UsageError
from .compose import compose, parts_of
from .grammar import parse, spell
from .modifiers.linear import LinearCoefficients, LinearFit, Watch
from .rule import Rule


def fit_linear(
    pipe: Any,
    calls: Iterable[Mapping[str, Any]],
    rule: Rule | str = "cfg:scale=7.5",
    *,
    model: str = "",
    networks: Mapping[str, nn.Module] | None = None,
    ridge: float = 1e-6,
) -> LinearCoefficients:
    """Run the pipeline with full guidance once for each of the calls, and fit by least squares.

    calls: the arguments of each call of the pipeline, of one number of steps; what switches its guidance on is added.
    rule: the one that will be run with the coefficients; it must guide at every step. model: a name for the file.
    ridge: see `LinearFit`. Raises UsageError for a rule that cannot be fitted.
    """
    from .pipelines import attach

    plain = parse(rule) if isinstance(rule, str) else rule
    fit = LinearFit(model, scale=_scale_of(plain), ridge=ridge, rule=spell(plain))
    takes = inspect.signature(type(pipe).__call__).parameters
    for call in calls:
        with attach(pipe, compose(plain, Watch()), networks) as run:
            on = {name: value for name, value in run.adapter.on_settings if name in takes}
            latent = {"output_type": "latent"} if "output_type" in takes and "class_labels" not in takes else {}
            pipe(**{**on, **latent, **call})
        fit.add(run.steps)
    return fit.solve()


def _scale_of(rule: Rule) -> float:
    """Refuses what `linear` cannot stand around."""
    rules, modifiers = parts_of(rule)
    outer = [type(part).__name__ for part in modifiers if part.order >= Watch.order]
    if outer:
        raise UsageError(
            f"{outer[0]} goes around linear; fit without it, and add it to the line that uses the coefficients"
        )
    scales = [part.scale for part in rules if hasattr(part, "scale")]
    if "uncond" not in rule.needs or not scales or not all(isinstance(s, (int, float)) and s != 1 for s in scales):
        raise UsageError(f"there is no null prediction to estimate in {spell(rule)!r}; fit a rule such as cfg:scale=5")
    return float(scales[0])
