"""Distribution matching: a student of one or a few steps whose noised pictures come to have the teacher's distribution.

    x_t = alpha_t G(z) + sigma_t eps
    gradient in G(z):  h(r) w (D_fake(x_t) - D_teacher(x_t)),   r = p_teacher / p_student at x_t

h = f''(r) r^2 of an f-divergence (f-distill: Xu et al. 2025, arXiv 2502.15681); h = 1 is the reverse KL of VSD
(arXiv 2305.16213), SwiftBrush (arXiv 2312.05239), DMD (arXiv 2311.18828) and DMD2 (arXiv 2405.14867). The ratio is
read from a discriminator of noised real pictures and noised made ones, and the student's score from a second denoiser,
the fake one, which learns on the student's pictures all the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...samplers.noise import derived_seed
from ...samplers.prediction import Prediction
from ...samplers.schedule import Level
from ..divergences import Divergence, make_divergence
from ..head import generator_loss, head_loss, r1
from ..method import DistillContext, DistillMethod, Part, Pictures
from ..ratio import RatioWeights
from ..roles import FAKE, HEAD, STUDENT, Roles
from ..scales import with_scale
from ..times import Group, Times

NORMALISED, NOISE, NATIVE = "normalised", "noise", "native"


@dataclass(frozen=True, kw_only=True)
class DistributionMatching(DistillMethod):
    """divergence: of teacher and student, a name of `DIVERGENCES`. critic_steps: steps of the helpers in an update.
    student_steps: evaluations of a picture of the student; more than one are trained on its own earlier steps.

    adversarial: weight of the generator's loss against the head. features: of which network, "teacher" or "fake", the
    head sees the middle block; with "fake" the head's loss, times `coupling`, teaches that network too.
    weighting: "normalised" by the mean error of the teacher's estimate (DMD), or "noise": sigma^2 times the difference
    of the noises (SwiftBrush). fake_error: what the fake learns to lower: "native", the error of what its network
    predicts, or "noise", that of alpha times the noise (SwiftBrush). fake_guided: the fake is guided as the teacher is;
    then `dropout` of its prompts are empty while it learns. scale_low, scale_high: the teacher's scale is drawn between
    them, instead of the rule's own.
    regression: weight of the distance to what the teacher made of the same noise, which needs data of pairs.
    low, high: shares of the noise range; strata: levels a batch has. clip_low, clip_high, bins, bin_average: of the
    ratio (`RatioWeights`). r1: weight of the head's approximate gradient penalty.
    """

    divergence: str = "reverse-kl"
    critic_steps: int = 5
    student_steps: int = 1
    adversarial: float = 0.0
    features: str = "teacher"
    coupling: float = 1e-2
    weighting: str = NORMALISED
    fake_error: str = NATIVE
    fake_guided: bool = False
    dropout: float = 0.0
    scale_low: float | None = None
    scale_high: float | None = None
    regression: float = 0.0
    low: float = 0.02
    high: float = 0.98
    strata: int = 8
    clip_low: float = 0.1
    clip_high: float = 20.0
    bins: int = 10
    bin_average: float = 0.0
    r1: float = 0.0

    def __post_init__(self) -> None:
        make_divergence(self.divergence)
        self.weights_of_ratio  # noqa: B018, refuses settings that are none
        named = ("adversarial", "coupling", "regression", "r1")
        if below := next((name for name in named if getattr(self, name) < 0), None):
            raise UsageError(f"{below} is a weight and must not be below 0; 0 is off")
        self.times  # noqa: B018, refuses ranges that are none
        if self.critic_steps < 1 or self.student_steps < 1:
            raise UsageError("critic_steps and student_steps must be at least 1")
        if self.features not in ("teacher", "fake"):
            raise UsageError(f'the head sees features of the "teacher" or the "fake", not {self.features!r}')
        if self.weighting not in (NORMALISED, NOISE):
            raise UsageError(f'weighting is "{NORMALISED}" or "{NOISE}", not {self.weighting!r}')
        if self.fake_error not in (NATIVE, NOISE):
            raise UsageError(f'fake_error is of "{NATIVE}" or "{NOISE}", not {self.fake_error!r}')
        if (self.scale_low is None) != (self.scale_high is None):
            raise UsageError("give both scale_low and scale_high, or neither")
        if self.scale_low is not None and self.scale_high is not None and self.scale_low > self.scale_high:
            raise UsageError(f"scale_low={self.scale_low:g} is above scale_high={self.scale_high:g}; turn them round")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is a share of the prompts, from 0 to below 1, not {self.dropout}")

    # -- what it takes -----------------------------------------------------------------------------------------

    @property
    def times(self) -> Times:
        return Times(self.low, self.high, self.strata)

    @property
    def weights_of_ratio(self) -> RatioWeights:
        return RatioWeights((self.clip_low, self.clip_high), bins=self.bins, ema=self.bin_average)

    @property
    def judged(self) -> bool:
        """Is there a head?"""
        return self.adversarial > 0 or not self.f.flat

    @property
    def f(self) -> Divergence:
        return make_divergence(self.divergence)

    @property
    def roles(self) -> tuple[str, ...]:
        return (STUDENT, FAKE, HEAD) if self.judged else (STUDENT, FAKE)

    @property
    def draws(self) -> int:
        return 1 + self.critic_steps

    @property
    def steps(self) -> int:
        return self.student_steps

    @property
    def needs_data(self) -> bool:
        return self.judged or self.regression > 0

    @property
    def needs_pairs(self) -> bool:
        return self.regression > 0

    def check(self, roles: Roles, guidance: str) -> None:
        if self.scale_low is not None:
            with_scale(guidance, self.scale_low)  # refuses a rule without a scale

    # -- an update ---------------------------------------------------------------------------------------------

    def update(self, ctx: DistillContext) -> Iterator[Part]:
        """The helpers first, so that they know the student of today."""
        for draw in range(1, 1 + self.critic_steps):
            yield from self.critics(ctx, draw)
        yield from self.student(ctx, ctx.deal(0))

    def make(self, ctx: DistillContext, pictures: Pictures, purpose: str) -> Tensor:
        """G(z) of the student, (B, *shape). With several steps: of a random one, after the student's own earlier ones,
        through which no gradient goes (DMD2's backward simulation)."""
        student = ctx.roles.student
        levels = self.levels(student)
        last = ctx.seed("step", purpose) % self.student_steps
        x, denoiser = levels[0].sigma * ctx.noise(pictures, "start"), student.denoiser(pictures.prompts)
        with torch.no_grad():
            for step in range(last):
                goal = levels[step + 1]
                clean = denoiser(x, levels[step]).denoised
                x = goal.alpha * clean + goal.sigma * ctx.noise(pictures, f"between {purpose}", step)
        return denoiser(x, levels[last]).denoised

    # -- the student -------------------------------------------------------------------------------------------

    def student(self, ctx: DistillContext, pictures: Pictures) -> Iterator[Part]:
        """The gradient at G(z) is computed without a graph, for the batch as a whole; then the student's passes.

        A batch of more than `ctx.rows` is made twice: once to know the ratios of all rows, once for the gradient.
        """
        chunks = ctx.chunks(len(pictures))
        whole = self.make(ctx, pictures, "student") if len(chunks) == 1 else None
        with torch.no_grad():
            parts = [self.make(ctx, pictures.of(rows), "student") for rows in chunks] if whole is None else []
            clean = torch.cat(parts) if whole is None else whole.detach()
            pull = self.pull(ctx, pictures, clean)
        for number, rows in enumerate(chunks):
            x = self.make(ctx, pictures.of(rows), "student") if whole is None else whole
            target = x.detach() - pull[rows.start : rows.stop]
            loss = 0.5 * (x - target).square().flatten(1).mean(1).sum() / len(pictures)
            for term in self.further(ctx, pictures, rows, x):
                loss = loss + term
            yield Part(loss, number == len(chunks) - 1, STUDENT)

    def pull(self, ctx: DistillContext, pictures: Pictures, clean: Tensor) -> Tensor:
        """h w (D_fake - D_teacher) at the noised `clean`, (B, *shape): the gradient that the student follows down."""
        found, logits = torch.zeros_like(clean), clean.new_zeros(len(clean))
        for group, some, x in self.noised(ctx, pictures, clean, "student"):
            line = self.rule(ctx, "student", group)
            real = ctx.roles.teacher.denoiser(some.prompts, line)(x, group.level)
            fake = ctx.roles.need(FAKE).denoiser(some.prompts, line if self.fake_guided else "none")(x, group.level)
            found[group.rows.start : group.rows.stop] = self.weighted(clean[list(group.rows)], real, fake)
            if self.judged:
                logits[group.rows.start : group.rows.stop] = self.logits(ctx, some.prompts, x, group.level)
        h, numbers = self.ratio(ctx, pictures, logits)
        ctx.log(**numbers, pull=float(found.square().mean().sqrt()))
        return (found * h.reshape(-1, *[1] * (clean.dim() - 1)).to(found)).detach()  # rules may have kept a graph

    def weighted(self, clean: Tensor, real: Prediction, fake: Prediction) -> Tensor:
        if self.weighting == NOISE:
            return real.level.sigma**2 * (real.noise - fake.noise)
        error = (clean - real.denoised).abs().flatten(1).mean(1) + 1e-6
        return (fake.denoised - real.denoised) / error.reshape(-1, *[1] * (clean.dim() - 1))

    def ratio(self, ctx: DistillContext, pictures: Pictures, logits: Tensor) -> tuple[Tensor, dict[str, float]]:
        """h of each row, with mean 1 over all processes."""
        if not self.judged:
            return torch.ones_like(logits), {}
        shares = torch.zeros_like(logits)
        for group in ctx.groups(self.times, len(pictures), "student"):
            shares[group.rows.start : group.rows.stop] = group.share
        return self.weights_of_ratio.weights(logits, shares, self.f, ctx.state, ctx.gather)

    def further(self, ctx: DistillContext, pictures: Pictures, rows: range, x: Tensor) -> Iterator[Tensor]:
        """Losses beside the matching one, of some rows, as shares of the batch's means."""
        share = len(rows) / len(pictures)
        if self.adversarial:
            logits = [self.logits(ctx, some.prompts, noised, group.level)
                      for group, some, noised in self.noised(ctx, pictures, x, "student", rows)]  # fmt: skip
            loss = generator_loss(torch.cat(logits))
            ctx.log(generator=loss)
            yield self.adversarial * share * loss
        if self.regression:
            pairs = ctx.data(0)
            if not pairs.pairs:
                raise UsageError("regression needs what the teacher made of known noise: give data=teacher:1000")
            some = pairs.of(rows)
            assert some.clean is not None
            loss = (self.make(ctx, some, "pairs") - some.clean).square().mean()
            ctx.log(regression_loss=loss)
            yield self.regression * share * loss

    # -- the helpers -------------------------------------------------------------------------------------------

    def critics(self, ctx: DistillContext, draw: int) -> Iterator[Part]:
        """One step of the fake on fresh pictures of the student, and one of the head on the same and on real ones."""
        pictures, purpose = ctx.deal(draw), f"critic {draw}"
        with torch.no_grad():
            clean = torch.cat([self.make(ctx, pictures.of(rows), purpose) for rows in ctx.chunks(len(pictures))])
        for group, some, x in self.noised(ctx, pictures, clean, purpose):
            share = len(group.rows) / len(pictures)
            loss = share * self.denoising(ctx, some, clean[list(group.rows)], x, group.level)
            yield Part(loss, group.rows.stop == len(pictures) and not self.coupled, FAKE)
        if self.judged:
            yield from self.heads(ctx, draw, pictures, clean)

    @property
    def coupled(self) -> bool:
        """Does the head's loss teach the fake as well?"""
        return self.judged and self.features == "fake"

    def denoising(self, ctx: DistillContext, pictures: Pictures, clean: Tensor, x: Tensor, level: Level) -> Tensor:
        """The fake's error, with some prompts left out where it is to be guided.

        mean || native - native of `clean` ||^2,    or    mean || alpha_t eps_fake - alpha_t eps ||^2
        """
        prompts: list[str | None] = list(pictures.prompts)
        if self.dropout:
            left_out = [_share(derived_seed(seed, "dropout")) < self.dropout for seed in pictures.seeds]
            prompts = [None if out else prompt for prompt, out in zip(prompts, left_out, strict=True)]
        told = ctx.roles.need(FAKE).denoiser(prompts)(x, level)
        true = told.with_denoised(clean)
        if self.fake_error == NOISE:
            apart = level.alpha * (told.noise - true.noise.detach())
        else:
            apart = told.native - true.native.detach()
        loss: Tensor = apart.square().mean()
        ctx.log(fake_error=loss)
        return loss

    def heads(self, ctx: DistillContext, draw: int, pictures: Pictures, clean: Tensor) -> Iterator[Part]:
        """Real pictures have levels of their own."""
        real = ctx.data(draw)
        assert real.clean is not None
        sides = [(pictures, clean, f"critic {draw}"), (real, real.clean, f"real {draw}")]
        made, held = (self.inside(ctx, *side) for side in sides)
        head = ctx.roles.need(HEAD)
        if self.coupled:
            yield Part(self.coupling * head_loss(head(made), head(held)), True, FAKE)
        made, held = made.detach(), held.detach()
        loss = head_loss(head(made), head(held))
        right = torch.cat([head(held) > 0, head(made) < 0]).float().mean()
        ctx.log(head_error=loss, head_right=right)
        if self.r1:
            near = self.inside(ctx, real, real.clean, f"real {draw}", jitter=0.1)
            loss = loss + self.r1 * r1(head(held), head(near))
        yield Part(loss, True, HEAD)

    def inside(
        self, ctx: DistillContext, pictures: Pictures, clean: Tensor, purpose: str, jitter: float = 0.0
    ) -> Tensor:
        """Features (B, C, H, W) of noised latents. jitter: of further noise on them."""
        found = []
        with torch.set_grad_enabled(self.coupled and not jitter):
            for group, some, x in self.noised(ctx, pictures, clean, purpose):
                x = x + jitter * ctx.noise(some, "jitter") if jitter else x
                found.append(self.features_of(ctx, some.prompts, x, group.level))
        return torch.cat(found)

    # -- parts of these ----------------------------------------------------------------------------------------

    def noised(
        self, ctx: DistillContext, pictures: Pictures, clean: Tensor, purpose: str, rows: range | None = None
    ) -> Iterator[tuple[Group, Pictures, Tensor]]:
        """Group by group: the pictures of a level and their noised latents. rows: those that `clean` holds; all
        without it."""
        first = 0 if rows is None else rows.start
        for group in ctx.groups(self.times, len(pictures), purpose, rows):
            some = pictures.of(group.rows)
            noise = ctx.noise(some, f"level {purpose}")
            here = clean[group.rows.start - first : group.rows.stop - first]
            yield group, some, group.level.alpha * here + group.level.sigma * noise

    def rule(self, ctx: DistillContext, purpose: str, group: Group) -> str:
        """The teacher's rule, with a scale of the group's own where it is drawn."""
        if self.scale_low is None or self.scale_high is None:
            return ctx.guidance
        span = self.scale_high - self.scale_low
        return with_scale(ctx.guidance, self.scale_low + span * _share(ctx.seed("scale", purpose, group.share)))

    def features_of(self, ctx: DistillContext, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        source = ctx.roles.teacher if self.features == "teacher" else ctx.roles.need(FAKE)
        return source.inner(prompts, x, level)

    def logits(self, ctx: DistillContext, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        head: nn.Module = ctx.roles.need(HEAD)
        found: Tensor = head(self.features_of(ctx, prompts, x, level))
        return found


def _share(seed: int) -> float:
    """A number in [0, 1) from a seed."""
    return seed / 2**63


@dataclass(frozen=True, kw_only=True)
class FDistill(DistributionMatching):
    """f-distill with the settings of its text-to-picture runs (FastGen): Jensen-Shannon, a weak adversarial term.

    Two settings are ours. clip_low is 0.1 there, at which Jensen-Shannon loses modes in our toys: pictures that the
    teacher never makes keep a weight of .09. bin_average is 0 there, for batches of 2048; in a small batch a row may be
    alone in its bin, which makes its ratio 1.
    """

    divergence: str = "jensen-shannon"
    adversarial: float = 1e-3
    clip_low: float = 1e-3
    bin_average: float = 0.9


@dataclass(frozen=True, kw_only=True)
class DMD2(DistributionMatching):
    """Reverse KL, with a head on the fake's own middle block."""

    adversarial: float = 1e-3
    features: str = "fake"


@dataclass(frozen=True, kw_only=True)
class DMD(DistributionMatching):
    """Reverse KL and regression on the teacher's pairs. The distance is that of latents, LPIPS in the paper."""

    critic_steps: int = 1
    regression: float = 0.25


@dataclass(frozen=True, kw_only=True)
class VSD(DistributionMatching):
    """Reverse KL alone, with one step of the fake for each of the student."""

    critic_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class SwiftBrush(DistributionMatching):
    """VSD with teacher and fake guided alike, and the fake's error in alpha times the noise.

    A row's prompt is left out by itself, a batch's in the authors' code; their fake learns on all of the noise range,
    here on what the student is matched on.
    """

    critic_steps: int = 1
    weighting: str = NOISE
    fake_error: str = NOISE
    fake_guided: bool = True
    dropout: float = 0.1
    high: float = 0.981


@dataclass(frozen=True, kw_only=True)
class PGSB(SwiftBrush):
    """SwiftBrush with a random scale, shared by teacher and fake (SNOOPI: Nguyen et al. 2024, arXiv 2412.02687). Each
    level of a batch has a scale of its own."""

    scale_low: float | None = 0.5
    scale_high: float | None = 4.0
