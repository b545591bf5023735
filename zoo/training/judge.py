"""Stage `judge`: attributes of clean pictures, robust to the softness of the autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import world
from ..networks import Judge
from . import autoencoder, classifiers, common

SEED, BATCH = 23, 128


def run(work: Path, minutes: float = 4, steps: int | None = None) -> None:
    log, done = common.Log(work, "judge"), work / "judge.safetensors"
    if not done.exists():
        torch.manual_seed(SEED)
        model = common.channels_last(Judge())
        pictures, labels, _ = classifiers.instrument_data(work)
        log(event="start", seed=SEED, split="train+heldout", count=len(pictures), parameters=common.parameters(model))
        noise = torch.Generator().manual_seed(SEED)

        def loss_of(chosen: np.ndarray) -> Tensor:
            x = common.to_model(pictures[chosen])
            n = len(x)
            if torch.rand((), generator=noise) < 0.7:
                x = classifiers.blur(x, torch.rand(n, generator=noise) * 0.8)
            gain = 1 + 0.1 * (torch.rand(n, 3, 1, 1, generator=noise) - 0.5)
            x = x * gain + 0.06 * (torch.rand(n, 3, 1, 1, generator=noise) - 0.5)
            x = x + 0.08 * torch.rand(n, 1, 1, 1, generator=noise) * torch.randn(x.shape, generator=noise)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.to(memory_format=torch.channels_last))
            return classifiers.attribute_loss(logits, torch.from_numpy(labels[chosen]), 0.01)

        order = common.batches(len(pictures), BATCH, SEED)
        average, taken = classifiers.train(log, model, loss_of, order, minutes, steps)
        common.save(done, {"model": average.weights}, None, step=taken)
    evaluate(work)


def evaluate(work: Path, count: int = 2000) -> dict[str, dict[str, float]]:
    """Accuracy on unseen real pictures and, if there is an autoencoder, on decoded ones: the ceiling of adherence."""
    model = Judge()
    model.load_state_dict(common.restore(work / "judge.safetensors")[0]["model"])
    model.eval()
    result: dict[str, dict[str, float]] = {}
    decoder = None
    if (work / "autoencoder.safetensors").exists():
        decoder = autoencoder.build()
        decoder.load_state_dict(common.restore(work / "autoencoder.safetensors")[0]["model"])
    for split in ("test", "heldout"):
        real, labels = world.pictures(range(count), split, common.PICTURE_SIZE), world.labels(range(count), split)
        result[split] = classifiers.accuracy(model.predict(real), labels)
        if decoder is not None:
            _, decoded = autoencoder.psnr(decoder, common.to_model(real))
            result[f"{split}-decoded"] = classifiers.accuracy(model.predict(common.to_uint8(decoded)), labels)
    log = common.Log(work, "judge")
    for name, values in result.items():
        log(event="end", on=name, first=0, count=count, accuracy=values)
    return result
