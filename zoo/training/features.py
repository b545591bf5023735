"""Stage `features`: 64 numbers a picture for distances, and the test that they are fit for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import world
from ..networks import FeatureNetwork
from . import classifiers, common

SEED, BATCH = 37, 128


def run(work: Path, minutes: float = 4, steps: int | None = None) -> None:
    log, done = common.Log(work, "features"), work / "features.safetensors"
    if not done.exists():
        torch.manual_seed(SEED)
        model = common.channels_last(FeatureNetwork())
        pictures, labels, geometry = classifiers.instrument_data(work)
        log(event="start", seed=SEED, split="train+heldout", count=len(pictures), parameters=common.parameters(model))
        noise = torch.Generator().manual_seed(SEED)

        def uniform(n: int, share: float) -> Tensor:
            """Uniform numbers (N,), zero except for a share of the pictures."""
            return torch.rand(n, generator=noise) * (torch.rand(n, generator=noise) < share)

        def loss_of(chosen: np.ndarray) -> Tensor:
            x, n = common.to_model(pictures[chosen]), len(chosen)
            soft, rough, vivid = uniform(n, 0.4), uniform(n, 0.4), uniform(n, 0.4)
            x = classifiers.blur(x, 2.2 * soft**1.5)
            x = classifiers.saturate(x, 1 + 2.2 * vivid)
            x = x + 0.22 * rough[:, None, None, None] * torch.randn(x.shape, generator=noise)
            with torch.autocast("cpu", torch.bfloat16):
                logits, where, damage = model.heads(x.clamp(-1, 1).to(memory_format=torch.channels_last))
            wanted = torch.stack([soft, rough, vivid], dim=1)
            apart = (where - torch.from_numpy(geometry[chosen])).square().mean()
            return (
                classifiers.attribute_loss(logits, torch.from_numpy(labels[chosen]), 0.02)
                + 20 * apart
                + 20 * (damage - wanted).square().mean()
            )

        order = common.batches(len(pictures), BATCH, SEED)
        average, taken = classifiers.train(log, model, loss_of, order, minutes, steps)
        common.save(done, {"model": average.weights}, None, step=taken)
    evaluate(work)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance of two feature sets (N, d), in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(ca)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * cross)


def neighbours(features: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Leave-one-out k-nearest-neighbour accuracy of features (N, d)."""
    x = torch.from_numpy(features.astype(np.float32))
    distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
    votes = torch.from_numpy(labels)[distance.topk(k, largest=False).indices]
    return float((votes.mode(1).values == torch.from_numpy(labels)).float().mean())


def damaged(pictures: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Pictures made worse in steps, by kind: blur sigma .5 1 2, noise 8 24, saturation 1.5 3."""
    x, n = common.to_model(pictures), len(pictures)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    ways = {
        "blur": [classifiers.blur(x, torch.full((n,), s)) for s in (0.5, 1.0, 2.0)],
        "noise": [x + s / 127.5 * noise for s in (8, 24)],
        "saturation": [classifiers.saturate(x, torch.full((n,), s)) for s in (1.5, 3.0)],
    }
    return {way: [common.to_uint8(y) for y in made] for way, made in ways.items()}


def evaluate(work: Path, count: int = 2000) -> None:
    model = FeatureNetwork()
    model.load_state_dict(common.restore(work / "features.safetensors")[0]["model"])
    model.eval()
    real, labels = world.pictures(range(count), "test", common.PICTURE_SIZE), world.labels(range(count), "test")
    embedded = model(real).numpy()
    null = frechet(embedded[::2], embedded[1::2])
    ways = {k: [round(frechet(embedded, model(p).numpy()) / null, 2) for p in v] for k, v in damaged(real).items()}
    shape, raw = labels[:, 2], real.reshape(count, -1) / 255
    knn = {"features": round(neighbours(embedded, shape), 4), "pixels": round(neighbours(raw, shape), 4)}
    common.Log(work, "features")(event="end", first=0, count=count, null=null, distance=ways, shape_5nn=knn)
