"""Gradients through sampling: what each method holds, how often it asks the network, and how long it takes.

    python benchmarks/adjoint_memory.py [--steps 5 20 50 200] [--repeats 3] [--rows 2]

A small UNet (random weights, 4x8x8 latents, float32, one thread), the gradient in x and in the parameters. Held: bytes
that autograd keeps from the forward to the backward pass, exact. Peak: the most bytes of tensors alive at once in both
passes, beside the weights. Calls: forward evaluations and backward passes of the network, per step.
Time: the median over interleaved rounds of the time of both passes, as a ratio to full backpropagation of the same
sampler, at the least of `--steps` that is 20 or more. Error: of the gradient in x, against full backpropagation.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pilotage.samplers import adjoint
from pilotage.samplers.denoiser import NetworkDenoiser
from pilotage.samplers.grids import make_grid
from pilotage.samplers.schedule import stable_diffusion_schedule

CASES = (
    ("full", "ddim"), ("checkpoint", "ddim"), ("segments", "ddim"), ("segments:width=2", "ddim"), ("discrete", "ddim"),
    ("adjoint-deis", "ddim"), ("continuous:solver=heun", "ddim"), ("full", "dpmpp-2m"), ("discrete", "dpmpp-2m"),
    ("full", "bdia"), ("reversible", "bdia"), ("full", "edict"), ("reversible", "edict"),
)  # fmt: skip


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made inside and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, out)
        return out

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


class Network(torch.nn.Module):
    """Counts its forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        ).eval()  # fmt: skip
        self.calls = self.backs = 0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.calls += 1
        out = self.unet(x, time).sample
        if out.requires_grad:
            out.register_hook(self.backed)
        return out

    def backed(self, gradient: Tensor) -> None:
        self.backs += 1


def run(network: Network, method: str, sampler: str, steps: int, x: Tensor) -> Tensor:
    """Both passes; the gradient in x."""
    schedule = stable_diffusion_schedule()
    leaf = x.clone().requires_grad_()
    grid = make_grid("exponential", schedule, steps)
    denoiser = NetworkDenoiser(network, schedule, "v_prediction")
    end = adjoint.sample(denoiser, leaf, method=method, sampler=sampler, grid=grid)
    end.square().mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def held(network: Network, method: str, sampler: str, steps: int, x: Tensor) -> int:
    """Bytes kept for the backward pass, without the weights, each storage once."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    schedule = stable_diffusion_schedule()
    grid = make_grid("exponential", schedule, steps)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        end = adjoint.sample(
            NetworkDenoiser(network, schedule, "v_prediction"),
            x.clone().requires_grad_(),
            method=method,
            sampler=sampler,
            grid=grid,
        )
    del end
    return sum(kept.values())


def peak(network: Network, method: str, sampler: str, steps: int, x: Tensor) -> int:
    network.zero_grad(set_to_none=False)
    with Alive() as alive:
        run(network, method, sampler, steps, x)
    return alive.peak


def size(count: int) -> str:
    return f"{count / 1024:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 20, 50, 200])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, x = Network(), torch.randn(args.rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timed = min((n for n in args.steps if n >= 20), default=max(args.steps))
    times: dict[tuple[str, str], list[float]] = {case: [] for case in CASES}
    run(network, "checkpoint", "ddim", 2, x)  # what is imported once
    for _ in range(args.repeats):
        for case in CASES:
            start = time.perf_counter()
            run(network, *case, timed, x)
            times[case].append(time.perf_counter() - start)
    exact = {sampler: run(network, "full", sampler, timed, x) for sampler in {sampler for _, sampler in CASES}}
    print(f"Held at {', '.join(map(str, args.steps))} steps; everything else at {timed} steps.\n")
    print("| sampler | method | held, KiB | peak, KiB | calls | backs | time | error |")
    print("|---|---|---|---|---|---|---|---|")
    for method, sampler in CASES:
        network.calls = network.backs = 0
        gradient = run(network, method, sampler, timed, x)
        asked = f"{network.calls / timed:.2f} | {network.backs / timed:.2f}"
        error = float((gradient - exact[sampler]).norm() / exact[sampler].norm())
        ratio = statistics.median(a / b for a, b in zip(times[method, sampler], times["full", sampler], strict=True))
        kept = ", ".join(size(held(network, method, sampler, n, x)) for n in args.steps)
        most = size(peak(network, method, sampler, timed, x))
        print(f"| {sampler} | {method} | {kept} | {most} | {asked} | {ratio:.2f} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    main()
