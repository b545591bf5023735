"""Distribution matching: the gradient that the student gets, who learns when, and settings that are one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_learners import FLOW, ExactLearner, ToyLearner, distilled, of_gaussian
from torch import Tensor

from pilotage.distill import make_method
from pilotage.distill.head import Head
from pilotage.distill.method import DistillContext, Part, Pictures
from pilotage.distill.methods.matching import DistributionMatching, FDistill
from pilotage.distill.roles import FAKE, HEAD, STUDENT, Roles
from pilotage.errors import UsageError
from pilotage.samplers.sampler import Level

MATCHING = {"critic_steps": 2, "strata": 3}


class Seen(ExactLearner):
    """An exact teacher that shows x and its time, and has no network."""

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        return torch.cat([x.flatten(1), torch.full_like(x.flatten(1)[:, :1], level.time)], 1)


def roles(head: int | None = 3, seed: int = 0) -> Roles:
    """head: the width of what it sees, 3 of the teacher and 32 of the fake; its last layer is not zero."""
    student, fake = ToyLearner(FLOW, seed=seed), ToyLearner(FLOW, seed=seed + 1)
    of = Roles(Seen(FLOW), student, fake)
    if head is not None:
        of.head = Head((head,) if head == 3 else (head, 1, 1), seed, 16)
        last: Any = of.head.layers[-1]
        torch.nn.init.normal_(last.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return of


def context(
    of: Roles, count: int = 12, rows: int = 64, first: int = 0, total: int = 0, **further: Any
) -> DistillContext:
    """Rows first to first + count of a batch of `total`."""
    total = total or count

    def dealt(draw: int) -> Pictures:
        numbers = range(first, first + count)
        return Pictures([("star", "two squares")[i % 2] for i in numbers], [str(1000 * draw + i) for i in numbers])

    def data(draw: int) -> Pictures:
        clean = torch.randn(total, *of.student.shape, generator=torch.Generator().manual_seed(draw)).double() / 2
        made = dealt(draw + 50)
        return replace(made, clean=clean[first : first + count], starts=made.seeds)

    settings: dict[str, Any] = {"update": 3, "updates": 9, "rows": rows, "run_seed": 5} | further
    return DistillContext(of, "cfg:scale=2", dealt, data, first, total, **settings)


def gradients(method: DistributionMatching, ctx: DistillContext) -> dict[str, list[Tensor]]:
    """Of the parts of an update by role, those of one role summed; nobody steps in between."""
    found: dict[str, list[Tensor]] = {}
    for part in method.update(ctx):
        grads = torch.autograd.grad(part.loss, ctx.roles.parameters()[part.role], allow_unused=True, retain_graph=True)
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, ctx.roles.parameters()[part.role])]
        before = found.get(part.role, [torch.zeros_like(g) for g in filled])
        found[part.role] = [a + b for a, b in zip(before, filled, strict=True)]
    return found


def close(one: Sequence[Tensor], other: Sequence[Tensor], atol: float = 1e-12) -> bool:
    return all(torch.allclose(a, b, atol=atol, rtol=1e-5 if atol else 0) for a, b in zip(one, other, strict=True))


# -- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["normalised", "noise"])
def test_the_student_goes_down_the_weighted_difference_of_the_two_scores(weighting: str) -> None:
    """dL/dG = h w (D_fake - D_teacher) / numel, formed by hand from the same noised points."""
    of = roles()
    method = DistributionMatching(divergence="forward-kl", weighting=weighting, **MATCHING)
    ctx = context(of)
    pictures = ctx.deal(0)
    parts = list(method.student(ctx, pictures))
    assert [(part.steps, part.role) for part in parts] == [(True, STUDENT)]
    got = torch.autograd.grad(parts[0].loss, of.student.parameters)
    x = method.make(ctx, pictures, "student")
    pull, logits, places = torch.zeros_like(x), torch.zeros(12).double(), torch.zeros(12).double()
    for group in ctx.groups(method.times, 12, "student"):
        some, rows, level = pictures.of(group.rows), list(group.rows), group.level
        noised = level.alpha * x.detach()[rows] + level.sigma * ctx.noise(some, "level student")
        real = of.teacher.denoiser(some.prompts, "cfg:scale=2")(noised, level)
        fake = of.fake.denoiser(some.prompts)(noised, level)  # type: ignore[union-attr]
        weight = 1 / ((x.detach()[rows] - real.denoised).abs().mean((1, 2, 3), keepdim=True) + 1e-6)
        plain = weight * (fake.denoised - real.denoised)
        pull[rows] = plain if weighting == "normalised" else level.sigma**2 * (real.noise - fake.noise)
        logits[rows] = of.head(of.teacher.inner(some.prompts, noised, level)).double()  # type: ignore[misc]
        places[rows] = group.share
    ratio = logits.clamp(-10, 10).exp().clamp(0.1, 20)
    bins = (places * 10).long()
    ratio = ratio / torch.stack([ratio[bins == b].mean() for b in bins])
    h = ratio / ratio.mean()  # forward KL: h = r
    want = torch.autograd.grad(x, of.student.parameters, (h.reshape(-1, 1, 1, 1) * pull).detach() / x.numel())
    assert close(got, want, 1e-7)  # the head computes in float32
    assert h.max() > 1.05 and all(g.abs().max() > 1e-4 for g in got)


def test_reverse_kl_needs_no_head_and_weighs_all_rows_alike() -> None:
    one, other = roles(), roles(None)
    with_head = DistributionMatching(divergence="reverse-kl", adversarial=1e-30, **MATCHING)
    without = DistributionMatching(divergence="reverse-kl", **MATCHING)
    assert HEAD in with_head.roles and HEAD not in without.roles and without.needs_data is False
    mine, theirs = gradients(with_head, context(one)), gradients(without, context(other))
    assert all(torch.equal(a, b) for role in (STUDENT, FAKE) for a, b in zip(mine[role], theirs[role], strict=True))


def test_at_equal_scores_nothing_moves_whatever_the_ratio_says() -> None:
    of = roles()
    of.fake = of.teacher
    method = FDistill(adversarial=0.0, divergence="pearson", **MATCHING)
    ctx = replace(context(of), guidance="none")
    (part,) = method.student(ctx, ctx.deal(0))
    assert float(part.loss) == 0


def test_portions_of_a_batch_give_the_gradient_of_the_whole() -> None:
    method = FDistill(adversarial=0.3, **MATCHING)
    whole, portions = gradients(method, context(roles())), gradients(method, context(roles(), rows=5))
    assert all(close(whole[role], portions[role], 1e-8) for role in (STUDENT, FAKE, HEAD))


def test_two_processes_average_to_one() -> None:
    """Levels belong to the whole batch, and so do the ratio's means."""
    method = FDistill(adversarial=0.3, divergence="forward-kl", **MATCHING)
    alone = gradients(method, context(roles(), 12))
    sent: dict[int, list[Tensor]] = {0: [], 1: []}
    halves = []
    for turn in ("send", "receive"):
        for rank in (0, 1):
            theirs = iter(sent[1 - rank] if turn == "receive" else [])

            def gather(values: Tensor, rank: int = rank, theirs: Any = theirs, turn: str = turn) -> Tensor:
                if turn == "send":
                    sent[rank].append(values)
                    return values
                other = next(theirs)
                return torch.cat([values, other] if rank == 0 else [other, values])

            found = gradients(method, context(roles(), 6, first=6 * rank, total=12, gather=gather))
            halves += [found] if turn == "receive" else []
    for role in (STUDENT, FAKE, HEAD):
        mean = [(a + b) / 2 for a, b in zip(halves[0][role], halves[1][role], strict=True)]
        assert close(alone[role], mean, 1e-6), (role, max((a - b).abs().max() for a, b in zip(alone[role], mean)))


