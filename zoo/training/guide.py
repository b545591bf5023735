"""Stage `guide`: attributes of noisy latents, for classifier guidance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import world
from ..networks import Guide
from . import autoencoder, classifiers, common, latents
from .denoiser import signal_and_noise

SEED, BATCH = 41, 128


def run(work: Path, minutes: float = 3, steps: int | None = None) -> None:
    log, done = common.Log(work, "guide"), work / "guide.safetensors"
    if not done.exists():
        torch.manual_seed(SEED)
        model = Guide()
        with np.load(work / "latents.npz") as file:
            clean, labels = file["latents"], file["labels"]
        log(event="start", seed=SEED, split="train", first=0, count=len(clean), parameters=common.parameters(model))
        noise = torch.Generator().manual_seed(SEED)

        def loss_of(chosen: np.ndarray) -> Tensor:
            x = torch.from_numpy(clean[chosen])
            t = torch.randint(1000, (len(x),), generator=noise)
            alpha, sigma = signal_and_noise(t)
            noisy = alpha * x + sigma * torch.randn(x.shape, generator=noise)
            return classifiers.attribute_loss(model(noisy, t), torch.from_numpy(labels[chosen]))

        order = common.batches(len(clean), BATCH, SEED)
        average, taken = classifiers.train(log, model, loss_of, order, minutes, steps)
        common.save(done, {"model": average.weights}, None, step=taken)
    evaluate(work)


def evaluate(work: Path, count: int = 1000) -> None:
    model = Guide()
    model.load_state_dict(common.restore(work / "guide.safetensors")[0]["model"])
    model.eval()
    vae = autoencoder.build().eval()
    vae.load_state_dict(common.restore(work / "vae.safetensors")[0]["model"])
    clean = latents.encode(vae, world.pictures(range(count), "test", common.PICTURE_SIZE))
    labels = world.labels(range(count), "test")
    for time in (0, 250, 500, 750):
        t = torch.full((count,), time)
        alpha, sigma = signal_and_noise(t)
        with torch.no_grad():
            logits = model(
                alpha * clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), t
            )
        values = classifiers.accuracy({k: v.argmax(-1) for k, v in logits.items()}, labels)
        common.Log(work, "guide")(event="end", time=time, first=0, count=count, accuracy=values)
