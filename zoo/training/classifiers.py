"""What the three classifier stages share: labels, augmentation, the loss and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import world
from . import common

# The instruments (judge and features) also learn held-out combinations, from indices that scoring does not use.
HELD_OUT_FIRST, HELD_OUT_COUNT = 1_000_000, 8192


def instrument_data(work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures uint8 (N, 32, 32, 3), labels int64 (N, heads), geometry float32 (N, 9): train and held-out scenes."""
    path = work / "instruments.npz"
    if not path.exists():
        numbers = range(HELD_OUT_FIRST, HELD_OUT_FIRST + HELD_OUT_COUNT)
        scenes = [world.scene(i) for i in range(common.TRAIN_PICTURES)] + [world.scene(i, "heldout") for i in numbers]
        held_out = world.pictures(numbers, "heldout", common.PICTURE_SIZE)
        drawn = np.concatenate([common.pictures(work, "train", common.TRAIN_PICTURES), held_out])
        geometry = np.zeros((len(scenes), 9), np.float32)
        for row, scene in zip(geometry, scenes):
            for j, thing in enumerate(scene.objects):
                row[3 * j : 3 * j + 3] = thing.x, thing.y, 3 * thing.radius
        np.savez(path, pictures=drawn, labels=world.encode(s.attributes for s in scenes), geometry=geometry)
    with np.load(path) as file:
        return file["pictures"], file["labels"], file["geometry"]


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (N, 3, H, W) with its own sigma (N,) for each picture, radius 4."""
    offsets = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (offsets[None] / sigma.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)
    flat = nn.functional.pad(x.reshape(1, -1, *x.shape[2:]), (4, 4, 4, 4), mode="replicate")
    flat = nn.functional.conv2d(flat, kernel[:, None, None, :], groups=flat.shape[1])
    flat = nn.functional.conv2d(flat, kernel[:, None, :, None], groups=flat.shape[1])
    return flat.reshape(x.shape)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Move (N, 3, H, W) in [-1, 1] away from its own grey by `factor` (N,)."""
    grey = (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return (grey + factor[:, None, None, None] * (x - grey)).clamp(-1, 1)


def attribute_loss(logits: dict[str, Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum of the heads' cross-entropies, labels int64 (N, heads)."""
    losses = [cross_entropy(v, labels[:, i], label_smoothing=smoothing) for i, v in enumerate(logits.values())]
    return torch.stack(losses).sum()


def accuracy(predicted: dict[str, Tensor], labels: np.ndarray) -> dict[str, float]:
    """Accuracy of each head, and of all heads at once."""
    seen = np.stack([v.numpy() for v in predicted.values()], axis=1)
    right = seen == labels
    each = {head: round(float(right[:, i].mean()), 4) for i, head in enumerate(predicted)}
    return each | {"all": round(float(right.all(1).mean()), 4)}


def train(
    log: common.Log,
    model: nn.Module,
    loss_of: Callable[[np.ndarray], Tensor],
    order: Iterator[np.ndarray],
    minutes: float,
    steps: int | None,
    rate: float = 2e-3,
) -> tuple[common.Average, int]:
    """Minimise; returns the averaged weights and the steps taken. Minutes long, so it starts again if interrupted."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3, fused=True)
    average, clock, step, total = common.Average(model, 0.998), common.Clock(minutes, steps), 0, 0.0
    model.train()
    while clock.progress(step) < 1:
        common.set_rate(optimiser, rate * clock.rate(step))
        loss = loss_of(next(order))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        average.update(model)
        step += 1
        total += float(loss.detach())
        if step % 250 == 0:
            log(event="train", step=step, minutes=clock.spent / 60, loss=total / 250)
            total = 0.0
    model.load_state_dict(average.weights)
    model.eval()
    return average, step
