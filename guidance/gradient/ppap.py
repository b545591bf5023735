"""PPAP: Go et al. 2023, arXiv 2212.05973. An off-the-shelf network made to read noise, without data.

    experts = train_experts(classifier, latents, schedule)      # latents: samples of the diffusion model itself
    rule = CFG(3.0) + PPAP(experts, target=207)

Three parts: experts, each for a range of noise; a low-rank change of the frozen network for each; and what they learn
from: the network's own answers to clean samples, which the expert is to give when it sees them with noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import UsageError
from ...samplers.schedule import Level, NoiseSchedule
from ..scale import Scale
from .autograd import graph
from .classifier import ClassifierGuidance
from .losses import fed

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class PPAP(ClassifierGuidance):
    """noise - weight sigma G with G = grad_x log p_e(target | x_t), p_e the expert for the level; as `classifier`
    otherwise, with the default weight of the paper's code; its form="matched" wants weights far below 1.

    classifier: an `Experts`, from `train_experts`. One expert that was never trained is classifier guidance by the
    network itself.
    """

    weight: Scale = 7.5

    passes: ClassVar[int] = 4


@dataclass(frozen=True, eq=False)
class Experts:
    """classifier(x, level) -> logits (B, K), or a mapping of them by head, of the expert whose range the level is in.

    networks: network(x) for each range, least noise first; the ranges are equal parts of the time up to `longest`, and
    a boundary belongs to the lower one. Levels are of a whole batch, so all rows have one expert.
    """

    networks: tuple[nn.Module, ...]
    longest: float

    def __post_init__(self) -> None:
        if not self.networks or not self.longest > 0:
            raise UsageError("experts need at least one network, and the longest time of the schedule above 0")

    def index(self, level: Level) -> int:
        """Which expert a level belongs to: monotone in its time."""
        count = len(self.networks)
        return min(max(math.ceil(count * level.time / self.longest) - 1, 0), count - 1)

    def __call__(self, x: Tensor, level: Level) -> Any:
        return fed(self.networks[self.index(level)], x)


# -- the low-rank change ----------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """weight + alpha / rank (B A), in the shape of a convolution's or a linear layer's weight (Hu et al. 2021, arXiv
    2106.09685). A (rank k, inputs k) and B (outputs k, rank k) for a kernel k x k; B is 0 at first, so that nothing
    changes. A is drawn from a generator on the CPU, whatever device the weight is on."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        kernel = weight.shape[2] if weight.dim() == 4 else 1
        self.scale = alpha / rank
        drawn = torch.empty(rank * kernel, weight.shape[1] * kernel)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0] * kernel, rank * kernel))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down).view(weight.shape)


