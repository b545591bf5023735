"""AlignProp: backpropagation through the sampler, with as many steps in the graph as a draw says.

Prabhudesai et al. 2023, arXiv 2310.03739: a number of steps K; those before the last K run without a graph; of each
of the last K only its input is stored, and it is computed once more on the way back. T F + K (F + B) of the network,
where keeping all graphs is T F + K B: a ratio of (2F + B) / (F + B) at K = T.

K is drawn once an update, for all its pictures. Drawn inside the step loop, as one public trainer did, it would bound
no memory: each step would keep its graph by itself. Drawn for each batch, the gradient would depend on how pictures are
grouped, and processes would wait for the one with the longest K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import UsageError, nearest
from ...samplers.adjoint.chain import Chain
from ...samplers.adjoint.checkpoint import remembered
from ...samplers.adjoint.registry import make_method
from ...samplers.adjoint.sample import sample
from ...samplers.adjoint.tensors import mapped
from ...training.learner import Learner
from ..method import Sampling, UpdateContext
from .backprop import Backprop, Losses, Visit
from .batch import Batch
from .last_steps import LastSteps, shortened

DRAWS = ("random", "uniform")
STEPWISE = ("discrete", "checkpoint", "full")  # these go step by step, so they can begin anywhere


@dataclass(frozen=True, kw_only=True)
class AlignProp(Backprop):
    """truncation: K, the steps in the graph: "random", "uniform" in 1 .. steps, "none" for all, or a number.
    mean, std: of the random K, a normal number in shares of the steps, drawn again outside 1 .. steps; the defaults are
    the original's 8 and 5 of 50. gradient: "discrete" and "checkpoint" store the inputs of steps, the latter also where
    a network drops out; "full" keeps all graphs; with truncation "none" any line of `samplers.adjoint`. keep: so many
    steps at the end keep their graph under "discrete", which costs memory and saves time. clip: the longest gradient of
    a picture's own loss in x that goes back over a step's end (in fp16, of the scaled loss); 0 is no bound.
    """

    truncation: int | str | None = "random"
    gradient: str = "discrete"
    keep: int = 0
    mean: float = 0.16
    std: float = 0.1
    clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        k = self.truncation
        if isinstance(k, str) and k not in (*DRAWS, "none"):
            raise UsageError(
                f"truncation is a number of steps, random, uniform or none: {nearest(k, (*DRAWS, 'none'))}"
            )
        if isinstance(k, int) and k < 1:
            raise UsageError(f"truncation={k}: differentiate at least one step")
        if not 0 < self.mean <= 1 or self.std < 0:
            raise UsageError(
                f"mean={self.mean:g}, std={self.std:g}: shares of the steps, mean in (0, 1], std 0 or more"
            )
        if self.clip < 0:
            raise UsageError(f"clip={self.clip:g} is the longest gradient of a picture; 0 is no bound")
        if self.keep and (self.keep < 0 or self.clip or self.gradient != "discrete"):
            raise UsageError(f"keep={self.keep} is a number of steps, for gradient=discrete without clip")
        make_method(self.gradient)
        if self.gradient not in STEPWISE:
            self._refuse_with_whole_run()

    def _refuse_with_whole_run(self) -> None:
        if not self.whole:
            raise UsageError(f"gradient={self.gradient} differentiates the whole run: write truncation=none with it")
        if self.kl or self.clip:
            what = "kl" if self.kl else "clip"
            raise UsageError(f"{what} needs the states between steps: use gradient=discrete instead of {self.gradient}")

    @property
    def whole(self) -> bool:
        return self.truncation in (None, "none")

    def last(self, steps: int, seed: int) -> int:
        """K for a run of so many steps."""
        k = self.truncation
        if isinstance(k, int):
            if k > steps:
                raise UsageError(f"truncation={k} of a run of {steps} steps: write {steps} or less, or none")
            return k
        if self.whole:
            return steps
        draws = torch.Generator().manual_seed(seed)
        if k == "uniform":
            return int(torch.randint(1, steps + 1, (), generator=draws))
        return drawn(self.mean * steps, self.std * steps, steps, draws)

    def check(self, learner: Learner, sampling: Sampling) -> None:
        super().check(learner, sampling)
        self.last(sampling.steps, 0)

    def told(self, ctx: UpdateContext) -> dict[str, float]:
        return {"truncation": self.last(ctx.sampling.steps, ctx.seed("truncation"))}

    def visit(self, ctx: UpdateContext, batch: Batch) -> Visit:
        if self.gradient not in STEPWISE:
            return Visit(batch, [], self._whole(batch))
        chain, x = batch.chain(), batch.start()
        last = chain.steps(chain.begin(x))
        if not self.whole:
            last = min(last, self.last(ctx.sampling.steps, ctx.seed("truncation")))
        most = self.clip * self.scale / len(ctx.prompts)
        if self.gradient == "discrete":
            sweep = LastSteps(chain, last, self.keep, most, watched=self.kl > 0)
            end = sweep.run(x)
            states, sweep.visited = sweep.visited, []
            return Visit(batch, states, end)
        return self._in_the_graph(batch, chain, x, last, most)

    def _in_the_graph(self, batch: Batch, chain: Chain, x: Tensor, last: int, most: float) -> Visit:
        state, states = chain.begin(x), []
        while not chain.done(state):
            states.append(mapped(state, Tensor.detach))
            with torch.set_grad_enabled(chain.steps(state) <= last):
                if most and state.x.requires_grad:
                    state.x.register_hook(partial(shortened, most=most))
                state = remembered(chain, chain.step, state) if self.gradient == "checkpoint" else chain.step(state)
        return Visit(batch, states, chain.end(state))

    def _whole(self, batch: Batch) -> Tensor:
        return sample(
            batch.denoiser,
            batch.start(),
            method=self.gradient,
            sampler=batch.sampling.sampler,
            grid=batch.levels,
            noise=batch.noise,
            parameters=batch.learner.parameters,
        )

    def losses(self, visit: Visit, judge: Losses) -> Tensor:
        return judge(visit.x)


def drawn(mean: float, std: float, steps: int, draws: torch.Generator) -> int:
    """The nearest whole number to N(mean, std^2), drawn again until it lies in 1 .. steps."""
    for _ in range(10_000):
        k = round(mean + std * float(torch.randn((), generator=draws)))
        if 1 <= k <= steps:
            return k
        if not std:
            break
    return min(max(round(mean), 1), steps)
