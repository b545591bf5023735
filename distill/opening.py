"""From a spec to a teacher, a student and its helpers. What cannot go is refused here, before anything is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..generation.models import load_weak
from ..generation.spec import RunSpec
from ..guidance.grammar import parse
from ..guidance.pipelines import adapter_of
from ..training.learner import Learner
from ..training.pipeline_learner import PipelineLearner, load_for, network_of
from ..training.sharding import Sharding
from .data import check_line, is_of_teacher
from .head import Head
from .method import DistillMethod
from .methods.registry import make_method
from .roles import FAKE, HEAD, STUDENT, TARGET, Frozen, Roles
from .spec import DistillSpec
from .student import read_adapters, read_network, student_folder


@dataclass(frozen=True, eq=False)
class Opened:
    """pipe: the teacher's pipeline, None for learners of another kind. modules: everything that is loaded, for the
    memory plan. features: where pictures are compared, or None. sharding: how weights are sharded, or None."""

    roles: Roles
    method: DistillMethod
    pipe: Any = None
    features: Any = None
    modules: tuple[nn.Module, ...] = ()
    sharding: Sharding | None = None


def open_run(spec: DistillSpec, device: torch.device | str = "cpu", sharding: Sharding | None = None) -> Opened:
    """Everything of a run. sharding: how weights are sharded, None for whole ones. Raises UsageError for a teacher
    that cannot be used as a denoiser, a method that needs data where none is named, a rule that the method cannot learn
    from, fp16 on a CPU."""
    device = torch.device(device)
    spec.training_prompts()
    method = make_method(spec.method)
    if spec.precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU; use precision bf16 or no")
    if method.needs_data and spec.data is None:
        raise UsageError(f"{spec.method} needs real latents; give data=teacher:1000, or a folder of pictures")
    if method.needs_data and spec.data is not None:
        check_line(spec.data)
        if method.needs_pairs and not is_of_teacher(spec.data):
            raise UsageError(f"{spec.method} needs what the teacher made of known noise; give data=teacher:2000")
    if spec.start:
        student_folder(Path(spec.start))
    if sharding is not None:
        sharding.check(method, spec.guidance, spec.precision, spec.optimizer, spec.offload)
    features = None
    if spec.features:
        from ..evaluation.features import open_features

        features = open_features(spec.features, device)
    pipe = load_for(spec, device, sharding)
    roles = open_roles(spec, method, pipe, sharding)
    method.check(roles, spec.guidance)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return Opened(roles, method, pipe, features, (*parts, *_networks(roles, pipe)), sharding)


def open_roles(spec: DistillSpec, method: DistillMethod, pipe: Any, sharding: Sharding | None = None) -> Roles:
    """The teacher is the pipeline's own network, which never changes: students are adapters on it, or copies."""
    networks = _copies(spec, method, network_of(pipe))
    if spec.start and STUDENT in networks:
        read_network(Path(spec.start), networks[STUDENT], adapter_of(pipe).network)
    if sharding is not None:
        sharding.place(pipe, [network_of(pipe), *networks.values()])
    student = _learner(spec, pipe, STUDENT, networks, None)
    if spec.start and STUDENT not in networks:
        read_adapters(Path(spec.start), student)
    if sharding is not None:
        sharding.check_prompts(student, spec.rows)
    roles = Roles(Frozen(student), student)
    if FAKE in method.roles:
        roles.fake = _learner(spec, pipe, FAKE, networks, student)
    if TARGET in method.roles:
        roles.target = _learner(spec, pipe, TARGET, networks, student)
        for parameter in roles.target.parameters:
            parameter.requires_grad_(False)
    if HEAD in method.roles:
        roles.head = _head(roles.teacher, spec.seed)
    return roles


def _copies(spec: DistillSpec, method: DistillMethod, teacher: Any) -> dict[str, Any]:
    """The networks of the roles whose weights all learn, by role. A copy is the method's, which may give it a further
    input."""
    whole = {STUDENT: spec.train == "all", FAKE: not spec.fake_lora, TARGET: spec.train == "all"}
    return {role: method.network(teacher).float() for role in method.roles if whole.get(role)}


def _learner(
    spec: DistillSpec, pipe: Any, name: str, networks: Mapping[str, Any], first: PipelineLearner | None
) -> PipelineLearner:
    """One that learns: of these networks, or as adapters on the pipeline's."""
    return PipelineLearner(
        pipe,
        None if name in networks else spec.lora,
        network=networks.get(name),
        base=network_of(pipe) if name in networks else None,
        adapter=name,
        seed=spec.seed,
        precision=spec.precision,
        network_checkpoints=spec.network_checkpoints,
        networks=_weak(spec, pipe) if first is None else first.networks,
        size=spec.size,
        call=spec.call,
        conditions=None if first is None else first.conditions,
    )


def _weak(spec: DistillSpec, pipe: Any) -> dict[str, nn.Module]:
    if "weak" not in parse(spec.guidance).needs:
        return {}
    drawn = RunSpec(model=spec.model, weak=spec.weak, guidance=spec.guidance, device=spec.device)
    return {"weak": load_weak(drawn, pipe).requires_grad_(False).to(pipe.device)}


def _head(teacher: Learner, seed: int) -> Head:
    """For what the teacher's network has in its middle."""
    level = teacher.levels("trailing", 2)[1]
    with torch.no_grad():
        inner = teacher.inner([""], torch.zeros(1, *teacher.shape, device=teacher.device), level)
    return Head(tuple(inner.shape[1:]), seed).to(teacher.device)


def _networks(roles: Roles, pipe: Any) -> Sequence[nn.Module]:
    learners = (roles.student, roles.fake, roles.target)
    found = [learner.network for learner in learners if isinstance(learner, PipelineLearner)]
    own = [network for network in found if network is not network_of(pipe)]
    return [*own, *([] if roles.head is None else [roles.head])]
