"""Looking at a picture while it is made: the clean estimate of a step, decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from ..guidance.rule import Context, Guide, Rule

See = Callable[[int, int, Any], None]  # step, steps, denoised (B, ...)


@dataclass(frozen=True)
class Watched(Rule):
    """The same rule, with its clean estimate shown every `every` steps. It changes no picture."""

    inner: Rule
    see: See
    every: int = 1

    passes: ClassVar[int] = 0

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.needs

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.inner.shifts

    def guide(self, ctx: Context) -> Guide:
        prediction = yield from self.inner.guide(ctx)
        if ctx.stage == 0 and (ctx.step + 1) % self.every == 0:
            self.see(ctx.step + 1, ctx.steps, prediction.denoised)
        return prediction

    @property
    def spatial(self) -> bool:  # type: ignore[override]
        return self.inner.spatial


class _WatchedAfter(Watched):
    """For rules that also move x; the others must not seem to, for that costs a rounding."""

    def after(self, ctx: Context, x: Any) -> Any:
        return self.inner.after(ctx, x)


def watched(rule: Rule, see: See, every: int) -> Rule:
    return (_WatchedAfter if type(rule).after is not Rule.after else Watched)(rule, see, every)


def decoded(pipe: Any, latents: Any, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Latents (B, ...) as pictures. size: (width, height), needed where the latents are packed into tokens."""
    import torch

    vae = pipe.vae
    if latents.dim() == 3:  # packed, as in Flux
        width, height = size or (pipe.default_sample_size * pipe.vae_scale_factor,) * 2
        latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    with torch.no_grad():
        scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        pictures = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return pipe.image_processor.postprocess(pictures.float(), output_type="pil")