# -- who learns when --------------------------------------------------------------------------------------------------


def learnt(parts: Sequence[Part]) -> list[str]:
    return [part.role for part in parts if part.steps]


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("f-distill:critic_steps=2", [FAKE, HEAD, FAKE, HEAD, STUDENT]),
        ("dmd2:critic_steps=1", [FAKE, HEAD, STUDENT]),
        ("vsd", [FAKE, STUDENT]),
        ("swiftbrush", [FAKE, STUDENT]),
        ("dmd", [FAKE, STUDENT]),
    ],
)
def test_each_phase_moves_its_own_parameters(line: str, steps: list[str]) -> None:
    of, method = roles(32 if line.startswith("dmd2") else 3), make_method(line)
    assert set(method.roles) >= set(steps)
    parts = []
    for part in method.update(context(of)):
        assert part.loss.ndim == 0 and bool(part.loss.isfinite())
        moved = [
            role
            for role, own in of.parameters().items()
            if any(g is not None for g in torch.autograd.grad(part.loss, own, allow_unused=True, retain_graph=True))
        ]
        assert part.role in moved and not (part.role == FAKE and STUDENT in moved)
        parts.append(part)
    assert learnt(parts) == steps


def test_the_fakes_loss_is_the_denoising_error_on_the_students_own_pictures() -> None:
    of = roles(None)
    ctx = context(of)
    method = DistributionMatching(**MATCHING)
    parts = list(method.critics(ctx, 1))
    pictures = ctx.deal(1)
    clean, want = method.make(ctx, pictures, "critic 1").detach(), 0.0
    for group in ctx.groups(method.times, 12, "critic 1"):
        some, rows = pictures.of(group.rows), list(group.rows)
        noise = ctx.noise(some, "level critic 1")
        x = group.level.alpha * clean[rows] + group.level.sigma * noise
        told = of.fake.denoiser(some.prompts)(x, group.level)  # type: ignore[union-attr]
        want += float((told.native - (noise - clean[rows])).square().sum()) / clean.numel()  # a flow network
    assert sum(float(part.loss) for part in parts) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("line", ["swiftbrush", "pg-sb"])
