"""Tables of alphas_cumprod from the config keys of diffusers' discrete schedulers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError


def beta_table(config: Any) -> Tensor:
    """(K,) float64 products of 1 - beta for a config with beta_start, beta_end, beta_schedule, trained_betas,
    num_train_timesteps, snr_shift_scale (CogVideoX: divides the signal-to-noise ratio) and rescale_betas_zero_snr."""
    table = torch.cumprod(1 - _betas(config), 0)
    if s := config.snr_shift_scale:
        table = table / (s + (1 - s) * table)
    return zero_terminal_snr(table) if config.rescale_betas_zero_snr else table


def _betas(config: Any) -> Tensor:
    count, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        return torch.as_tensor(config.trained_betas, dtype=torch.float64)
    if config.beta_schedule == "linear":
        return torch.linspace(first, last, count, dtype=torch.float64)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2
    if config.beta_schedule == "squaredcos_cap_v2":
        bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    if config.beta_schedule == "sigmoid":
        return torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid() * (last - first) + first
    known = "linear, scaled_linear, squaredcos_cap_v2, sigmoid"
    raise UsageError(f"unknown beta_schedule {config.beta_schedule!r}; known: {known}")


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that the last is 0 and the first stays (Lin et al. 2023, arXiv
    2305.08891, Algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