def adapted(network: nn.Module, rank: int = 16, alpha: float = 8.0, seed: int = 0) -> nn.Module:
    """A copy in which only a low-rank change of every convolution and linear layer but the last linear one, the biases
    (not the last one's) and the norms can learn. It answers as the network does, to the bit. Deterministic in the seed,
    from which the low-rank changes start."""
    made = copy.deepcopy(network).requires_grad_(False)
    linear = [module for module in made.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else None
    found = [m for m in made.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m is not last and _fits(m)]
    for module in made.modules():
        if isinstance(module, NORMS):
            module.requires_grad_(True)
        elif module is not last and isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for module in found:
        assert isinstance(module.weight, Tensor)
        change = LowRank(module.weight.detach(), rank, alpha, generator)
        parametrize.register_parametrization(module, "weight", change)
        module.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    if not any(p.requires_grad for p in made.parameters()):
        raise UsageError("this network has no convolution, linear layer, bias or norm that could learn")
    return made


def _fits(module: nn.Conv2d | nn.Linear) -> bool:
    """Square kernels and no groups: what the product's shape is for."""
    return isinstance(module, nn.Linear) or (module.groups == 1 and module.kernel_size[0] == module.kernel_size[1])


def merged(network: nn.Module) -> nn.Module:
    """The same network with its changes written into the weights, ready to guide."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return network.eval().requires_grad_(False)


# -- learning without data --------------------------------------------------------------------------------------------

Told = Callable[[int, int, float], None]  # expert, step, loss


def train_experts(
    network: nn.Module,
    clean: Tensor,
    schedule: NoiseSchedule,
    *,
    experts: int = 5,
    rank: int = 16,
    alpha: float = 8.0,
    steps: int = 60_000,
    batch: int = 256,
    rate: float = 1e-4,
    decay: float = 0.05,
    temperature: float = 0.25,
    seed: int = 0,
    told: Told | None = None,
) -> Experts:
    """Experts that say of noisy samples what the network says of clean ones.

    network: network(x) -> logits (B, K), or a mapping of them by head, of clean x; it is left as it is. clean: samples
    of the diffusion model itself (N, ...). Each expert sees alpha_t x + sigma_t noise, t uniform in its range, and
    lowers KL(softmax(f(x) / temperature) || softmax(expert(x_t))), summed over heads, by AdamW whose rate falls
    linearly to 0. Defaults are those of the paper's code, whose 300,000 steps are shared by five experts; a small
    network needs far fewer. told(expert, step, loss) after each step. Deterministic in the seed.
    """
    for name, value, least in (("experts", experts, 1), ("rank", rank, 1), ("steps", steps, 0), ("batch", batch, 1)):
        if value < least:
            raise UsageError(f"train_experts needs {name} of at least {least}, not {value}")
    if len(clean) < 1 or not temperature > 0:
        raise UsageError("train_experts needs at least one clean sample, and a temperature above 0")
    teacher = copy.deepcopy(network).eval().requires_grad_(False)
    wanted = _answers(teacher, clean, batch, temperature)
    lowest, highest = schedule.t_min, schedule.T
    made = []
    for e in range(experts):
        times = (lowest + (highest - lowest) * e / experts, lowest + (highest - lowest) * (e + 1) / experts)
        draws = _noisy(clean, wanted, schedule, times, batch, torch.Generator().manual_seed(seed + e))
        expert = adapted(teacher, rank, alpha, seed + e)
        _fit(expert, draws, steps, rate, decay, partial(told, e) if told else None)
        made.append(merged(expert))
    return Experts(tuple(made), float(schedule.model_time(highest)))


def _answers(teacher: nn.Module, clean: Tensor, batch: int, temperature: float) -> dict[str, Tensor]:
    """The teacher's probabilities of each head for the clean samples, (N, K)."""
    with torch.no_grad():
        parts = [_heads(fed(teacher, part)) for part in clean.split(batch)]
    return {name: torch.cat([p[name] for p in parts]).float().div(temperature).softmax(1) for name in parts[0]}


def _heads(answer: Any) -> Mapping[str, Tensor]:
    return answer if isinstance(answer, Mapping) else {"": answer}


def _noisy(
    clean: Tensor,
    wanted: Mapping[str, Tensor],
    schedule: NoiseSchedule,
    times: tuple[float, float],
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Batches of noisy samples at times of one range, and what to say of them; without end."""
    while True:
        chosen = torch.randint(len(clean), (batch,), generator=generator)
        t = times[0] + (times[1] - times[0]) * torch.rand(batch, generator=generator, dtype=torch.float64)
        noise = torch.randn(batch, *clean.shape[1:], generator=generator).to(clean)
        shape = (batch, *[1] * (clean.dim() - 1))
        signal, spread = (f(t).to(clean).reshape(shape) for f in (schedule.alpha, schedule.sigma))
        index = chosen.to(clean.device)
        yield signal * clean[index] + spread * noise, {name: p[index] for name, p in wanted.items()}


def _fit(
    expert: nn.Module,
    draws: Iterator[tuple[Tensor, dict[str, Tensor]]],
    steps: int,
    rate: float,
    decay: float,
    told: Callable[[int, float], None] | None,
) -> None:
    """The statistics of norms stay the teacher's: the expert learns in eval mode."""
    learning = [p for p in expert.parameters() if p.requires_grad]
    method = torch.optim.AdamW(learning, lr=rate, weight_decay=decay)
    for i in range(steps):
        for group in method.param_groups:
            group["lr"] = rate * (1 - i / steps)
        x, wanted = next(draws)
        with graph():
            loss = divergence(_heads(fed(expert, x)), wanted)
            method.zero_grad()
            loss.backward()
        method.step()
        if told is not None:
            told(i, float(loss.detach()))


def divergence(logits: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The sum over heads of the mean KL(wanted || softmax(logits))."""
    parts = [
        nn.functional.kl_div(logits[name].float().log_softmax(1), p, reduction="batchmean")
        for name, p in wanted.items()
    ]
    return torch.stack(parts).sum()
