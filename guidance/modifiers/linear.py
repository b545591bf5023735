"""LinearAG: Castillo et al. 2023, arXiv 2312.12487. The null prediction out of those already known.

    fit_linear(pipe, [call, ...], "cfg:scale=5").save("linear.json")    # or pilotage fit-linear-ag
    rule = parse("cfg:scale=5 + linear:file=linear.json")

Scalar coefficients, shared by all pixels, are our reading of the paper: experimental.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...documents import plain_json
from ...errors import UsageError
from ...samplers.prediction import Prediction
from ...storage import write_text
from ..compose import parts_of
from ..rule import Ask, Asks, Context, Guide, Modifier, Origin, Rule, as_round
from .threshold import observed

_NULL = Ask("uncond")
_SAME = 1e-3  # relative difference of noise levels that still counts as the same grid


@dataclass(frozen=True)
class LinearCoefficients:
    """What was fitted, and for what.

    rhos: the noise level of each step, (N,). cond, null: for each step i the weights of the conditional predictions of
    steps 0..i and the null predictions of steps 0..i-1. intercept: one a step. residual: the share of the null
    prediction's power that the fit does not explain, one a step. rule: the line that was run, "" for any of this scale.
    network: a name of the weights, "" where they are not known.
    """

    model: str
    scheduler: str
    null_prompt: str
    scale: float
    rhos: tuple[float, ...]
    cond: tuple[tuple[float, ...], ...]
    null: tuple[tuple[float, ...], ...]
    intercept: tuple[float, ...]
    residual: tuple[float, ...] = ()
    rule: str = ""
    network: str = ""

    @property
    def steps(self) -> int:
        return len(self.rhos)

    def save(self, path: str | Path) -> None:
        """As JSON; every number reads back to the same bits. Infinite noise levels are written as the word."""
        content = {**asdict(self), "rhos": [r if math.isfinite(r) else "inf" for r in self.rhos]}
        write_text(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> LinearCoefficients:
        try:
            content = plain_json(Path(path).read_text(encoding="utf-8"))
            for key in ("rhos", "intercept", "residual"):
                content[key] = tuple(map(float, content[key]))
            for key in ("cond", "null"):
                content[key] = tuple(tuple(map(float, row)) for row in content[key])
            made = LinearCoefficients(**content)
        except OSError as error:
            raise UsageError(f"cannot read the linear coefficients {path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{path} holds no linear coefficients; write it with LinearFit.solve().save") from None
        sound = all(len(c) == i + 1 and len(n) == i for i, (c, n) in enumerate(zip(made.cond, made.null)))
        if not sound or not len(made.cond) == len(made.null) == len(made.intercept) == made.steps:
            raise UsageError(f"{path} is damaged: its lists do not belong to {made.steps} steps; fit it again")
        return made


@dataclass
class LinearFit:
    """Ordinary least squares for each step, from the normal equations of all of them at once: one Gram matrix of the
    2 N series of predictions (and a constant), summed over pixels and pictures in float64.

    ridge: times the mean diagonal of each step's equations. intercept: fit a constant, too. window: use only the last
    so many steps (0: all). What is not told of the run is taken from the records.
    """

    model: str = ""
    scheduler: str = ""
    null_prompt: str = ""
    scale: float = 7.5
    ridge: float = 1e-6
    intercept: bool = False
    window: int = 0
    rule: str = ""
    network: str = ""
    rhos: tuple[float, ...] = ()
    gram: Tensor | None = field(default=None, repr=False)

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """The step records of a run that `Watch` looked at."""
        if not records or any("cond_noise" not in r or "uncond_noise" not in r for r in records):
            raise UsageError("this run was not recorded on every step; run a rule that always guides, + Watch()")
        rhos = tuple(float(r["rho"]) for r in records)
        if self.rhos and not _alike(self.rhos, rhos):
            raise UsageError("the runs of one fit must visit the same noise levels; use one scheduler and step count")
        series = [r[k].detach().cpu().double().flatten() for k in ("cond_noise", "uncond_noise") for r in records]
        table = torch.stack([*series, torch.ones_like(series[0])])
        gram = table @ table.T
        origin = records[0].get("origin", {})
        self.network = self.network or origin.get("network", "")
        self.scheduler = self.scheduler or origin.get("scheduler", "")
        self.null_prompt = self.null_prompt or origin.get("negative", "")
        self.rhos, self.gram = rhos, gram if self.gram is None else self.gram + gram

    def solve(self) -> LinearCoefficients:
        if self.gram is None:
            raise UsageError("nothing to fit; add the records of some runs first (the paper has 200 pictures)")
        steps = len(self.rhos)
        cond, null, constants, residuals = [], [], [], []
        for i in range(steps):
            first = max(0, i + 1 - self.window) if self.window else 0
            of_cond, of_null = range(first, i + 1), range(steps + first, steps + i)
            used = [*of_cond, *of_null, *([2 * steps] if self.intercept else [])]
            block, aim = self.gram[used][:, used], self.gram[used, steps + i]
            ridge = self.ridge * block.diagonal().mean()
            weights = torch.linalg.lstsq(block + ridge * torch.eye(len(used), dtype=torch.float64), aim[:, None])
            solved = weights.solution[:, 0]
            power = self.gram[steps + i, steps + i]
            left = power - 2 * solved @ aim + solved @ block @ solved
            found = dict(zip(used, solved.tolist(), strict=True))
            cond.append(tuple(found.get(j, 0.0) for j in range(i + 1)))
            null.append(tuple(found.get(steps + j, 0.0) for j in range(i)))
            constants.append(found.get(2 * steps, 0.0))
            residuals.append(max(0.0, float(left / power)) if power > 0 else 0.0)
        return LinearCoefficients(
            self.model, self.scheduler, self.null_prompt, self.scale, self.rhos,
            tuple(cond), tuple(null), tuple(constants), tuple(residuals), self.rule, self.network,
        )  # fmt: skip


@dataclass(frozen=True)
class Watch(Modifier):
    """Write both branches' noise predictions into the step records, for `LinearFit`; changes nothing, costs nothing."""

    order: ClassVar[int] = 29
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        guided, asked = yield from observed(self.rule.guide(ctx))
        if Ask() in asked and asked.get(_NULL, 0) is None:
            cond, uncond = yield Ask(), _NULL
            ctx.log(cond_noise=cond.noise, uncond_noise=uncond.noise)
        if ctx.step == 0 and ctx.origin is not None:
            ctx.log(origin=ctx.origin())
        return guided


