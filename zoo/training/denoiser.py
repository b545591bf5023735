"""Stage `denoiser`: the UNet on cached latents, and the text encoder for the first fifth of the way.

After a fifth the averaged text encoder is frozen and the averaged UNet is kept as the weak model, so that the strong
and the weak one share the text encoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel

from .. import world
from . import autoencoder, common, text

SEED, BATCH, RATE = 53, 64, 1e-3
DROPOUT = 0.1  # captions replaced by the empty one
WORDINGS = 4  # captions of each picture
TEXT_SHARE = 0.2  # of the way until the text encoder is frozen


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=common.LATENT_CHANNELS,
        out_channels=common.LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=(64, 112),
        layers_per_block=1,
        cross_attention_dim=text.WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def shipped_scheduler() -> DPMSolverMultistepScheduler:
    """What the package's pipeline samples with: equal steps of log-SNR.

    They are as good as even times, and guidance acts in their first half only.
    """
    return DPMSolverMultistepScheduler.from_config(scheduler().config, use_exponential_sigmas=True)


_ALPHAS_BAR = scheduler().alphas_cumprod


def signal_and_noise(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of timesteps (N,), each (N, 1, 1, 1), with alpha^2 + sigma^2 = 1."""
    bar = _ALPHAS_BAR[timesteps][:, None, None, None]
    return bar.sqrt(), (1 - bar).sqrt()


def pipeline(unet: nn.Module, encoder: CLIPTextModel, vae: AutoencoderKL) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=text.build_tokenizer(),
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: StableDiffusionPipeline, captions: list[str], scale: float, steps: int, seed: int) -> np.ndarray:
    """Pictures uint8 (N, 32, 32, 3); each has its own generator."""
    made: list[np.ndarray] = []
    for i in range(0, len(captions), 64):
        part = captions[i : i + 64]
        generators = [torch.Generator().manual_seed(seed + i + j) for j in range(len(part))]
        out = pipe(part, num_inference_steps=steps, guidance_scale=scale, generator=generators, output_type="np")
        made.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(made)


def token_table(work: Path, count: int) -> Tensor:
    """Token numbers int64 (count, WORDINGS, 24) of the training captions, kept on disk as int16."""
    path = work / f"tokens-{count}.npy"
    if not path.exists():
        captions = [c for i in range(count) for c in text.rewordings(i, "train", WORDINGS)]
        ids = text.tokenise(text.build_tokenizer(), captions)
        np.save(path, ids.view(count, WORDINGS, text.LENGTH).numpy().astype(np.int16))
    return torch.from_numpy(np.load(path)).long()


def run(work: Path, minutes: float = 55, steps: int | None = None) -> None:
    log, path, done = common.Log(work, "denoiser"), work / "denoiser.ckpt", work / "denoiser.safetensors"
    if done.exists():
        return
    torch.manual_seed(SEED)
    unet, encoder = build().to(memory_format=torch.channels_last), text.build_encoder()
    optimiser = torch.optim.AdamW(
        [*unet.parameters(), *encoder.parameters()], RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    averages = {"unet": common.Average(unet, 0.999), "text": common.Average(encoder, 0.999)}
    step, spent, frozen = 0, 0.0, False
    if path.exists():
        states, numbers = common.restore(path)
        step, spent, frozen = int(numbers["step"]), numbers["spent"], bool(numbers["frozen"])
        unet.load_state_dict(states["unet"])
        encoder.load_state_dict(states["text"])
        for name in averages:
            averages[name].weights, averages[name].steps = states[f"average-{name}"], step
        common.restore_optimiser(optimiser, states["optimiser"])
        if frozen:
            encoder.requires_grad_(False)
    with np.load(work / "latents.npz") as file:
        clean = torch.from_numpy(file["latents"])
    tokens = token_table(work, len(clean))
    empty = text.tokenise(text.build_tokenizer(), [""])[0]
    log(
        event="start",
        seed=SEED,
        split="train",
        first=0,
        count=len(clean),
        step=step,
        unet=common.parameters(unet),
        text=common.parameters(encoder),
    )
    clock = common.Clock(minutes, steps, spent)
    noise = torch.Generator().manual_seed(SEED + step)
    order = common.batches(len(clean), BATCH, SEED, step)
    total, saved = 0.0, clock.spent

    def keep(final: bool = False) -> None:
        states = {"unet": unet.state_dict(), "text": encoder.state_dict()}
        states |= {f"average-{k}": v.weights for k, v in averages.items()}
        common.save(path, states, optimiser, step=step, spent=clock.spent, frozen=frozen)
        final_states = {k: v.weights for k, v in averages.items()}
        common.save(done if final else work / "denoiser-latest.safetensors", final_states, None, step=step)
        look(work, averages, log, step, clock.spent / 60)

    while clock.progress(step) < 1:
        if not frozen and clock.progress(step) >= TEXT_SHARE:
            frozen = True
            encoder.load_state_dict(averages["text"].weights)
            encoder.requires_grad_(False)
            common.save(work / "weak.safetensors", {"unet": averages["unet"].weights}, None, step=step)
            log(event="freeze", step=step, minutes=clock.spent / 60)
        common.set_rate(optimiser, RATE * clock.rate(step))
        chosen = torch.from_numpy(next(order))
        x = clean[chosen]
        ids = tokens[chosen, torch.randint(WORDINGS, (BATCH,), generator=noise)]
        ids = torch.where(torch.rand(BATCH, 1, generator=noise) < DROPOUT, empty, ids)
        # One time in each of BATCH equal parts of the schedule: the same mean loss with less noise.
        t = ((torch.randperm(BATCH, generator=noise) + torch.rand(BATCH, generator=noise)) * (1000 / BATCH)).long()
        alpha, sigma = signal_and_noise(t.clamp(max=999))
        e = torch.randn(x.shape, generator=noise)
        noisy = (alpha * x + sigma * e).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(not frozen):
            states = encoder(ids).last_hidden_state
        predicted = unet(noisy, t.clamp(max=999), encoder_hidden_states=states).sample  # bfloat16 gains nothing here
        loss = (predicted - (alpha * e - sigma * x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        averages["unet"].update(unet)
        if not frozen:
            averages["text"].update(encoder)
        step += 1
        total += float(loss.detach())
        if step % 100 == 0:
            log(event="train", step=step, minutes=clock.spent / 60, loss=total / 100)
            total = 0.0
        if clock.spent - saved > 420:
            keep()
            saved = clock.spent
    keep(final=True)
    log(event="end", step=step, minutes=clock.spent / 60)


def look(work: Path, averages: dict[str, common.Average], log: common.Log, step: int, minutes: float) -> None:
    """A sheet of samples and, if the judge is there, how many of 48 captions are followed."""
    unet, encoder, vae = build(), text.build_encoder(), autoencoder.build()
    unet.load_state_dict(averages["unet"].weights)
    encoder.load_state_dict(averages["text"].weights)
    vae.load_state_dict(common.restore(work / "vae.safetensors")[0]["model"])
    pipe = pipeline(unet.eval(), encoder.eval(), vae.eval())
    captions = world.captions(range(48), "test")
    made = generate(pipe, captions, 3.0, 20, SEED)
    common.sheet(made, 12, work / "samples.png", 4)
    if (work / "judge.safetensors").exists():
        from ..networks import Judge

        judge = Judge()
        judge.load_state_dict(common.restore(work / "judge.safetensors")[0]["model"])
        right = judge.eval().adherence(made, captions)
        log(event="samples", step=step, minutes=minutes, adherence={k: float(np.nanmean(v)) for k, v in right.items()})
