"""Runs that begin below the top of their grid, where a fitted Gaussian puts the noise: `--teleport FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .grid_fitting import fixed_levels
from .seeds import Seed
from .spec import RunSpec

if TYPE_CHECKING:
    from torch import Tensor


class Teleport:
    """Of one spec on one pipeline. It makes the scheduler leave out the steps above the landing, whatever the pipeline
    asks for; `latents` are what the pipeline starts from.

    UsageError for a file of another model or rule, of another size of picture, and for grids that change with it.
    """

    def __init__(self, spec: RunSpec, pipe: Any, scheduler: Any):
        from ..guidance.grammar import parse
        from ..samplers.teleport import GaussianMap

        assert spec.teleport is not None
        self.spec, self.gaussian = spec, GaussianMap.load(spec.teleport, spec.model)
        rule = self.gaussian.rule
        if rule and parse(rule) != parse(spec.guidance):
            raise UsageError(f"{spec.teleport} was fitted for guidance {rule!r}, not {spec.guidance!r}; fit it again")
        if self.gaussian.landing is None:
            raise UsageError(f"{spec.teleport} does not say where to land; write it with pilotage fit-teleport")
        self._refuse_other_size(pipe)
        if scheduler.config.use_dynamic_shifting:
            raise UsageError("teleport needs a grid that is the same for every size of picture; this model shifts its")
        scheduler.set_timesteps(spec.steps)
        self.levels = scheduler.levels
        self.left_out = sum(level.rho > self.gaussian.landing for level in self.levels)
        if not self.left_out:
            raise UsageError(
                f"{spec.teleport} lands at rho = {self.gaussian.landing:.4g}, where this grid begins: no step is left "
                "out; take more steps, or fit it again with a larger --tolerance"
            )
        if self.left_out >= len(self.levels) - 1:
            raise UsageError(f"{spec.teleport} leaves no step of this grid; take more steps")
        scheduler.set_timesteps = fixed_levels(scheduler, self.levels[self.left_out :])

    def _refuse_other_size(self, pipe: Any) -> None:
        shape, grain = self.gaussian.shape, getattr(pipe, "vae_scale_factor", None)
        if len(shape) != 3 or not grain:
            raise UsageError(
                f"{type(pipe).__name__} keeps no latents (C, H, W); teleport needs Stable Diffusion or SDXL"
            )
        own = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
        for name, latent in (("height", shape[1]), ("width", shape[2])):
            wanted = getattr(self.spec, name) or (own * grain if isinstance(own, int) else latent * grain)
            if wanted != latent * grain:
                raise UsageError(f"{self.spec.teleport} was fitted for {name} {latent * grain}, not {wanted}")

    def latents(self, seeds: Sequence[Seed]) -> Tensor:
        """(B, C, H, W) at the landing, from the noise that each seed has anyway. Row by row: a picture's bits do not
        depend on its batch."""
        import torch

        from ..samplers.noise import SeededNoise

        noise, goal = SeededNoise(seeds).initial(self.gaussian.shape), self.levels[self.left_out]
        moved = [self.gaussian.move(row, self.levels[0], goal) for row in noise.split(1)]
        return torch.cat(moved).to(getattr(torch, self.spec.dtype))
