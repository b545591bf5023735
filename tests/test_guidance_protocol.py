"""The rule protocol: rounds, rows, sharing, memory, closing."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import guidance_toys as toys
import pytest
import torch

from pilotage import guidance, samplers
from pilotage.errors import UsageError
from pilotage.guidance.dialogue import Dialogue
from pilotage.guidance.memory import Memory
from pilotage.guidance.rule import Ask, Context, Guide, Modifier, Point, Rule, changed, narrowed, together
from pilotage.samplers.noise import SeededNoise

X = toys.normal(3, 4, 4, seed=9)


def run(made: guidance.Guided, x: torch.Tensor = X, **settings: Any) -> torch.Tensor:
    return samplers.sample(made, x, **{"sampler": "dpmpp-2m", "grid": "karras", "steps": 6, **settings})


@dataclass(frozen=True)
class Scripted(Rule):
    """A rule that a test writes as a function of the context."""

    script: Any
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        return (yield from self.script(ctx))


# -- rounds and rows --------------------------------------------------------------------------------------------------


def test_equal_asks_are_evaluated_once_whoever_asks() -> None:
    rule = guidance.CFG(3.0) + guidance.Rescale(0.5) + guidance.Adaptive(2.0) + guidance.Interval()
    made = toys.guided(rule)
    run(made)
    assert made.evaluations == {"cond": 18, "uncond": 18}
    assert made.networks["main"].calls == [6] * 6  # one call a step, both branches in it


def test_asks_repeated_in_later_rounds_cost_nothing() -> None:
    def script(ctx: Context) -> Guide:
        (c,) = yield (Ask(),)
        c2, u = yield Ask(), Ask("uncond")
        c3, u2 = yield Ask(), Ask("uncond")
        assert c2 is c and c3 is c and u2 is u
        return c

    made = toys.guided(Scripted(script))
    made(X, toys.SD.level(500.0))
    assert made.evaluations == {"cond": 3, "uncond": 3}
    assert made.networks["main"].calls == [3, 3]


def test_a_second_round_may_depend_on_the_first() -> None:
    """Only the rows whose first answer is positive are asked again, with another condition."""

    def script(ctx: Context) -> Guide:
        (c,) = yield (Ask(),)
        rows = c.denoised.flatten(1).sum(1) > 0
        (moved,) = yield (Ask(edit=double, rows=rows),)
        return moved.where(rows, c)

    def double(condition: Any) -> Any:
        return 2 * condition

    given = {"cond": torch.stack([torch.full((4, 4), float(v), dtype=torch.float64) for v in (5, -5, 7)])}
    made = toys.guided(Scripted(script), given=given)
    level = toys.SD.level(500.0)
    answer = made(X, level).denoised
    wanted = torch.stack([2 * given["cond"][0], given["cond"][1], 2 * given["cond"][2]])
    assert torch.equal(answer, toys.Toy()(X, level, wanted).denoised)
    assert made.evaluations == {"cond": 5} and made.networks["main"].calls == [3, 2]


def test_rows_narrow_what_is_evaluated_and_add_up() -> None:
    first, second = torch.tensor([True, False, False]), torch.tensor([True, False, True])
    seen = []

    def script(ctx: Context) -> Guide:
        _, u = yield Ask(), Ask("uncond", rows=first)
        seen.append(u.native.clone())
        (u,) = yield (Ask("uncond", rows=second),)
        seen.append(u.native.clone())
        (u,) = yield (Ask("uncond"),)
        return u

    made = toys.guided(Scripted(script))
    level = toys.SD.level(500.0)
    answer = made(X, level).native
    whole = toys.Toy()(X, level, made.conditions["uncond"]).native
    assert torch.equal(seen[0][0], whole[0]) and not seen[0][1:].any()
    assert torch.equal(seen[1][[0, 2]], whole[[0, 2]]) and not seen[1][1].any()
    assert torch.equal(answer, whole)
    assert made.networks["main"].calls == [4, 1, 1] and made.evaluations == {"cond": 3, "uncond": 3}


def test_asks_of_one_round_join_their_rows() -> None:
    def script(ctx: Context) -> Guide:
        first, second = torch.tensor([True, False, False]), torch.tensor([False, False, True])
        yield Ask("uncond", rows=first), Ask("uncond", rows=second)
        (c,) = yield (Ask(),)
        return c

    made = toys.guided(Scripted(script))
    made(X, toys.SD.level(500.0))
    assert made.networks["main"].calls == [2, 3]


def test_an_ask_for_no_row_is_not_evaluated() -> None:
    def script(ctx: Context) -> Guide:
        nobody = torch.zeros(3, dtype=torch.bool)
        c, u = yield Ask(), Ask("uncond", rows=nobody)
        return u.where(nobody, c)

    for kind in (toys.SAMPLE, toys.EPSILON):
        made = toys.guided(Scripted(script), kind=kind)
        level = toys.SD.level(500.0)
        assert torch.equal(made(X, level).native, toys.Toy(kind)(X, level, made.conditions["cond"]).native)
        assert made.evaluations == {"cond": 3}


def test_together_shares_rounds() -> None:
    def one(ctx: Context) -> Guide:
        _, u = yield Ask(), Ask("uncond")
        return u

    def two(ctx: Context) -> Guide:
        yield (Ask("uncond"),)
        (i,) = yield (Ask("image"),)
        return i

    def script(ctx: Context) -> Guide:
        u, i = yield from together(one(ctx), two(ctx))
        return u.like(u.native + i.native)

    made = toys.guided(Scripted(script))
    level = toys.SD.level(500.0)
    answer = made(X, level).native
    wanted = sum(toys.Toy()(X, level, made.conditions[name]).native for name in ("uncond", "image"))
    assert torch.equal(answer, wanted)
    assert made.networks["main"].calls == [6, 3]  # the longest of them, not the sum


def test_changed_edits_every_ask_of_every_round() -> None:
    asked = []

    def edit(ask: Ask) -> Ask:
        asked.append(ask.branch)
        return narrowed(ask, torch.tensor([True, True, False]))

    def inner(ctx: Context) -> Guide:
        (c,) = yield Ask()  # a single ask needs no tuple
        yield Ask("uncond"), Ask("image")
        return c

    made = toys.guided(Scripted(lambda ctx: changed(inner(ctx), edit)))
    made(X, toys.SD.level(500.0))
    assert asked == ["cond", "uncond", "image"] and made.networks["main"].calls == [2, 4]


def test_asks_compare_settings_by_value_and_tensors_by_identity() -> None:
    x, level = torch.ones(2, 2), toys.SD.level(3.0)
    assert Ask(at=Point(x, level)) == Ask(at=Point(x, level))
    assert Ask(at=Point(x, level)) != Ask(at=Point(x.clone(), level))
    assert Ask("uncond", rows=torch.ones(2, dtype=torch.bool)) == Ask("uncond")
    assert len({Ask(), Ask("cond"), Ask(grad=True), Ask(patch="a"), Ask(patch="a")}) == 3


def test_another_point_and_a_gradient() -> None:
    """The network's Jacobian is asked for under no_grad; for N(m, w^2) it is a multiple of the identity."""
    level, other = toys.SD.level(500.0), toys.SD.level(200.0)
    slopes = []

    def script(ctx: Context) -> Guide:
        x = ctx.x.clone().requires_grad_()
        c, at = yield Ask(), Ask(at=Point(x, other), grad=True)
        with torch.enable_grad():
            slopes.append(torch.autograd.grad(at.denoised.sum(), x)[0])
        return c

    made = toys.guided(Scripted(script))
    with torch.no_grad():
        answer = made(X, level)
    assert not answer.native.requires_grad
    gain = other.alpha * 0.25 / (other.alpha**2 * 0.25 + other.sigma**2)
    assert torch.allclose(slopes[0], torch.full_like(X, gain), atol=1e-12)


