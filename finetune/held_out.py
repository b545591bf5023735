"""What is looked at while training: the same prompts and seeds again and again, never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..evaluation.metrics.colour import colour_statistics
from ..evaluation.processes import Processes
from ..samplers.loop import sample
from ..samplers.noise import SeededNoise
from ..training.dealing import even_share
from ..training.judging import adherence
from ..training.learner import Learner
from ..training.look import Look, Spread, features_of
from .method import Sampling
from .rewards.reward import Reward


@dataclass(frozen=True, eq=False)
class HeldOut:
    """prompts, each with seeds 0 to seeds - 1, drawn as in training. features: uint8 pictures -> (n, D), or None.

    diversity is the mean distance of two pictures of a prompt, in features, or between their pixels at 16x16.
    """

    prompts: Sequence[str]
    seeds: int
    sampling: Sampling
    rows: int
    reward: Reward
    judges: Mapping[str, Reward] = field(default_factory=dict)
    features: Any = None
    processes: Processes = Processes()  # noqa: RUF009, frozen

    def look(self, learner: Learner) -> Look:
        """At the model as it is now. Prompts are dealt to the processes, and every process gets the whole."""
        mine = even_share(len(self.prompts), self.processes)
        with torch.no_grad():
            found = {i: self._of_prompt(learner, self.prompts[i]) for i in mine}
        everything: dict[int, dict[str, Tensor]] = {}
        for part in self.processes.gathered(found):
            everything |= part
        values = [everything[i] for i in range(len(self.prompts))]
        joined = {name: torch.cat([v[name] for v in values]).double() for name in values[0] if name != "shown"}
        means = {name: float(column.mean()) for name, column in joined.items()}
        spread = {n: Spread(means[n], float(joined[n].std(correction=0))) for n in ("reward", *self._judged())}
        numbers = {name: mean for name, mean in means.items() if name not in self._judged()}
        numbers["weight_change"] = learner.change()
        judges = {name: means[judged] for judged, name in self._judged().items()}
        spread = {self._judged().get(name, name): value for name, value in spread.items()}
        return Look(numbers, judges, torch.stack([v["shown"] for v in values]), spread)

    def _judged(self) -> dict[str, str]:
        return {f"judge {name}": name for name in self.judges}

    def _of_prompt(self, learner: Learner, prompt: str) -> dict[str, Tensor]:
        """One number a picture, on the CPU, of everything that is watched."""
        raw = torch.cat([self._draw(learner, prompt, part) for part in _parts(self.seeds, self.rows)])
        pictures = raw.clamp(0, 1).mul(255).round().to(torch.uint8)
        prompts, saved = [prompt] * self.seeds, pictures.float() / 255
        found = {
            "reward": self.reward(saved, prompts),
            "diversity": self._diversity(pictures),
            "clamped": ((raw < 0) | (raw > 1)).float().mean((1, 2, 3)),
            "saturation": torch.from_numpy(colour_statistics(pictures.cpu()).saturation),
            "detail": _detail(saved),
        }
        found |= {judged: self.judges[name](saved, prompts) for judged, name in self._judged().items()}
        return {name: value.detach().cpu() for name, value in found.items()} | {"shown": pictures.cpu()}

    def _draw(self, learner: Learner, prompt: str, seeds: range) -> Tensor:
        s, names = self.sampling, [str(seed) for seed in seeds]
        denoiser, levels = learner.denoiser([prompt] * len(names), s.guidance), learner.levels(s.grid, s.steps)
        x = learner.start(names, levels)
        return learner.decode(sample(denoiser, x, sampler=s.sampler, grid=levels, noise=SeededNoise(names)))

    def _diversity(self, pictures: Tensor) -> Tensor:
        """(1,): a number of the prompt, not of a picture."""
        return torch.pdist(features_of(self.features, pictures)).mean()[None]


def _parts(count: int, size: int) -> list[range]:
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _detail(pictures: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels (B,): what grows with texture that a network likes."""
    across = (pictures[..., 1:] - pictures[..., :-1]).square().flatten(1)
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().flatten(1)
    both = torch.cat([across, down], 1)
    return both.mean(1) if both.shape[1] else both.sum(1)


def embedded_judge() -> Reward:
    """The embedded world's judge: is everything that the caption states to be seen? 1 or 0. It never trains."""
    scores, identity = adherence()
    return Reward("adherence", scores, False, "0 or 1", True, model=f"embedded judge {identity}")
