"""Stage `autoencoder`: 32x32 pictures <-> 8x8x4 latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import common

BATCH = 24
RATE = 1e-3
KL_WEIGHT = 5e-6  # on the sum over a picture's 256 latent numbers; the errors are means
SEED = 11


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=common.LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=common.PICTURE_SIZE,
        scaling_factor=1.0,
    )


def psnr(model: AutoencoderKL, images: Tensor) -> tuple[float, Tensor]:
    """Peak signal-to-noise ratio in dB over images (N, 3, H, W) in [-1, 1], and the reconstructions."""
    with torch.no_grad():
        parts = [model.decode(model.encode(x).latent_dist.mode()).sample.clamp(-1, 1) for x in images.split(64)]
    decoded = torch.cat(parts)
    error = (decoded - images).div(2).square().mean()
    return float(-10 * torch.log10(error)), decoded


def run(work: Path, minutes: float = 28, steps: int | None = None) -> None:
    """Train, or go on where the last run stopped; the averaged weights end in `autoencoder.safetensors`."""
    log, path = common.Log(work, "autoencoder"), work / "autoencoder.ckpt"
    done = work / "autoencoder.safetensors"
    if done.exists():
        return
    torch.manual_seed(SEED)
    model = build().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average, step, spent = common.Average(model, 0.999), 0, 0.0
    if path.exists():
        states, numbers = common.restore(path)
        model.load_state_dict(states["model"])
        average.weights, average.steps = states["average"], int(numbers["step"])
        common.restore_optimiser(optimiser, states["optimiser"])
        step, spent = int(numbers["step"]), numbers["spent"]
    train = common.pictures(work, "train", common.TRAIN_PICTURES)
    test = common.to_model(common.pictures(work, "test", common.TEST_PICTURES)[:256])
    log(
        event="start",
        seed=SEED,
        split="train",
        first=0,
        count=len(train),
        step=step,
        parameters=common.parameters(model),
    )
    clock = common.Clock(minutes, steps, spent)
    noise = torch.Generator().manual_seed(SEED + step)
    order = common.batches(len(train), BATCH, SEED, step)
    sums, saved = torch.zeros(3), clock.spent

    def measure(final: bool = False) -> None:
        states = {"model": model.state_dict(), "average": average.weights}
        common.save(path, states, optimiser, step=step, spent=clock.spent)
        current = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(average.weights)
        value, decoded = psnr(model, test)
        common.sheet(
            common.to_uint8(torch.stack([test[:48], decoded[:48]], 1).flatten(0, 1)), 12, work / "autoencoder.png"
        )
        log(event="end" if final else "test", step=step, minutes=clock.spent / 60, psnr=value)
        if final:
            common.save(done, {"model": average.weights}, None, step=step, spent=clock.spent, psnr=value)
        model.load_state_dict(current)

    while clock.progress(step) < 1:
        common.set_rate(optimiser, RATE * clock.rate(step))
        x = common.to_model(train[next(order)]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = model.quant_conv(model.encoder(x)).float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=noise)
            error = model.decoder(model.post_quant_conv(z)).float() - x
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
        absolute, squared = error.abs().mean(), error.square().mean()
        loss = absolute + squared + KL_WEIGHT * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model)
        step += 1
        sums += torch.stack([absolute.detach(), squared.detach(), kl.detach()])
        if step % 500 == 0:
            a, s, k = (sums / 500).tolist()
            sums.zero_()
            log(event="train", step=step, minutes=clock.spent / 60, absolute=a, squared=s, kl=k)
        if clock.spent - saved > 240:
            measure()
            saved = clock.spent
    measure(final=True)