# -- branches ---------------------------------------------------------------------------------------------------------


def test_an_unknown_branch_is_named_with_the_nearest() -> None:
    made = toys.guided(Scripted(lambda ctx: iter_of(Ask("uncnd"))))
    with pytest.raises(UsageError, match=r"asks for the branch 'uncnd'.*did you mean uncond"):
        made(X, toys.SD.level(500.0))
    with pytest.raises(UsageError, match='needs a network called "main"'):
        guidance.Guided({"strong": toys.Toy()}, guidance.CFG())


def iter_of(*asks: Ask) -> Guide:
    answers = yield asks
    return answers[0]


def test_conditions_of_unlike_form_are_not_batched_together() -> None:
    """None, a number and tensors of other lengths cannot share a call; a silent join would lose all but the first."""

    def network(x: torch.Tensor, level: Any, condition: Any) -> Any:
        calls.append(len(x))
        value = 0.0 if condition is None else condition if isinstance(condition, float) else condition.sum(1)
        value = torch.as_tensor(value, dtype=x.dtype).reshape(-1, 1, 1)
        return toys.spoken(x, level, torch.zeros_like(x) + value, toys.SAMPLE)

    network.schedule = toys.SD  # type: ignore[attr-defined]
    level = toys.SD.level(500.0)
    for cond, uncond, apart in ((3.0, 1.0, True), (None, 1.0, True), (torch.ones(3, 5), torch.ones(3, 2), True),
                                (torch.ones(3, 2), torch.zeros(1, 2), False)):  # fmt: skip
        calls: list[int] = []
        made = guidance.Guided(network, guidance.CFG(2.0), {"cond": cond, "uncond": uncond})
        c, u = (network(X, level, v).native for v in (cond, uncond))
        calls.clear()
        assert torch.equal(made(X, level).native, u + 2.0 * (c - u))
        assert calls == ([3, 3] if apart else [6])