@dataclass(frozen=True)
class LinearAG(Modifier):
    """Guide fully on every `every`-th step, with an estimated null prediction on the others, and not at all late.

    file: fitted coefficients, for one model, scheduler, null prompt, number of steps and scale; none is off. every: 1
    never estimates. guided: share of the run that is guided, 1 is all of it; the rest is conditional. model, scheduler,
    null_prompt: what is run now, compared with the file where it is told; noise levels, rule and scale are compared in
    any case, and under `attach` the network's weights, the scheduler and the negative prompt. Fit with the rule that
    will be run. Works in the noise. Keeps the predictions of every guided step. Experimental.
    """

    file: str = ""
    every: int = 2
    guided: float = 0.5
    model: str = ""
    scheduler: str = ""
    null_prompt: str = ""

    order: ClassVar[int] = 28
    passes: ClassVar[int] = 8  # at the fourth step; more at later ones, where it estimates

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"linear every={self.every} must be at least 1, which never estimates")
        if self.file:
            self._refuse_mismatch(_loaded(self.file))

    def _refuse_mismatch(self, fit: LinearCoefficients) -> None:
        for name in ("model", "scheduler", "null_prompt"):
            if getattr(self, name) not in ("", getattr(fit, name)):
                self._refuse(name, getattr(fit, name), getattr(self, name))
        if self.inner is not None and fit.rule:
            if self.inner != _rule_of(fit.rule):
                self._refuse("rule", fit.rule, _line_of(self.inner))
            return
        scales = [rule.scale for rule in parts_of(self.rule)[0] if hasattr(rule, "scale")]
        if any(scale != fit.scale for scale in scales):
            raise UsageError(f"{self.file} was fitted at scale={fit.scale}, not {scales[0]}; fit it again")

    def _refuse(self, what: str, then: str, now: str) -> None:
        raise UsageError(f"{self.file} was fitted for {what}={then!r}, not {now!r}; fit it again for what runs now")

    def refuse(self, origin: Origin) -> None:
        fit = _loaded(self.file) if self.file else None
        if fit is not None and fit.network:  # else it was fitted by hand
            then = {"network": fit.network, "scheduler": fit.scheduler, "negative": fit.null_prompt}
            for what, now in origin().items():
                if now != then[what]:
                    self._refuse(what, then[what], now)
        self.rule.refuse(origin)

    def guide(self, ctx: Context) -> Guide:
        if not self.file:
            return (yield from self.rule.guide(ctx))
        fit = _loaded(self.file)
        if ctx.step == 0 and ctx.origin is not None:
            self.refuse(ctx.origin)
        if ctx.steps != fit.steps or not _alike((ctx.start.rho,), fit.rhos[ctx.step : ctx.step + 1]):
            raise UsageError(
                f"{self.file} was fitted for {fit.steps} steps, of other noise levels than these {ctx.steps}; fit again"
            )
        if ctx.step >= self.guided * ctx.steps:
            ctx.log(scale=1.0)
            (cond,) = yield (Ask(),)
            return cond
        if ctx.step % self.every == 0:
            guided, asked = yield from observed(self.rule.guide(ctx))
            if Ask() not in asked or _NULL not in asked:
                return guided
            cond, null = yield Ask(), Ask("uncond", rows=asked[_NULL])  # both are known
        else:
            (cond,) = yield (Ask(),)
            null = self._estimate(ctx, cond, fit)
            ctx.log(estimated=1.0)
            guided = yield from answered(self.rule.guide(ctx), {_NULL: null})
        ctx.scoped(2 * ctx.step).keep(self, cond.noise)
        ctx.scoped(2 * ctx.step + 1).keep(self, null.noise)
        return guided

    def _estimate(self, ctx: Context, cond: Prediction, fit: LinearCoefficients) -> Prediction:
        """sum_j cond_j noise_c(j) + sum_j null_j noise_n(j) + intercept."""
        i = ctx.step
        total = cond.noise * fit.cond[i][i] + fit.intercept[i]
        for j in range(i):
            for place, weight in ((2 * j, fit.cond[i][j]), (2 * j + 1, fit.null[i][j])):
                if weight:
                    before = ctx.scoped(place).recall(self)
                    if before is None:
                        raise UsageError("linear guidance needs every earlier step of its run; do not start it inside")
                    total = torch.add(total, before, alpha=weight)
        return cond.with_noise(total)


