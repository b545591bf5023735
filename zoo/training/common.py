"""What every stage shares: the clock, the learning rate, averaged weights, checkpoints and the two logs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import world

Network = TypeVar("Network", bound=nn.Module)

PICTURE_SIZE = 32
LATENT_CHANNELS = 4
TRAIN_PICTURES = 32768
TEST_PICTURES = 2048


class Log:
    """`log.jsonl` for machines (one record a measurement) and `progress.log` for people (one line each)."""

    def __init__(self, work: Path, stage: str):
        self.work, self.stage = work, stage

    def __call__(self, **record: Any) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **rounded}) + "\n")
        line = f"{time.strftime('%H:%M:%S')} {self.stage:<12}" + " ".join(
            f"{k}={_short(v)}" for k, v in rounded.items()
        )
        with (self.work / "progress.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + " ".join(f"{k}:{_short(v)}" for k, v in value.items()) + "}"
    return str(value)


def pictures(work: Path, split: str, count: int) -> np.ndarray:
    """The first `count` pictures of a split, uint8 (N, 32, 32, 3), drawn once and kept."""
    path = work / f"pictures-{split}-{count}.npy"
    if not path.exists():
        np.save(path, world.pictures(range(count), split, PICTURE_SIZE))
    return np.load(path)


def to_model(batch: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(batch: Tensor) -> np.ndarray:
    """float (N, 3, H, W) in [-1, 1] -> uint8 (N, H, W, 3)."""
    scaled = batch.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def channels_last(module: Network) -> Network:
    """The same module with its convolutions laid out for the CPU's fast path."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Average:
    """Exponential moving average of a module's weights; the first steps count less."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)


class Clock:
    """Runs for a number of minutes, counted over all resumed runs, or for a number of steps if that is given.

    The learning rate warms up and then falls linearly to zero as the budget is used up.
    """

    def __init__(self, minutes: float, steps: int | None, spent: float = 0.0, warmup: int = 200):
        self.minutes, self.steps, self.warmup = minutes, steps, warmup
        self.start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        share = step / self.steps if self.steps else self.spent / (60 * self.minutes)
        return min(share, 1.0)

    def rate(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * (1 - self.progress(step))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def batches(count: int, size: int, seed: int, step: int = 0) -> Iterator[np.ndarray]:
    """Endless shuffled index batches; starting at `step` gives what an unbroken run would have had."""
    per_epoch = count // size
    while True:
        epoch, offset = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for i in range(offset, per_epoch):
            yield order[i * size : (i + 1) * size]
            step += 1


def save(
    path: Path, modules: dict[str, dict[str, Tensor]], optimiser: torch.optim.Optimizer | None, **numbers: float
) -> None:
    """Checkpoint in one safetensors file, replaced in one move."""
    tensors = {f"{m}|{k}": v.detach().clone().contiguous() for m, state in modules.items() for k, v in state.items()}
    if optimiser is not None:
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser|{index}|{k}": torch.as_tensor(v).clone().contiguous() for k, v in state.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"numbers": json.dumps(numbers)})
    partial.replace(path)


def restore(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The modules' states and the numbers of a checkpoint; `optimiser` holds the optimiser's."""
    from safetensors import safe_open

    states: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        module, name = key.split("|", 1)
        states.setdefault(module, {})[name] = value
    with safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
    return states, numbers


def restore_optimiser(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split("|")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sheet(rows: np.ndarray, columns: int, path: Path, zoom: int = 3) -> None:
    """Save uint8 pictures (N, H, W, 3) as one contact sheet."""
    from PIL import Image

    n, h, w, _ = rows.shape
    grid = np.full((-(-n // columns) * (h + 1) + 1, columns * (w + 1) + 1, 3), 255, np.uint8)
    for i, picture in enumerate(rows):
        r, c = divmod(i, columns)
        grid[1 + r * (h + 1) :, 1 + c * (w + 1) :][:h, :w] = picture
    Image.fromarray(grid).resize((grid.shape[1] * zoom, grid.shape[0] * zoom), Image.Resampling.NEAREST).save(path)