def test_scales_by_row_equal_the_rows_alone() -> None:
    for cls in (guidance.CFG, guidance.APG, guidance.Autoguidance):
        made = toys.guided(cls((1.0, 4.0, 9.0)))
        batch = run(made)
        other = "weak" if cls is guidance.Autoguidance else "uncond"
        assert made.evaluations == {"cond": 18, other: 12}  # the row at scale 1 has no second branch
        for row, scale in enumerate((1.0, 4.0, 9.0)):
            given = {k: v[row : row + 1] for k, v in made.conditions.items()}
            alone = run(toys.guided(cls(scale), given=given), X[row : row + 1])
            assert (alone - batch[row]).abs().max() < 1e-12
    with pytest.raises(UsageError, match="2 scales for 3 rows"):
        run(toys.guided(guidance.CFG((2.0, 3.0))))


# -- closing ----------------------------------------------------------------------------------------------------------


def test_generators_are_closed_and_patches_leave_whatever_happens() -> None:
    live: list[str] = []

    @contextmanager
    def entered(name: str) -> Any:
        live.append(name)
        try:
            yield
        finally:
            live.remove(name)

    class Patch:
        def on(self, network: Any) -> Any:
            return entered("patch")

    patch = Patch()

    def script(ctx: Context) -> Guide:
        with entered("rule"):
            (c,) = yield (Ask(patch=patch),)
        return c

    def fails(*_: Any) -> Any:
        assert live == ["rule", "rule", "patch"]
        raise RuntimeError("out of memory")

    fails.schedule = toys.SD  # type: ignore[attr-defined]
    rule = guidance.Sum((Scripted(script), Scripted(script)))
    with pytest.raises(RuntimeError, match="out of memory"):
        guidance.Guided(fails, rule)(X, toys.SD.level(500.0))
    assert live == []

    waiting = Dialogue(rule, toys.context(X, toys.SD.level(500.0), toys.SD.clean), Counter())
    assert live == ["rule", "rule"] and waiting.advance(lambda wanted: [], lambda ask: False) is None
    waiting.close()
    assert live == []


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps(Rule):
    """Counts outer steps in its memory."""

    seen: list[int]
    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        count = ctx.recall(self, torch.zeros(3))
        self.seen.append(int(count[0]))
        ctx.keep(self, count + 1)
        ctx.keep(self, count + 1)
        (c,) = yield (Ask(),)
        return c


