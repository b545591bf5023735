"""Guidance distillation, latent consistency and reflow against hand computations and closed forms on Gaussians."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from distill_learners import (
    FLOW,
    VP,
    ExactLearner,
    ToyLearner,
    by_prompt,
    column,
    context,
    distilled,
    exact_roles,
    gradients,
    guided_by,
    of_gaussian,
    told_of,
    total_loss,
    toy_roles,
)
from tiny_parts import stable_diffusion, unet
from torch import Tensor, nn

from pilotage.distill.method import DistillMethod, Pictures
from pilotage.distill.methods.guidance import GuidanceDistillation
from pilotage.distill.methods.lcm import LCM, Consistent
from pilotage.distill.methods.reflow import Reflow
from pilotage.distill.methods.ucgm_t import UCGMT
from pilotage.distill.roles import Frozen, Roles
from pilotage.distill.scales import (
    OFFSETS,
    drawn_scale,
    scale_conditioned,
    scale_embedding,
    source_scale,
    toolkit_scale,
    with_scale,
)
from pilotage.distill.times import Times
from pilotage.errors import UsageError
from pilotage.guidance import parse
from pilotage.samplers import sample
from pilotage.samplers.loop import iterate
from pilotage.samplers.noise import SeededNoise
from pilotage.samplers.prediction import SAMPLE
from pilotage.samplers.schedule import Level, NoiseSchedule, stable_diffusion_schedule
from pilotage.training import checkpoint
from pilotage.training.lora import LoraSettings
from pilotage.training.pipeline_learner import PipelineLearner

BOTH = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
WIDTH = 64


def guided_as_told(x: Tensor, level: Level, told: Tensor, w: float | None) -> Tensor:
    assert w is not None
    return guided_by(w)(x, level, told, None)


# -- scales ----------------------------------------------------------------------------------------------------------

FORMULAS = {  # as the sources write them
    "toolkit": lambda s, cond, null: null + s * (cond - null),
    "diffusers": lambda s, cond, null: null + s * (cond - null),
    "dmd2": lambda s, cond, null: null + s * (cond - null),
    "swiftbrush": lambda s, cond, null: null + s * (cond - null),
    "snoopi": lambda s, cond, null: null + s * (cond - null),
    "fastgen": lambda s, cond, null: cond + (s - 1) * (cond - null),
    "meng": lambda s, cond, null: (1 + s) * cond - s * null,
    "lcm-script": lambda s, cond, null: cond + s * (cond - null),
    "embedded": lambda s, cond, null: cond + s * (cond - null),
}


@pytest.mark.parametrize("source", OFFSETS)
def test_a_source_s_scale_is_the_toolkit_s_in_its_own_formula(source: str) -> None:
    cond, null = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = toolkit_scale(4.0, source)
    torch.testing.assert_close(FORMULAS[source](4.0, cond, null), null + w * (cond - null), rtol=0, atol=1e-14)
    assert source_scale(w, source) == 4.0


def test_the_training_range_of_latent_consistency_is_6_to_16() -> None:
    assert [toolkit_scale(s, "lcm-script") for s in (5, 15)] == [6, 16] == [LCM().scale_low, LCM().scale_high]
    with pytest.raises(UsageError, match="meng"):
        toolkit_scale(1, "mengs")


@pytest.mark.parametrize("width", [256, 33])
def test_a_scale_is_embedded_as_diffusers_pipelines_do(width: int) -> None:
    scales = [1.0, 1.5, 7.3, 8.5, 16.0]
    stock: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    for scale, row in zip(scales, scale_embedding(scales, width), strict=True):
        assert torch.equal(row, stock(None, torch.tensor(scale - 1).repeat(1), embedding_dim=width)[0])


def test_a_line_gets_another_scale() -> None:
    assert with_scale("cfg:scale=3", 5) == "cfg:scale=5.0"
    assert with_scale("interval:low=0.3 + apg:scale=10,momentum=-0.5", 2.5) == (
        "interval:low=0.3 + apg:scale=2.5,momentum=-0.5"
    )
    assert parse(with_scale("cfg", 1.25)) == parse("cfg:scale=1.25")
    for line in ("none", "interval:low=0.3"):
        with pytest.raises(UsageError, match="cfg:scale=5"):
            with_scale(line, 2)


def test_scales_of_a_batch_cover_their_range_and_belong_to_no_level() -> None:
    strata = 8
    shares = [(k + 0.5) / strata for k in range(strata)]
    batches = torch.tensor([[drawn_scale(1, 9, seed, s, strata) for s in shares] for seed in range(300)])
    assert torch.equal(batches.sub(1).floor().sort(1).values, torch.arange(8.0).expand(300, 8))
    assert (batches.mean(0) - 5).abs().max() < 4 * 8 / 12**0.5 / 300**0.5
    assert drawn_scale(1, 9, 3, 1 - 1e-17, strata) <= 9


def test_a_network_that_takes_a_scale_is_the_plain_one_at_first(tmp_path: Path) -> None:
    plain = unet()
    state = torch.get_rng_state()
    made = scale_conditioned(plain, WIDTH)
    assert torch.equal(state, torch.get_rng_state())
    x, told = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5, 32)
    with torch.no_grad():
        wanted = plain(x, 400, told).sample
        assert torch.equal(made(x, 400, told, timestep_cond=scale_embedding([3.0, 9.0], WIDTH)).sample, wanted)
        made.time_embedding.cond_proj.weight.fill_(0.1)
        changed = made(x, 400, told, timestep_cond=scale_embedding([3.0, 9.0], WIDTH)).sample
        assert not torch.equal(changed, wanted) and torch.equal(plain(x, 400, told).sample, wanted)
        made.save_pretrained(tmp_path)
        loaded: Any = UNet2DConditionModel.from_pretrained(tmp_path)
        assert torch.equal(loaded(x, 400, told, timestep_cond=scale_embedding([3.0, 9.0], WIDTH)).sample, changed)
    assert plain.config.time_cond_proj_dim is None and loaded.config.time_cond_proj_dim == WIDTH
    with pytest.raises(UsageError, match="already"):
        scale_conditioned(made)
    with pytest.raises(UsageError, match="UNet2DConditionModel"):
        scale_conditioned(nn.Linear(1, 1))


# -- guidance distillation -------------------------------------------------------------------------------------------


@BOTH
def test_the_loss_is_the_squared_distance_to_the_guided_teacher(schedule: NoiseSchedule) -> None:
    roles = toy_roles(schedule)
    ctx = context(roles, "cfg:scale=3", 6, of_gaussian)
    method = GuidanceDistillation(fixed=True, strata=1, low=0.4, high=0.41)
    (part,) = method.update(ctx)
    (group,) = ctx.groups(method.times, 6, "guidance")
    some, level = ctx.data(0), group.level
    assert some.clean is not None
    x = level.alpha * some.clean + level.sigma * ctx.noise(some, "level")
    wanted = guided_by(3.0)(x, level, column(told_of(some.prompts)), None)
    said = roles.student.denoiser(some.prompts)(x, level).denoised
    step = -level.sigma / level.alpha if schedule is VP else -level.sigma  # d denoised / d native
    torch.testing.assert_close(part.loss, ((said - wanted) / step).square().mean())
    assert part.steps and part.role == "student"


@BOTH
@pytest.mark.parametrize("states", ["data", "trajectory"])
def test_the_optimum_is_the_guided_denoiser(schedule: NoiseSchedule, states: str) -> None:
    roles, network = exact_roles(schedule, guided_by(3.0))
    method = GuidanceDistillation(fixed=True, states=states, steps=4, points=2, strata=2, low=0.02, high=0.98)
    settings: dict[str, Any] = dict(guidance="cfg:scale=3", clean=of_gaussian)
    assert total_loss(method, context(roles, **settings)) < 1e-9  # the network is told a float32 time
    with torch.no_grad():
        network.nudge += torch.tensor([0.3, -0.2])
    distilled(method, roles, 120, 0.025, **settings)
    assert network.nudge.detach().abs().max() < 2e-3


@BOTH
@pytest.mark.parametrize("states", ["data", "trajectory"])
def test_the_student_is_told_the_teacher_s_scale_in_the_units_of_the_pipelines(
    schedule: NoiseSchedule, states: str
) -> None:
    roles, network = exact_roles(schedule, guided_as_told, WIDTH)
    method = GuidanceDistillation(scale_low=1, scale_high=9, states=states, steps=4, points=2, high=0.95)
    method.check(roles, "cfg")
    ctx = context(roles, "cfg:scale=100", 16, of_gaussian)
    assert total_loss(method, ctx) < 1e-7  # w comes back from float32 sines; at w of one more it is far from 0
    assert min(network.told) < 2.5 and max(network.told) > 7.5 and 1 <= min(network.told) <= max(network.told) <= 9.001
    network.answer = lambda x, level, told, w: guided_as_told(x, level, told, w + 1)
    assert total_loss(method, ctx) > 1e-2


def test_scale_1_is_the_conditional_teacher() -> None:
    roles, _ = exact_roles(VP, lambda x, level, told, w: by_prompt(x, level, told), WIDTH)
    method = GuidanceDistillation(scale_low=1, scale_high=1, scale=1)
    assert total_loss(method, context(roles, "cfg", 8, of_gaussian)) < 1e-9


def test_one_evaluation_a_step() -> None:
    roles = Roles(ToyLearner(VP, seed=1), ToyLearner(VP, scale_width=WIDTH))
    method, some = GuidanceDistillation(), Pictures(["a star"], ["3"])
    method.sample(roles.student, some, rows=4)
    levels = method.levels(roles.teacher)
    teacher = roles.teacher.denoiser(some.prompts, "cfg:scale=5")
    sample(teacher, roles.teacher.start(some.seeds, levels), sampler="ddim", grid=levels)
    assert roles.student.network.rows == method.steps == 20 and roles.teacher.network.rows == 40  # type: ignore[attr-defined]


def test_trajectories_are_the_teacher_s_with_the_memory_of_its_rule() -> None:
    roles, line, steps = toy_roles(VP), "apg:scale=4,momentum=0.5", 5
    method = GuidanceDistillation(fixed=True, states="trajectory", steps=steps, points=steps)
    ctx = context(roles, line, 3)
    some, levels = ctx.deal(0), method.levels(roles.teacher)
    run = iterate(roles.teacher.denoiser(some.prompts, line), roles.teacher.start(some.seeds, levels), sampler="ddim",
                  grid=levels)  # fmt: skip
    taught = {step.index: step.prediction for step in run}
    assert method.places(3) == sorted(taught)
    student = roles.student.denoiser(some.prompts)
    apart = [(student(p.x, p.level).native - p.native).square().mean() for p in taught.values()]
    assert total_loss(method, ctx) == pytest.approx(float(torch.stack(apart).mean().detach()), rel=1e-12)
    bare = roles.teacher.denoiser(some.prompts, line)(taught[3].x, taught[3].level)
    assert not torch.allclose(bare.native, taught[3].native)


@pytest.mark.parametrize("method", [
    GuidanceDistillation(fixed=True), GuidanceDistillation(),
    GuidanceDistillation(states="trajectory", steps=3, points=2), LCM(), LCM(scale_conditioned=True), Reflow(),
    UCGMT(consistency=0.0, zeta=0.4), UCGMT(zeta=1.0), UCGMT(),
], ids=str)  # fmt: skip
def test_gradients_do_not_depend_on_how_many_rows_go_together_nor_on_processes(method: DistillMethod) -> None:
    roles = toy_roles(VP, scale_width=WIDTH)
    roles.target = roles.student.twin()  # type: ignore[attr-defined]
    settings: dict[str, Any] = dict(guidance="cfg:scale=3", batch=12, clean=of_gaussian, pairs=True, state={})
    method.check(roles, "cfg:scale=3")
    whole = gradients(method, context(roles, **settings))
    in_parts = gradients(method, context(roles, rows=1, **settings))  # groups have one row or two
    assert max(float((a - b).abs().max()) for a, b in zip(whole, in_parts, strict=True)) < 1e-12
    assert max(float(g.abs().max()) for g in whole) > 1e-4
    ctx = context(roles, **settings)
    halves = []
    for first in (0, 6):
        deal, data = ctx.deal, ctx.data
        mine = replace_context(ctx, first, lambda i, d=deal, f=first: d(i).of(range(f, f + 6)),
                               lambda i, d=data, f=first: d(i).of(range(f, f + 6)))  # fmt: skip
        halves.append(gradients(method, mine))
    mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    if not isinstance(method, GuidanceDistillation) or method.states == "data":
        assert max(float((a - b).abs().max()) for a, b in zip(whole, mean, strict=True)) < 1e-12


@pytest.mark.parametrize("method, student, teacher, target", [
    (GuidanceDistillation(), 1, 2, 0), (LCM(), 1, 2, 1), (LCM(decay=0.0), 2, 2, 0), (Reflow(), 1, 0, 0),
    (UCGMT(), 3, 2, 0), (UCGMT(zeta=2.0), 3, 1, 0), (UCGMT(consistency=0.5, zeta=2.0), 2, 1, 0),
    (UCGMT(consistency=0.0, zeta=0.5), 1, 0, 1), (UCGMT(zeta=0.0), 3, 0, 0),
    (GuidanceDistillation(states="trajectory", steps=5, points=2), 2, 10, 0),
], ids=str)  # fmt: skip
def test_evaluations_of_an_update(method: DistillMethod, student: int, teacher: int, target: int) -> None:
    """A picture's, under a rule of two; the registry's costs."""
    learners = [ToyLearner(VP, scale_width=WIDTH) for _ in range(3)]
    roles = Roles(learners[0], learners[1], target=learners[2])
    total_loss(method, context(roles, "cfg:scale=3", 16, of_gaussian, pairs=True))
    assert [learner.network.rows / 16 for learner in learners] == [teacher, student, target]


def replace_context(ctx: Any, first: int, deal: Any, data: Any) -> Any:
    """The same update on a process that has the rows from `first` on."""
    made = copy.copy(ctx)
    made.first, made.deal, made.data = first, deal, data
    return made


def test_points_of_a_run_are_different_and_equally_likely() -> None:
    method = GuidanceDistillation(states="trajectory", steps=5, points=3)
    drawn = [method.places(seed) for seed in range(2000)]
    assert all(len(set(places)) == 3 for places in drawn)
    shares = torch.tensor(drawn).flatten().bincount() / 2000
    assert (shares - 0.6).abs().max() < 4 * (0.24 / 2000) ** 0.5


def test_what_cannot_be_distilled_is_refused() -> None:
    roles = toy_roles(VP)
    with pytest.raises(UsageError, match="lcm"):
        GuidanceDistillation(fixed=True).check(roles, "cfg++")
    with pytest.raises(UsageError, match="lcm"):
        UCGMT().check(roles, "cfg++")
    with pytest.raises(UsageError, match="cfg:scale=5"):
        GuidanceDistillation().check(roles, "none")
    for method in (GuidanceDistillation(), LCM(scale_conditioned=True)):
        with pytest.raises(UsageError, match="scale_conditioned"):
            method.check(roles, "cfg")
    with pytest.raises(UsageError, match="teacher:1000"):
        list(Reflow().update(context(roles, clean=of_gaussian)))
    with pytest.raises(UsageError, match="needs a target"):
        list(LCM().update(context(roles, clean=of_gaussian)))
    for wrong in (
        dict(states="noise"),
        dict(space="velocity"),
        dict(scale=20),
        dict(states="trajectory", points=30),
        dict(low=0.9, high=0.1),
    ):
        with pytest.raises(UsageError):
            GuidanceDistillation(**wrong)
    for wrong in (dict(distance="l1"), dict(decay=1), dict(steps=51), dict(scale=1)):
        with pytest.raises(UsageError):
            LCM(**wrong)
    for wrong in (dict(steps=0), dict(regression=True, steps=2), dict(strata=0)):
        with pytest.raises(UsageError):
            Reflow(**wrong)


# -- latent consistency ----------------------------------------------------------------------------------------------


@BOTH
def test_a_consistent_student_returns_clean_data_as_they_are(schedule: NoiseSchedule) -> None:
    student = Consistent(ToyLearner(schedule).denoiser(["a star"]))
    x = torch.randn(1, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    below = LCM().step(schedule, 0.0)[1]
    assert below.time == 0 and torch.equal(student(x, below).denoised, x)


def test_the_teacher_s_grid_is_that_of_the_authors() -> None:
    schedule = stable_diffusion_schedule()
    pairs = [LCM().step(schedule, (n + 0.5) / 50) for n in range(50)]
    times = torch.arange(1, 51) * 20 - 1  # the DDIM times of the authors' solver
    assert [level.time for level, _ in pairs] == times.tolist()
    assert [below.time for _, below in pairs] == (times - 20).clamp(min=0).tolist()
    assert pairs[-1][0] == schedule.level(999) and pairs[7][1] == pairs[6][0]
    assert LCM().step(schedule, 1 - 1e-17)[0].time == 999
    levels = LCM().levels(Learnt(schedule))
    assert [level.time for level in levels[:-1]] == [999, 759, 499, 259] and levels[-1].sigma == 0


class Learnt(ToyLearner):
    """A student on Stable Diffusion's schedule."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__(schedule, kind=ToyLearner(VP).kind)