def test_swiftbrushs_fake_learns_alpha_times_the_noise(line: str) -> None:
    """mse(alpha_t eps_fake, alpha_t eps) at x = alpha_t clean + sigma_t eps, written out, of a flow network: eps_fake =
    x + alpha_t native. The prompts that are left out are those of the method."""
    of, method = roles(None), make_method(f"{line}:dropout=0,strata=3")
    ctx = context(of)
    assert isinstance(method, DistributionMatching)
    pictures = ctx.deal(1)
    clean, want = method.make(ctx, pictures, "critic 1").detach(), torch.zeros(())
    for group in ctx.groups(method.times, 12, "critic 1"):
        some, rows, alpha = pictures.of(group.rows), list(group.rows), group.level.alpha
        noise = ctx.noise(some, "level critic 1")
        x = alpha * clean[rows] + group.level.sigma * noise
        said = x + alpha * of.fake.denoiser(some.prompts)(x, group.level).native  # type: ignore[union-attr]
        want = want + (alpha * said - alpha * noise).square().sum() / clean.numel()
    wanted = torch.autograd.grad(want, of.fake.parameters)  # type: ignore[union-attr]
    found = [torch.zeros_like(g) for g in wanted]
    total = 0.0
    for part in method.critics(ctx, 1):
        found = [a + b for a, b in zip(found, torch.autograd.grad(part.loss, of.fake.parameters), strict=True)]  # type: ignore[union-attr]
        total += float(part.loss.detach())
    assert total == pytest.approx(float(want), rel=1e-9)
    assert close(found, wanted, 1e-9)


def test_an_update_is_the_same_again_and_another_one_is_another() -> None:
    method = FDistill(**MATCHING)
    first, again, later = (gradients(method, context(roles(), update=update)) for update in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first[STUDENT], again[STUDENT], strict=True))
    assert not close(first[STUDENT], later[STUDENT], 1e-9)