@pytest.mark.parametrize(("sampler", "stages"), [("heun", 2), ("dpmpp-2m", 1)])
def test_memory_moves_once_an_outer_step(sampler: str, stages: int) -> None:
    seen: list[int] = []
    run(toys.guided(Steps(seen)), sampler=sampler, steps=4)
    last = [3] if stages == 2 else []  # Heun's last step is an Euler step
    assert seen == sorted([0, 1, 2, 3] * stages)[: len(seen)] and len(seen) == 4 * stages - len(last)


def test_momentum_advances_once_a_step_under_heun() -> None:
    """Every stage of a step sees the momentum of the step before."""
    rule = guidance.APG(4.0, momentum=-0.5, eta=1.0)
    made = toys.guided(rule)
    differences, momenta = [], []
    for step in samplers.iterate(made, X, sampler="heun", grid="karras", steps=4):
        p = toys.Toy()(step.prediction.x, step.prediction.level, made.conditions["cond"])
        q = toys.Toy()(step.prediction.x, step.prediction.level, made.conditions["uncond"])
        differences.append(p.denoised - q.denoised)
        momenta.append(step.state.memory.later[("APG",)])
    expected = torch.zeros_like(X)
    for difference, momentum in zip(differences, momenta, strict=True):
        expected = difference - 0.5 * expected
        assert torch.allclose(momentum, expected, atol=1e-12)