@BOTH
@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_the_consistency_loss_by_hand(schedule: NoiseSchedule, distance: str) -> None:
    roles = toy_roles(schedule)
    roles.target = ToyLearner(schedule, seed=5)
    method = LCM(strata=1, distance=distance, c=0.01)
    held = [p.detach().clone() for p in roles.target.parameters]
    ctx = context(roles, "cfg:scale=2", 5, of_gaussian, state={"target": {"weights": held, "steps": 1}})
    (part,) = [part.loss for part in method.update(ctx)]
    group = ctx.groups(Times(strata=1), 5, "consistency")[0]
    some, (level, below) = ctx.data(0), method.step(schedule, group.share)
    assert some.clean is not None
    told, noise = column(told_of(some.prompts)), ctx.noise(some, "level")
    x = level.alpha * some.clean + level.sigma * noise
    D = guided_by(2.0)(x, level, told, None)
    lower = below.alpha * D + below.sigma * (x - level.alpha * D) / level.sigma

    def f(learner: Any, x: Tensor, level: Level) -> Tensor:
        tau = 10 * level.time
        D = learner.denoiser(some.prompts)(x, level).denoised
        return 0.25 / (tau**2 + 0.25) * x + tau / (tau**2 + 0.25) ** 0.5 * D

    apart = f(roles.student, x, level) - f(ToyLearner(schedule, seed=5), lower, below)
    wanted = apart.square() if distance == "l2" else (apart.square() + 1e-4).sqrt() - 0.01
    torch.testing.assert_close(part, wanted.mean())