# -- settings that are one another ------------------------------------------------------------------------------------


def test_pg_sb_with_one_scale_is_swiftbrush() -> None:
    one = gradients(make_method("pg-sb:scale_low=2,scale_high=2"), context(roles(None)))  # type: ignore[arg-type]
    other = gradients(make_method("swiftbrush"), context(roles(None)))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for role in (STUDENT, FAKE) for a, b in zip(one[role], other[role], strict=True))
    varied = gradients(make_method("pg-sb"), context(roles(None)))  # type: ignore[arg-type]
    assert not close(varied[STUDENT], other[STUDENT], 1e-6)


def test_dmd2_without_its_adversary_is_f_distill_with_the_reverse_kl() -> None:
    lines = ("dmd2:adversarial=0,critic_steps=2", "f-distill:divergence=reverse-kl,adversarial=0,critic_steps=2")
    one, other = (gradients(make_method(line), context(roles(None))) for line in lines)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for role in (STUDENT, FAKE) for a, b in zip(one[role], other[role], strict=True))


def test_regression_is_the_distance_to_the_teachers_picture_of_the_same_noise() -> None:
    plain, regressed = (
        list(DistributionMatching(regression=w, **MATCHING).student(ctx := context(roles(None)), ctx.deal(0)))
        for w in (0.0, 0.5)
    )
    ctx = context(roles(None))
    pairs = ctx.data(0)
    made = DistributionMatching(**MATCHING).make(ctx, pairs, "pairs")
    want = 0.5 * float((made - pairs.clean).square().mean())  # type: ignore[operator]
    assert float(regressed[0].loss) - float(plain[0].loss) == pytest.approx(want, rel=1e-9)


def test_several_steps_are_trained_on_the_students_own_earlier_ones() -> None:
    of, seen = roles(None), set()
    method = DistributionMatching(student_steps=4, **MATCHING)
    levels = of.student.levels("trailing", 4)
    for update in range(12):
        ctx = context(of, update=update)
        network: Any = of.student.network  # type: ignore[attr-defined]
        network.calls = 0
        made, step = method.make(ctx, ctx.deal(0), "student"), ctx.seed("step", "student") % 4
        assert network.calls == step + 1 and made.requires_grad
        seen.add(step)
    assert seen == {0, 1, 2, 3} and method.steps == 4 and method.sampler == "lcm" and len(levels) == 5


# -- it learns --------------------------------------------------------------------------------------------------------


def test_a_student_comes_to_the_teachers_distribution() -> None:
    """N(told, 1/4 I), from a student that draws near the origin."""
    of, method = roles(), make_method("f-distill:critic_steps=2,strata=2")
    pictures = Pictures(["two squares"] * 400, [str(n) for n in range(400)])

    def off() -> tuple[float, float]:
        made = method.sample(of.student, pictures, 400).detach().flatten(1)
        return float((made.mean(0) - 1.1).norm()), abs(float(made.std(0).mean()) - 0.5)

    before = off()
    distilled(method, of, 300, 5e-3, batch=32, clean=of_gaussian, prompts=("two squares",))
    after = off()
    assert before[0] > 0.8 and after[0] < 0.15 and after[1] < 0.15, (before, after)


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_steps": 0}, "at least 1"),
        ({"features": "student"}, "teacher"),
        ({"weighting": "none"}, "weighting"),
        ({"scale_low": 1.0}, "both"),
        ({"low": 0.9, "high": 0.5}, "low < high"),
        ({"dropout": 1.0}, "share"),
        ({"divergence": "rkll"}, "divergence"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        DistributionMatching(**settings)
    assert "\n" not in str(told.value)


def test_a_random_scale_needs_a_rule_with_one() -> None:
    with pytest.raises(UsageError):
        make_method("pg-sb").check(roles(), "none")
    with pytest.raises(UsageError, match="teacher:1000"):
        ctx = context(roles(None))
        ctx.data = lambda draw: replace(context(roles()).data(draw), starts=None)
        list(make_method("dmd").update(ctx))