@pytest.mark.parametrize("line", ["apg:scale=6", "cfg:scale=4 + adaptive:threshold=0.9", "cfg++:lam=0.4"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp-2m", "euler-ancestral"])
def test_a_run_goes_on_from_any_earlier_step(line: str, sampler: str) -> None:
    made = toys.guided(guidance.parse(line))
    noise = SeededNoise([1, 2, 3])
    settings: dict[str, Any] = dict(sampler=sampler, grid="karras", steps=6, noise=noise)
    states = list(samplers.iterate(made, X, **settings))
    whole = [step.get("rho") for step in made.steps]
    evaluations = made.evaluations
    for back in (1, 4, 2):
        again = list(samplers.iterate(made, X, state=states[back].state, **settings))
        assert torch.equal(again[-1].x, states[-1].x)
        assert [step["rho"] for step in made.steps] == whole  # written anew from there
    run(made, **settings)
    assert made.evaluations == evaluations  # a new run counts from zero


def test_rows_that_were_dropped_keep_their_momentum() -> None:
    @dataclass(frozen=True)
    class Drop(Modifier):
        """Row 1 is out at step 2."""

        passes: ClassVar[int] = 0

        def guide(self, ctx: Context) -> Guide:
            on = torch.tensor([True, ctx.step != 2, True])
            p = yield from changed(self.rule.guide(ctx.narrowed(on)), lambda a: a if a == Ask() else narrowed(a, on))
            (c,) = yield (Ask(),)
            return p.where(on, c)

    made = toys.guided(Drop(inner=guidance.APG(4.0)))
    kept = [s.state.memory.later[("APG",)] for s in samplers.iterate(made, X, sampler="euler", steps=5)]
    assert torch.equal(kept[2][1], kept[1][1]) and not torch.equal(kept[2][0], kept[1][0])
    assert not torch.equal(kept[3][1], kept[2][1])
    assert made.evaluations == {"cond": 15, "uncond": 14}


def test_rows_left_out_from_the_start_remember_zeros() -> None:
    rows = torch.tensor([True, False, True])
    ctx = toys.context(X, toys.SD.level(500.0), toys.SD.clean).narrowed(rows)
    ctx.keep(guidance.APG(), X)
    assert torch.equal(ctx.kept[("APG",)], torch.where(rows.reshape(3, 1, 1), X, 0.0))


@pytest.mark.parametrize("line", ["apg:scale=6", "cfg:scale=4 + adaptive:threshold=0.9", "apg + adaptive"])
def test_nothing_is_left_of_a_run(line: str) -> None:
    """The same object twice equals two fresh objects, also after a run that was given up half-way."""
    rule = guidance.parse(line)
    made = toys.guided(rule)
    first = run(made)
    next(iter(samplers.iterate(made, X, steps=6)))
    assert torch.equal(run(made), first)
    assert torch.equal(run(toys.guided(guidance.parse(line))), first)
    assert len(made.steps) == 6


def test_parts_of_a_sum_remember_apart() -> None:
    ctx = toys.context(X, toys.SD.level(500.0), toys.SD.clean)
    a, b = guidance.APG(2.0), guidance.APG(3.0)
    ctx.scoped(0).keep(a, X)
    ctx.scoped(1).keep(b, 2 * X)
    later = Memory().after(ctx).later
    assert torch.equal(later[(0, "APG")], X) and torch.equal(later[(1, "APG")], 2 * X)


def test_differentiable_runs_leave_no_graph_in_the_record() -> None:
    made = toys.guided(guidance.parse("apg:scale=3 + adaptive:threshold=0.999"))
    x = X.clone().requires_grad_()
    result = run(made, x)
    (slope,) = torch.autograd.grad(result.sum(), x)
    assert slope.abs().sum() > 0
    for step in made.steps:
        assert not any(v.requires_grad for v in step.values() if isinstance(v, torch.Tensor))


def test_gradients_through_a_rule_are_right() -> None:
    """Finite differences of a guided run, momentum and all."""
    made = toys.guided(guidance.APG(3.0), shape=(1, 2, 2), given=toys.conditions(1, 2, 2))
    x = toys.normal(1, 2, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: run(made, v, steps=4), x, eps=1e-6, atol=1e-6)


# -- the end of a step, and the record --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clamped(Rule):
    """Keeps x in a box at the end of each outer step."""

    passes: ClassVar[int] = 0

    def guide(self, ctx: Context) -> Guide:
        return (yield from iter_of(Ask()))

    def after(self, ctx: Context, x: torch.Tensor) -> torch.Tensor:
        assert ctx.level == ctx.goal
        return x.clamp(-0.5, 0.5)


def test_after_acts_once_a_step_through_modifiers_and_sums() -> None:
    assert not guidance.parse("cfg + interval").moves and guidance.Interval(inner=Clamped()).moves
    for rule in (Clamped(), guidance.Interval(inner=Clamped()), guidance.Sum((Clamped(), guidance.Unguided()))):
        for step in samplers.iterate(toys.guided(rule), X, sampler="heun", steps=4):
            assert step.x.abs().max() <= 0.5


def test_the_record_of_a_run() -> None:
    made = toys.guided(guidance.parse("cfg:scale=4 + adaptive:threshold=0.9"))
    trace = list(samplers.iterate(made, X, steps=6, grid="karras"))
    assert len(made.steps) == 6
    p = trace[0].prediction
    c, u = (toys.Toy()(p.x, p.level, made.conditions[name]).native for name in ("cond", "uncond"))
    first = made.steps[0]
    assert first["step"] == 0 and first["rho"] == trace[0].state.levels[0].rho
    assert torch.allclose(first["difference"], (c - u).flatten(1).norm(dim=1), rtol=1e-6)
    cosine = torch.nn.functional.cosine_similarity(c.flatten(1), u.flatten(1), dim=1)
    assert torch.allclose(first["cosine"], cosine, atol=1e-6)
    for step in made.steps:
        assert torch.equal(step["scale"], torch.where(step["guided_rows"], 4.0, 1.0))
    assert isinstance(made.record.as_plain()[0]["scale"], list)


def test_the_recorded_cosine_keeps_its_digits_near_one() -> None:
    from pilotage.guidance.record import _finished

    a = toys.normal(2, 4096, dtype=torch.float32)
    b = a + 1e-3 * toys.normal(2, 4096, seed=1, dtype=torch.float32)
    norms = tuple(torch.linalg.vector_norm(t, dim=1) for t in (a, b, a - b))
    exact = 1 - torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    assert torch.allclose(1 - _finished({"_norms": norms})["cosine"], exact, rtol=1e-3)
    equal = (norms[0], norms[0], torch.zeros(2))
    assert torch.equal(_finished({"_norms": equal})["cosine"], torch.ones(2, dtype=torch.float64))