def end_of_run(x: Tensor, level: Level, told: Tensor, _: Any = None) -> Tensor:
    """Where the probability flow of N(told, 1/4 I) ends, mu + sd (x - alpha mu) / sqrt(alpha^2 sd^2 + sigma^2), as what
    the network must say so that c_skip x + c_out D is that."""
    tau, spread = 10 * level.time, 0.5
    f = told + spread * (x - level.alpha * told) / (level.alpha**2 * spread**2 + level.sigma**2) ** 0.5
    if tau == 0:
        return x
    return (f - 0.25 / (tau**2 + 0.25) * x) / (tau / (tau**2 + 0.25) ** 0.5)


@BOTH
def test_the_consistency_function_of_a_gaussian_has_no_loss_but_that_of_the_teacher_s_steps(
    schedule: NoiseSchedule,
) -> None:
    roles, network = exact_roles(schedule, end_of_run)
    losses = []
    for original in (25, 50, 100):
        method = LCM(original=original, decay=0.0, strata=original)
        losses.append(total_loss(method, context(roles, "none", 200, of_gaussian)))
    orders = [(a / b) ** 0.5 for a, b in zip(losses, losses[1:])]
    assert losses[-1] < 1e-6 and all(3.3 < order < 4.6 for order in orders), (losses, orders)  # h^2 a DDIM step
    network.answer = lambda x, level, told, _: by_prompt(x, level, told)  # the teacher is no consistency function
    assert total_loss(LCM(decay=0.0, strata=25), context(roles, "none", 100, of_gaussian)) > 30 * losses[1]