@lru_cache(maxsize=16)
def _rule_of(line: str) -> Rule:
    from ..grammar import parse

    return parse(line)


def _line_of(rule: Rule) -> str:
    """The line of a rule; its repr where it can only be built in Python."""
    from ..grammar import spell

    try:
        return spell(rule)
    except UsageError:
        return repr(rule)


def _loaded(path: str) -> LinearCoefficients:
    file = Path(path)
    return _read(path, file.stat().st_mtime_ns if file.is_file() else 0)


@lru_cache(maxsize=16)
def _read(path: str, written: int) -> LinearCoefficients:
    return LinearCoefficients.load(path)


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """The same noise levels, but for rounding."""
    return len(a) == len(b) and all(p == q or abs(p - q) <= _SAME * abs(q) for p, q in zip(a, b, strict=True))


def answered(guide: Guide, known: Mapping[Ask, Prediction]) -> Generator[Asks, tuple[Prediction, ...], Prediction]:
    """Run a rule's generator with some of its asks answered from here."""
    answers: Any = None
    try:
        while True:
            wanted = as_round(guide.send(answers))
            asked = tuple(ask for ask in wanted if ask not in known)
            replies = iter((yield asked) if asked else ())
            answers = tuple(known[ask] if ask in known else next(replies) for ask in wanted)
    except StopIteration as stop:
        return stop.value
    finally:
        guide.close()
