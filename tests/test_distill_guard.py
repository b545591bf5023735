"""A batch that a few rows have for themselves: said, and in the end the run stops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distill_trainer import same, spec, toy
from torch import Tensor

from pilotage.distill import train
from pilotage.distill import trainer as trainer_module
from pilotage.distill.divergences import make_divergence
from pilotage.distill.guardrails import Guard, Limits
from pilotage.distill.ratio import RatioWeights
from pilotage.errors import UsageError
from pilotage.training import run_folder


def told(guard: Guard, shares: Sequence[float], every: int = 0) -> list[list[Any]]:
    """The notices after each update; the student is looked at after every so many."""
    found = []
    for number, share in enumerate(shares, start=1):
        notices = guard.weighed(share, 1000)
        found.append(notices + (guard.looked() if every and number % every == 0 else []))
    return found


def test_a_starved_batch_is_said_once_and_forgotten_when_it_recovers() -> None:
    guard = Guard(Limits(starved=3))
    found = told(guard, [0.04, 0.01, 0.6, 0.04, 0.04, 0.03, 0.02, 0.02, 0.05, 0.04, 0.04, 0.04])
    assert [number for number, notices in enumerate(found, start=1) if notices] == [6, 12]
    (notice,) = found[5]
    assert not notice.stops and "a few rows of a batch have all the weight" in notice.text
    assert "clip_low and clip_high" in notice.text and "softer divergence" in notice.text


def test_it_stops_when_so_many_evaluations_in_a_row_see_it() -> None:
    guard = Guard(Limits(starved=2, evaluations=3))
    found = told(guard, [0.01] * 30, every=4)
    first = next(number for number, notices in enumerate(found, start=1) if any(n.stops for n in notices))
    assert first == 12
    assert [number for number, notices in enumerate(found[:12], start=1) if notices] == [2, 4, 8, 12]
    guard = Guard(Limits(starved=2, evaluations=3))
    assert not any(n.stops for ns in told(guard, [0.01] * 10 + [0.9] + [0.01] * 10, every=4) for n in ns)
    for limits in (Limits(starved=2, evaluations=0), Limits(effective=0.0)):
        assert not any(n.stops for ns in told(Guard(limits), [0.01] * 100, every=1) for n in ns)


def test_one_row_of_a_small_batch_is_noticed_too() -> None:
    for share, batch, said in ((1 / 16, 16, True), (2 / 16, 16, False), (1 / 64, 64, True), (4 / 64, 64, False)):
        assert bool(Guard(Limits(starved=1)).weighed(share, batch)) == said
    assert not Guard(Limits(starved=1, effective=0.0)).weighed(1 / 16, 16)


def test_what_is_not_finite_is_another_guards_matter() -> None:
    guard = Guard(Limits(starved=2))
    first, second, third = told(guard, [0.01, float("nan"), 0.01], every=1)
    assert first == second == [] and len(third) == 2 and guard.starved == 2


def test_a_checkpoint_keeps_the_count() -> None:
    guard = Guard(Limits(starved=4, evaluations=2))
    told(guard, [0.01] * 5, every=5)
    again = Guard(guard.limits)
    again.recall(guard.plain())
    assert again == guard and again.starved == 5 and again.evaluations == 1
    older = Guard(guard.limits)
    older.recall({"failed": 2})  # of a run that began before there was one
    assert (older.failed, older.starved) == (2, 0)


@pytest.mark.parametrize("limits", [{"effective": 2}, {"effective": -1}, {"starved": 0}, {"evaluations": -1}])
def test_limits_that_are_none_are_refused(tmp_path: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="limits need effective"):
        spec(tmp_path, limits=limits)


# -- in a run ---------------------------------------------------------------------------------------------------------


def starving(monkeypatch: pytest.MonkeyPatch, from_update: int = 1, to: int = 10**6) -> None:
    """From some update on one row of a batch of 40 has the weight."""
    plain, calls = RatioWeights.weights, [0]

    def weights(self: RatioWeights, logits: Tensor, *rest: Any) -> Any:
        h, numbers = plain(self, logits, *rest)
        calls[0] += 1
        if not from_update <= calls[0] < to:
            return h, numbers
        h = torch.zeros_like(h)
        h[0] = len(h)
        return h, {**numbers, "effective": 1 / len(h)}

    monkeypatch.setattr(RatioWeights, "weights", weights)


SHORT: dict[str, Any] = {
    "batch": 40, "rows": 40, "updates": 9, "evaluate_every": 2, "sheet_every": 0, "learning_rate": 1e-3,
    "method": "f-distill:critic_steps=1,strata=2,divergence=forward-kl",
}  # fmt: skip


def test_a_run_says_it_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starving(monkeypatch, 2, 7)
    done = train(spec(tmp_path, **SHORT, limits={"starved": 3, "evaluations": 3}), opened=toy())
    assert done.updates == 9 and not done.stopped
    assert [notice.split(":")[0] for notice in done.notices] == ["update 4", "update 6"]
    assert all("a few rows of a batch" in notice for notice in done.notices)
    lines = run_folder.read_log(tmp_path)
    assert [line["update"] for line in lines if "notices" in line] == [4, 6]


def test_a_run_stops_after_its_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starving(monkeypatch)
    limited = spec(tmp_path, **SHORT, limits={"starved": 3, "evaluations": 2})
    done = train(limited, opened=toy())
    assert done.updates == 6 and done.stopped == "stopped; the weights after update 2, when all was well, are kept"
    assert "softer divergence" in done.notices[-2] and (done.result / "README.md").is_file()
    assert train(limited, opened=toy()).made == 0


def test_a_run_that_was_stopped_on_the_way_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"starved": 3, "evaluations": 2}
    starving(monkeypatch)
    whole = toy()
    one = train(spec(tmp_path / "whole", **SHORT, limits=limits), opened=whole)
    plain = trainer_module.Run._one

    def until_four(run: Any) -> None:
        if run.update == 4:
            raise KeyboardInterrupt
        plain(run)

    monkeypatch.setattr(trainer_module.Run, "_one", until_four)
    with pytest.raises(KeyboardInterrupt):
        train(spec(tmp_path / "parts", **SHORT, limits=limits), opened=toy())
    monkeypatch.setattr(trainer_module.Run, "_one", plain)
    other = train(spec(tmp_path / "parts", **SHORT, limits=limits), opened=(resumed := toy()))
    assert (other.updates, other.stopped, other.notices) == (one.updates, one.stopped, one.notices)
    assert same(whole, resumed)


def test_a_discriminator_that_is_sure_of_one_row_starves_the_forward_kl_and_a_clip_feeds_it() -> None:
    """The notice's own cure: what it reads of a real batch of weights."""
    logits, shares = torch.full((64,), -6.0), torch.full((64,), 0.5)
    logits[0] = 6.0

    def effective(name: str, clip: tuple[float, float]) -> float:
        ratio = RatioWeights(clip, by_bin=False)
        return ratio.weights(logits, shares, make_divergence(name), {}, lambda values: values)[1]["effective"]

    assert effective("forward-kl", (1e-3, 1e3)) < 0.05 < effective("forward-kl", (0.1, 1.0))
    assert effective("softened", (1e-3, 1e3)) > 0.9