class Table(nn.Module):
    """A line for each of the teacher's times: D = gain x + shift told."""

    def __init__(self, original: int):
        super().__init__()
        self.original = original
        self.gain = nn.Parameter(torch.ones(original + 1, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(original + 1, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, told: Tensor) -> Tensor:
        place = round(float(time[0]) / 1000 * self.original)
        return self.gain[place] * x + self.shift[place] * column(told)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_linear_student_comes_to_say_where_the_teacher_s_run_ends(decay: float) -> None:
    original = 4
    student = ToyLearner(FLOW, network=Table(original), kind=SAMPLE)
    roles = Roles(ExactLearner(FLOW), student, target=student.twin())
    method = LCM(original=original, decay=decay, strata=original, steps=1)
    distilled(method, roles, 120, 0.05, clean=of_gaussian, batch=16)
    distilled(method, roles, 280, 0.01, first=120, clean=of_gaussian, batch=16)
    some = context(roles, batch=16).deal(0)
    levels = (*FLOW.levels([1, 0.75, 0.5, 0.25]), FLOW.clean)
    x = roles.teacher.start(some.seeds, levels)
    end = sample(roles.teacher.denoiser(some.prompts), x, sampler="ddim", grid=levels)
    said = method.sample(student, some, rows=16)
    assert (said - end).abs().max() < 0.02 * end.abs().max()


def test_teacher_student_and_target_have_one_scale() -> None:
    class Noted(ExactLearner):
        lines: Sequence[str] = ()

        def denoiser(self, prompts: Sequence[str], guidance: str = "none", told: Any = None) -> Any:
            self.lines = [*self.lines, guidance]
            return super().denoiser(prompts, guidance, told)

    roles, network = exact_roles(VP, guided_as_told, WIDTH)
    roles.teacher = Noted(VP)
    list(LCM(scale_conditioned=True, decay=0.0).update(context(roles, "cfg:scale=3", 8, of_gaussian)))
    scales = [parse(line).scale for line in roles.teacher.lines if line != "none"]  # type: ignore[attr-defined]
    assert len(scales) == 8 and min(scales) < 7.5 and max(scales) > 14.5
    told = torch.tensor(network.told).reshape(8, 2)  # of the target, then of the student
    torch.testing.assert_close(told, torch.tensor(scales)[:, None].expand(8, 2), rtol=0, atol=1e-3)


def test_the_target_follows_and_goes_on_to_the_bit_after_a_restart(tmp_path: Path) -> None:
    method, settings = LCM(strata=2), dict(guidance="cfg:scale=3", clean=of_gaussian)

    def opened() -> tuple[Roles, dict[str, Any]]:
        roles = toy_roles(VP, hidden=8)
        roles.target = roles.student.twin()  # type: ignore[attr-defined]
        with torch.no_grad():
            roles.target.parameters[0].zero_()  # the first update copies the student
        return roles, {"student": torch.optim.Adam(roles.student.parameters, lr=1e-2)}

    roles, optimisers = opened()
    before = [p.detach().clone() for p in roles.student.parameters]
    state = distilled(method, roles, 1, optimisers=optimisers, **settings)
    assert roles.target is not None
    for start, now, held in zip(before, roles.student.parameters, roles.target.parameters, strict=True):
        torch.testing.assert_close(held.detach(), 0.95 * start + 0.05 * now.detach(), rtol=0, atol=1e-14)
    distilled(method, roles, 3, first=1, state=state, optimisers=optimisers, **settings)
    kept = {"memory": state, "student": [p.detach() for p in roles.student.parameters],
            "optimiser": optimisers["student"].state_dict()}  # fmt: skip
    checkpoint.write(tmp_path / "kept.safetensors", kept)
    distilled(method, roles, 6, first=3, state=state, optimisers=optimisers, **settings)

    again, optimisers = opened()
    read = checkpoint.read(tmp_path / "kept.safetensors")
    with torch.no_grad():
        for parameter, value in zip(again.student.parameters, read["student"], strict=True):
            parameter.copy_(value)
    optimisers["student"].load_state_dict(read["optimiser"])
    state_2 = distilled(method, again, 6, first=3, state=read["memory"], optimisers=optimisers, **settings)
    assert again.target is not None
    for one, other in [*zip(roles.student.parameters, again.student.parameters, strict=True),
                       *zip(roles.target.parameters, again.target.parameters, strict=True)]:  # fmt: skip
        assert torch.equal(one, other)
    assert checkpoint.same(state, state_2) and not torch.equal(again.target.parameters[0], again.student.parameters[0])


def test_a_target_of_another_build_is_refused() -> None:
    roles = toy_roles(VP, hidden=8)
    roles.target = ToyLearner(VP, hidden=9)
    with pytest.raises(UsageError, match="same settings"):
        list(LCM().update(context(roles, clean=of_gaussian)))


# -- reflow ----------------------------------------------------------------------------------------------------------


def straight(schedule: NoiseSchedule) -> Any:
    """Pairs of the exact flow of N(told, 1/4 I) from unit noise, x_0 = told + z / 2, and the picture that is right for
    all of x_t = alpha x_0 + sigma z."""

    def answer(x: Tensor, level: Level, told: Tensor, _: Any) -> Tensor:
        z = (x - level.alpha * told) / (level.alpha * 0.5 + level.sigma)
        return told + 0.5 * z

    return answer


def of_pairs(some: Pictures) -> Tensor:
    assert some.starts is not None
    return column(told_of(some.prompts)) + 0.5 * SeededNoise(list(some.starts)).initial((2, 1, 1)).double()


@BOTH
def test_straight_runs_are_the_optimum_of_reflow(schedule: NoiseSchedule) -> None:
    roles, network = exact_roles(schedule, straight(schedule))
    ctx = context(roles, clean=of_pairs, pairs=True)
    assert total_loss(Reflow(low=0.02, high=0.98), ctx) < 1e-9
    with torch.no_grad():
        network.nudge += torch.tensor([0.05, -0.05])
    distilled(Reflow(low=0.02, high=0.98, strata=4), roles, 100, 0.005, clean=of_pairs, pairs=True)
    assert network.nudge.detach().abs().max() < 1e-3
    if schedule is FLOW:  # and one step goes all the way
        some = ctx.data(0)
        made = Reflow().sample(roles.student, Pictures(some.prompts, some.starts or []), rows=8)
        assert some.clean is not None and (made - some.clean).abs().max() < 5e-3


def test_reflow_by_hand_and_with_the_paired_noise() -> None:
    roles = toy_roles(VP)
    ctx = context(roles, clean=of_pairs, pairs=True, batch=6)
    method = Reflow(strata=1, low=0.3, high=0.31)
    some, level = ctx.data(0), ctx.groups(method.times, 6, "reflow")[0].level
    assert some.clean is not None
    z = (some.clean - column(told_of(some.prompts))) * 2
    said = roles.student.denoiser(some.prompts)(level.alpha * some.clean + level.sigma * z, level)
    torch.testing.assert_close(
        total_loss(method, ctx), float((said.noise - said.denoised - z + some.clean).detach().square().mean())
    )
    level = roles.student.levels("trailing", 1)[0]
    said = roles.student.denoiser(some.prompts)(level.sigma * z, level)
    wanted = float((said.denoised - some.clean).detach().square().mean())
    assert total_loss(Reflow(regression=True), ctx) == pytest.approx(wanted, rel=1e-12)


# -- pipelines -------------------------------------------------------------------------------------------------------

METHODS = [
    GuidanceDistillation(fixed=True, steps=3, points=2),
    GuidanceDistillation(fixed=True, states="trajectory", steps=3, points=2),
    LCM(steps=1), LCM(decay=0.0, steps=1), Reflow(), Reflow(regression=True),
    UCGMT(consistency=0.0, zeta=0.5, stochasticity=0.0), UCGMT(steps=1), UCGMT(consistency=0.5, zeta=2.0, steps=1),
]  # fmt: skip
TOLD = [GuidanceDistillation(steps=3, points=2), LCM(scale_conditioned=True, steps=1)]


def pipeline_roles(method: DistillMethod, lora: LoraSettings | None, told: bool) -> tuple[Any, Roles]:
    """As a run opens them: one network with adapters, or copies of it."""
    pipe = stable_diffusion()
    further = {} if lora else dict(network=method.network(pipe.unet), base=pipe.unet)
    student = PipelineLearner(pipe, lora, seed=3, **further)
    assert (getattr(student.network.config, "time_cond_proj_dim", None) is not None) == told
    target = None
    if "target" in method.roles:
        further = {} if lora else dict(network=method.network(pipe.unet), base=pipe.unet)
        target = PipelineLearner(pipe, lora, adapter="target", conditions=student.conditions, **further)
    return pipe, Roles(Frozen(student), student, target=target)


def dealt(roles: Roles, method: DistillMethod) -> Any:
    def clean(some: Pictures) -> Tensor:
        return 0.5 * SeededNoise(list(some.seeds)).initial(roles.student.shape)

    return context(roles, "cfg:scale=3", 4, clean, rows=2, pairs=True, prompts=("a red star", "two blue rings"))


@pytest.mark.parametrize("lora", [LoraSettings(), None], ids=["lora", "all"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_update_of_a_pipeline(method: DistillMethod, lora: LoraSettings | None) -> None:
    learn(method, lora, told=False)


@pytest.mark.parametrize("method", TOLD, ids=str)
def test_an_update_of_a_pipeline_whose_network_takes_a_scale(method: DistillMethod) -> None:
    learn(method, None, told=True)


def learn(method: DistillMethod, lora: LoraSettings | None, told: bool) -> None:
    pipe, roles = pipeline_roles(method, lora, told)
    method.check(roles, "cfg:scale=3")
    ctx = dealt(roles, method)
    some = ctx.deal(0)
    taught = roles.teacher.denoiser(some.prompts)
    x, level = torch.ones(4, *roles.student.shape), taught.schedule.level(500)
    with torch.no_grad():
        before = taught(x, level).native
    optimiser = torch.optim.SGD(roles.student.parameters, lr=1e-3)
    steps = 0
    for part in method.update(ctx):
        assert part.role == "student" and bool(part.loss.isfinite())
        part.loss.backward()
        if part.steps:
            steps += 1
            optimiser.step()
            optimiser.zero_grad()
    assert steps == 1 and roles.student.change() > 0
    with torch.no_grad():
        assert torch.equal(roles.teacher.denoiser(some.prompts)(x, level).native, before)
    saved_runs_as_ours(method, pipe, roles, some, told)


def saved_runs_as_ours(method: DistillMethod, pipe: Any, roles: Roles, some: Pictures, told: bool) -> None:
    """The pipeline with the method's scheduler makes what the method's own `sample` makes."""
    with torch.no_grad():
        ours = method.sample(roles.student, some, rows=4)
    pipe.unet, pipe.scheduler = roles.student.network, method.scheduler(pipe.scheduler)  # type: ignore[attr-defined]
    adapted = roles.student.adapter is not None and roles.target is not None  # type: ignore[attr-defined]
    if adapted:
        pipe.unet.set_adapter(roles.student.adapter)  # type: ignore[attr-defined]
    start = SeededNoise(list(some.seeds)).initial(roles.student.shape)
    with torch.no_grad():
        stock = pipe(
            list(some.prompts), num_inference_steps=method.steps, latents=start, output_type="latent",
            guidance_scale=method.scale if told else 1.0,  # type: ignore[attr-defined]
        ).images  # fmt: skip
    scale = float(ours.abs().max())
    assert (ours - stock).abs().max() < 0.02 * scale, float((ours - stock).abs().max()) / scale
