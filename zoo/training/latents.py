"""Stage `latents`: bring the autoencoder's latents to a standard form, then encode the training pictures once.

A stock `StableDiffusionPipeline` decodes with the scaling factor alone. So the change of latents is folded into the
autoencoder's outer 1x1 convolutions, and the factor stays 1. The KL term may have switched off a channel (its
posterior is the prior and the decoder ignores it); the others are then whitened and spread over all channels by a tight
frame, so that every channel has mean zero, unit deviation and an equal part of the information.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .. import world
from . import autoencoder, common

COUNT = 65536
NARROWING = 0.01  # of the posterior's variance


def frame(rows: int, columns: int) -> Tensor:
    """Matrix (rows, columns), float32, with unit rows and orthogonal columns of equal length; columns >= rows - 1.

    For rows - 1 columns these are the corners of a simplex: each pair of rows has the product -1 / (rows - 1).
    """
    if columns == rows:
        return torch.eye(rows)
    if columns != rows - 1:
        raise SystemExit(f"{rows - columns} latent channels are switched off; train with a smaller KL weight")
    centred = torch.eye(rows, dtype=torch.float64) - 1 / rows
    _, vectors = torch.linalg.eigh(centred)
    corners = vectors[:, 1:]
    return (corners / corners.norm(dim=1, keepdim=True)).float()


@torch.no_grad()
def fold(model: AutoencoderKL, mean: Tensor, change: Tensor, variance: Tensor) -> None:
    """Make latents z of `model` come out as change @ (z - mean), undone by its decoder; mean (4,), change (4, 4).

    A column of zeros in `change` drops that channel; the decoder then gets its mean. variance (N, 4, 8, 8) is the old
    posterior's; the new one has on average a hundredth of it, since editing pipelines sample from it.
    """
    quant, post = model.quant_conv, model.post_quant_conv
    alive = (change.abs().sum(0) > 0).float()
    share = (alive / alive.sum()).expand(4, 4)
    target = torch.einsum("ij,nj->ni", change.square(), variance.mean((2, 3)) * alive).mean(0)
    gain = (NARROWING * target).log() - torch.einsum("ij,njhw->nihw", share, variance.log()).mean((0, 2, 3))
    weight, bias = quant.weight[:, :, 0, 0].clone(), quant.bias.clone()
    quant.weight.copy_(torch.cat([change @ weight[:4], share @ weight[4:]])[:, :, None, None])
    quant.bias.copy_(torch.cat([change @ (bias[:4] - mean), share @ bias[4:] + gain]))
    back = torch.linalg.pinv(change.double()).float()
    matrix = post.weight[:, :, 0, 0].clone()
    post.bias.add_(matrix @ mean)
    post.weight.copy_((matrix @ back)[:, :, None, None])


@torch.no_grad()
def standard_form(model: AutoencoderKL, pictures: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """mean (4,), change (4, 4) and posterior variance for `fold`, measured on uint8 pictures (N, 32, 32, 3)."""
    posteriors = [model.encode(common.to_model(p)).latent_dist for p in np.array_split(pictures, len(pictures) // 256)]
    z, variance = torch.cat([p.mean for p in posteriors]), torch.cat([p.var for p in posteriors])
    mean = z.mean((0, 2, 3))
    alive = variance.mean((0, 2, 3)) < 0.5
    flat = (z - mean[:, None, None]).permute(1, 0, 2, 3).flatten(1)[alive].double()
    values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    change = torch.zeros(4, 4)
    change[:, alive] = frame(4, int(alive.sum())) @ whiten.float()
    return mean, change, variance


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """uint8 (N, 32, 32, 3) -> the posterior's mean, float32 (N, 4, 8, 8)."""
    parts = [pictures[i : i + 256] for i in range(0, len(pictures), 256)]
    return torch.cat([model.encode(common.to_model(p)).latent_dist.mode() for p in parts])


def run(work: Path, count: int = COUNT, **_: float) -> None:
    log, vae = common.Log(work, "latents"), work / "vae.safetensors"
    model = autoencoder.build().eval()
    if not vae.exists():
        model.load_state_dict(common.restore(work / "autoencoder.safetensors")[0]["model"])
        mean, change, variance = standard_form(model, common.pictures(work, "train", common.TRAIN_PICTURES)[:8192])
        fold(model, mean, change, variance)
        common.save(vae, {"model": model.state_dict()}, None)
        log(event="fold", mean=mean.tolist(), change=change.tolist())
    if (work / "latents.npz").exists():
        return
    model.load_state_dict(common.restore(vae)[0]["model"])
    drawn = np.concatenate(
        [
            common.pictures(work, "train", common.TRAIN_PICTURES),
            world.pictures(range(common.TRAIN_PICTURES, count), "train", common.PICTURE_SIZE),
        ]
    )
    z = encode(model, drawn)
    np.savez(work / "latents.npz", latents=z.numpy(), labels=world.labels(range(count)))
    log(event="end", split="train", first=0, count=count, mean=float(z.mean()), deviation=float(z.std()))
