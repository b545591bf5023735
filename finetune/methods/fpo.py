"""FPO: a policy gradient without densities (McAllister et al. 2025, arXiv 2507.21053; akanazawa/fpo).

How likely a picture is under the model is judged by how well the model denoises it:

    l(theta) = mean over pairs (t_i, eps_i) of |prediction_theta(alpha_t x_0 + sigma_t eps, t) - target|^2
    ratio    = exp(l(theta when sampled) - l(theta))                      the same pairs in both

and PPO's clipped ratio as usual. Any sampler will do, deterministic ones too. The ratio is that of bounds of the
likelihood, not of the likelihood itself. No advantage on pictures is published.

Keep the learning rate low: to make a bad picture less likely the denoising error is raised, and nothing but the clip
stops it. In our toys a rate at which DDPO learns well let one run in three diverge, and more with several inner epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UsageError
from ...samplers.loop import sample
from ...samplers.noise import SeededNoise
from ...samplers.prediction import Prediction
from ...samplers.sampler import Levels
from ..method import Part, UpdateContext
from ..policy_gradient import Piece, PolicyGradient, chunks, prompt_advantages, score

SPACES = ("noise", "velocity")


@dataclass(frozen=True, kw_only=True)
class FPO(PolicyGradient):
    """pairs: (t, eps) of a picture; t from the levels of the run. space: of the loss, "noise" or "velocity", which is
    noise - x_0. each: the ratio is the mean of those of single pairs, whose differences are cut to +-3, instead of that
    of the mean. buffer, least: as with DDPO.

    The loss is that of the conditional model itself, without guidance. Pairs count as rows of the network.
    """

    clip: float = 0.05
    pairs: int = 8
    space: str = "noise"
    each: bool = False
    buffer: int = 32
    least: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space not in SPACES:
            raise UsageError(f'the space of the loss is "noise" or "velocity", not {self.space!r}')
        if self.pairs < 1:
            raise UsageError(f"pairs must be at least 1, not {self.pairs}")

    def update(self, ctx: UpdateContext) -> Iterator[Part]:
        levels = ctx.learner.levels(ctx.sampling.grid, ctx.sampling.steps)
        clean = _sampled(ctx, levels)
        rewards = score(ctx, clean, ctx.prompts)
        advantages = prompt_advantages(ctx, ctx.prompts, rewards, self.least, newest=self.buffer)
        drawn = _drawn(ctx, levels, self.pairs)
        together = max(1, ctx.rows // self.pairs)
        everyone = list(range(len(clean)))
        with torch.no_grad():
            before = torch.cat([self.losses(ctx, clean, levels, drawn, rows) for rows in chunks(everyone, together)])

        def pieces(rows: list[int], epoch: int) -> list[Piece]:
            return [Piece(part) for part in chunks(rows, together)]

        def terms(piece: Piece) -> tuple[Tensor, Tensor]:
            ratio = self.ratio(before[piece.rows], self.losses(ctx, clean, levels, drawn, piece.rows))
            return ratio, torch.zeros_like(ratio)

        yield from self.improve(ctx, everyone, advantages, pieces, terms)

    def ratio(self, before: Tensor, now: Tensor) -> Tensor:
        """(n,) of losses (n, pairs)."""
        if self.each:
            return (before - now).clamp(-3, 3).exp().mean(1)
        return (before - now).mean(1).exp()

    def losses(self, ctx: UpdateContext, clean: Tensor, levels: Levels, drawn: Tensor, rows: list[int]) -> Tensor:
        """(len(rows), pairs): squared errors, the mean over the numbers of a latent. clean: (B, *shape). drawn:
        (B, pairs), which level each pair has."""
        chosen = drawn[rows]
        found = clean.new_zeros(chosen.shape)
        for i in chosen.unique().tolist():
            places = (chosen == i).nonzero()
            of = [rows[k] for k in places[:, 0].tolist()]
            eps = _noise(ctx, of, places[:, 1].tolist(), clean)
            level, x_0 = levels[i], clean[of]
            x = level.alpha * x_0 + level.sigma * eps
            told = ctx.learner.denoiser([ctx.prompts[row] for row in of])(x, level)
            error = self._error(told, x_0, eps).square().flatten(1).mean(1)
            found = found.index_put(tuple(places.T.to(found.device)), error)
        return found

    def _error(self, told: Prediction, x_0: Tensor, eps: Tensor) -> Tensor:
        return told.noise - eps if self.space == "noise" else (told.noise - told.denoised) - (eps - x_0)


@torch.no_grad()
def _sampled(ctx: UpdateContext, levels: Levels) -> Tensor:
    """(B, *shape): clean latents of this update's pictures, `ctx.rows` at a time."""
    found = []
    for rows in chunks(list(range(len(ctx.seeds))), ctx.rows):
        prompts, seeds = [ctx.prompts[row] for row in rows], [ctx.seeds[row] for row in rows]
        denoiser, start = ctx.learner.denoiser(prompts, ctx.sampling.guidance), ctx.learner.start(seeds, levels)
        found.append(sample(denoiser, start, sampler=ctx.sampling.sampler, grid=levels, noise=SeededNoise(seeds)))
    return torch.cat(found)


def _drawn(ctx: UpdateContext, levels: Levels, pairs: int) -> Tensor:
    """(B, pairs): which of the noisy levels, each picture's own draws."""
    generators = SeededNoise(list(ctx.seeds)).generators("fpo levels", ctx.update)
    return torch.stack([torch.randint(len(levels) - 1, (pairs,), generator=g) for g in generators])


def _noise(ctx: UpdateContext, rows: list[int], pairs: list[int], like: Tensor) -> Tensor:
    """(n, *shape): the noise of these pairs of these pictures."""
    drawn = [SeededNoise([ctx.seeds[row]]).draw("fpo noise", pair, like[:1]) for row, pair in zip(rows, pairs)]
    return torch.cat(drawn)
