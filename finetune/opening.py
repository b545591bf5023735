"""From a spec to what a run works with: the model that learns, the reward, the judges. What cannot go is refused here,
before anything big is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..generation.models import load_weak
from ..generation.spec import RunSpec
from ..guidance.grammar import parse
from ..training.judging import of_the_world
from ..training.learner import Learner
from ..training.pipeline_learner import PipelineLearner, load_for, network_of
from ..training.sharding import Sharding
from .held_out import embedded_judge
from .method import Method
from .methods.registry import make_method
from .rewards.opening import open_rewards
from .rewards.reward import Reward
from .spec import FinetuneSpec


@dataclass(frozen=True, eq=False)
class Opened:
    """modules: everything that is loaded, for the memory plan. features: where diversity is measured, or None."""

    learner: Learner
    method: Method
    reward: Reward
    judges: Mapping[str, Reward] = field(default_factory=dict)
    features: Any = None
    modules: tuple[nn.Module, ...] = ()


def open_run(spec: FinetuneSpec, device: torch.device | str = "cpu", sharding: Sharding | None = None) -> Opened:
    """Everything of a run. sharding: how weights are sharded, None for whole ones. Raises UsageError for a reward
    without a gradient where the method needs one, a judge that is the reward, prompts that a reward cannot read, a
    model that cannot be trained, a sampler that the method cannot learn from, fp16 on a CPU."""
    device = torch.device(device)
    spec.training_prompts()
    if spec.precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU; use precision bf16 or no")
    method = make_method(spec.method)
    if sharding is not None:
        sharding.check(method, spec.guidance, spec.precision, spec.optimizer, spec.offload)
    reward, judges = open_scores(spec, device)
    if method.differentiable and not reward.differentiable:
        raise UsageError(f"{spec.method} needs a gradient, which the reward {reward.name} has not; use ddpo")
    features = None
    if spec.features:
        from ..evaluation.features import open_features

        features = open_features(spec.features, device)
    for score in (reward, *judges.values()):
        score.check_prompts([*spec.training_prompts(), *spec.held_out_prompts()])
    learner, modules = open_learner(spec, device, sharding)
    method.check(learner, spec.sampling)
    return Opened(learner, method, reward, judges, features, modules)


def open_scores(spec: FinetuneSpec, device: torch.device) -> tuple[Reward, dict[str, Reward]]:
    """The training reward and the judges by name; the embedded model's own judge is among them unless a prompt is not
    of its world."""
    if not spec.reward:
        raise UsageError("no reward to raise; name one, such as --reward adherence, see pilotage list rewards")
    reward = open_rewards(spec.reward, device)
    judges = {line: open_rewards(line, device) for line in spec.judges}
    for judge in judges.values():
        refuse_own_judge(reward, judge)
    if spec.model == "embedded" and of_the_world(spec.held_out_prompts()):
        judges = {"adherence": embedded_judge(), **judges} if "adherence" not in judges else judges
    return reward, judges


def refuse_own_judge(reward: Reward, judge: Reward) -> None:
    """A judge is never what was trained on: another model, or without models another reward."""
    shared = _models(reward) & _models(judge)
    if shared:
        raise UsageError(f"the judge {judge.name} is part of the training reward ({min(shared)}); choose another judge")


def _models(reward: Reward) -> set[str]:
    """Of the rewards that it is made of; where there is no model, the reward's name."""
    if reward.parts:
        return set().union(*map(_models, reward.parts))
    return {reward.name.partition(":")[0] if reward.model == "none" else reward.model}


def open_learner(
    spec: FinetuneSpec, device: torch.device, sharding: Sharding | None = None
) -> tuple[PipelineLearner, tuple[nn.Module, ...]]:
    """The model of a spec as a learner, and all modules that were loaded."""
    pipe = load_for(spec, device, sharding)
    network, base, networks = network_of(pipe), None, {}
    if sharding is not None:
        base = copy.deepcopy(network) if spec.train == "all" else None  # once sharded it cannot be copied
        sharding.place(pipe, [network] if base is None else [network, base])
    if "weak" in parse(spec.guidance).needs:
        drawn = RunSpec(model=spec.model, weak=spec.weak, guidance=spec.guidance, device=device.type)
        networks = {"weak": load_weak(drawn, pipe).requires_grad_(False).to(device)}
    learner = PipelineLearner(
        pipe,
        spec.lora if spec.train == "lora" else None,
        base=base,
        seed=spec.seed,
        precision=spec.precision,
        network_checkpoints=spec.network_checkpoints,
        networks=networks,
        size=spec.size,
        call=spec.call,
    )
    if sharding is not None:
        sharding.check_prompts(learner, spec.rows)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return learner, (*parts, *networks.values(), *learner.further_modules())
