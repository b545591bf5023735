"""A weak copy of a network: its weights in few bits."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import UsageError

Network = TypeVar("Network", bound=nn.Module)


def quantised(network: Network, bits: int = 4) -> Network:
    """A copy whose convolution and linear weights are rounded to 2^bits - 1 even steps, for autoguidance:

        attach(pipe, "autoguidance:scale=2", networks={"weak": quantised(pipe.unet, bits=4)})

    bits: 2 to 16; the fewer, the weaker. Each output of a layer has a step of its own, from the largest of its weights,
    w' = step round(w / step), step = max |w| / (2^(bits - 1) - 1). Biases and norms stay. The copy takes as much memory
    as the network: it is meant to be worse, not to be smaller. Which weak network helps is the user's to find out.
    """
    if not 2 <= bits <= 16:
        raise UsageError(f"quantised takes 2 to 16 bits, not {bits}")
    made = copy.deepcopy(network).eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.weight.data = rounded(module.weight.data, bits)
    return made


def rounded(weight: Tensor, bits: int) -> Tensor:
    """weight (outputs, ...) on 2^bits - 1 even steps an output."""
    rows = weight.float().flatten(1)
    step = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, step * (rows / step.clamp(min=1e-30)).round(), rows).view(weight.shape).to(weight)
