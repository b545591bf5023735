"""A diffusers pipeline as the model that learns: adapters on its network, or all of the network's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..guidance.grammar import parse
from ..guidance.guided import Guided
from ..samplers.denoiser import NetworkDenoiser, raw_output
from ..samplers.prediction import predicted_by
from ..samplers.sampler import Level
from ..samplers.schedule import NoiseSchedule
from .conditions import Conditions
from .learner import Learner
from .lora import NAME, LoraSettings, acting, adapters, add_lora, change_norm, lora_state, save_lora

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Reached(Exception):
    """The part of the network that was wanted has been computed."""


@dataclass(frozen=True, eq=False)
class _Network:
    """The network with the adapters that acted when it was made: a checkpoint that computes it again during the
    backward pass enters that state again, whatever has been switched in between.

    Autocast keeps no cache of weights: one that was filled without a graph would be used where a graph is wanted.
    """

    network: Any
    adapters: tuple[str, ...]
    weights: torch.dtype
    autocast: torch.dtype | None

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        with adapters(self.network, self.adapters), self._precision(x.device.type):
            return raw_output(self.network(x.to(self.weights), time, **condition))

    def inner(self, part: torch.nn.Module, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        """What `part` of the network gives; nothing after it is computed."""
        found: list[Tensor] = []

        def reached(module: Any, inputs: Any, output: Any) -> None:
            found.append(raw_output(output))
            raise _Reached

        hook = part.register_forward_hook(reached)
        try:
            self(x, time, **condition)
        except _Reached:
            pass
        finally:
            hook.remove()
        return found[0]

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self.autocast, cache_enabled=False) if self.autocast else nullcontext()


class PipelineLearner(Learner):
    """pipe: Stable Diffusion or SDXL; everything in it is frozen but what learns here.

    lora: None trains all weights. network: what learns, of the pipeline's own class and its own network by default,
    which is changed in place. base: the network before training where all weights learn, a copy of it by default.
    adapter: the name of the adapters, of which one network may carry several. seed: of the adapters' first values.
    precision: "no", "bf16" or "fp16" of the network's passes; what learns is float32 and so is the VAE.
    network_checkpoints: the network stores its blocks' inputs only. networks: further ones that a rule asks for, by
    name. size: (width, height) of the pictures, the model's own without it. conditions: of the same pipeline, where
    several learners share them.
    """

    def __init__(
        self,
        pipe: Any,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008, frozen
        *,
        network: Any = None,
        base: Any = None,
        adapter: str = NAME,
        seed: int = 0,
        precision: str = "no",
        network_checkpoints: bool = False,
        networks: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
        conditions: Conditions | None = None,
    ):
        self.conditions = conditions or Conditions(pipe, size)
        self.pipe, self.size, self.device = pipe, self.conditions.size, torch.device(pipe.device)
        self.network = pipe.unet if network is None else network
        self.adapter = None if lora is None else adapter
        self.networks = dict(networks or {})
        self.autocast, self._trained = PRECISIONS[precision], True
        if conditions is None:
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval().requires_grad_(False)
        self._prepare(lora, base, seed)
        if network_checkpoints:
            self.network.enable_gradient_checkpointing(self._block)
        self.shape = self._shape()

    def _prepare(self, lora: LoraSettings | None, base: Any, seed: int) -> None:
        self.pipe.vae.float()  # in half precision it gives NaN for some pictures
        self._base: Any = None
        if lora is None:
            self._base = copy.deepcopy(self.network) if base is None else base
            self.parameters = list(self.network.float().requires_grad_(True).parameters())
        else:
            if self.autocast is not None:
                self.network.to(self.autocast)
            self.parameters = add_lora(self.network, lora, seed, self.adapter or NAME)
        self.weights = self.network.conv_in.weight.dtype

    def _shape(self) -> tuple[int, int, int]:
        config, factor = self.network.config, self.pipe.vae_scale_factor
        side = config.sample_size
        width, height = self.size or (side * factor, side * factor)
        if width % factor or height % factor:
            raise UsageError(f"{width}x{height} does not go: both must be multiples of {factor} for this model")
        return config.in_channels, height // factor, width // factor

    # -- what a Learner is ---------------------------------------------------------------------------------------

    def denoiser(
        self, prompts: Sequence[str], guidance: str = "none", told: Mapping[str, Tensor] | None = None
    ) -> Guided:
        """told: further arguments of the network, a row for each prompt."""
        rule = parse(guidance)
        schedule, kind = NoiseSchedule.from_scheduler(self.pipe.scheduler), predicted_by(self.pipe.scheduler)
        conditions = {"cond": {**self.conditions.of(prompts), **(told or {})}}
        if "uncond" in rule.needs:
            conditions["uncond"] = self.conditions.of([""], negative=True)
        nets = {name: _Network(net, acting(net), self.weights, self.autocast) for name, net in self.networks.items()}
        denoisers = {n: NetworkDenoiser(net, schedule, kind) for n, net in {"main": self._network(), **nets}.items()}
        return Guided(denoisers, rule, conditions, self.decode)

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        """(B, C, H, W): what the middle block of the network makes of noisy latents; nothing after it is computed."""
        network, condition = self._network(), self.conditions.of(prompts)
        time = torch.full((len(x),), level.time, dtype=torch.float32, device=x.device)
        return network.inner(network.network.mid_block, x, time, **condition).float()

    def decode(self, latents: Tensor) -> Tensor:
        if torch.is_grad_enabled() and latents.requires_grad:
            found: Tensor = checkpoint(self._decode, latents, use_reentrant=False)
            return found
        return self._decode(latents)

    @contextmanager
    def base(self) -> Iterator[None]:
        """A denoiser that is made inside is the base's for ever, and one from outside stays the trained one's."""
        before, self._trained = self._trained, False
        try:
            yield
        finally:
            self._trained = before

    def further_modules(self) -> tuple[torch.nn.Module, ...]:
        """What it holds beside the pipeline's parts."""
        return () if self._base is None else (self._base,)

    def change(self) -> float:
        """The norm of the difference of all weights from the base's."""
        if self.adapter is not None:
            return change_norm(self.network, self.adapter)
        pairs = zip(self.parameters, self._base.parameters(), strict=True)
        return sum(float((p.detach().double() - b.detach().double()).square().sum()) for p, b in pairs) ** 0.5

    def save(self, folder: Path) -> None:
        """What was learnt: a LoRA as `pipe.load_lora_weights` has it, or the network as `save_pretrained` writes it."""
        if self.adapter is None:
            self.network.save_pretrained(folder)
        else:
            save_lora(lora_state(self.network, name=self.adapter), folder)

    # -- parts of it ---------------------------------------------------------------------------------------------

    def _network(self) -> _Network:
        """As it learns, or before: without its adapters, or the kept copy."""
        if self._base is None:
            names = (self.adapter,) if self._trained and self.adapter is not None else ()
            return _Network(self.network, names, self.weights, self.autocast)
        network = self.network if self._trained else self._base
        return _Network(network, acting(network), self.weights, self.autocast)

    def _block(self, block: Any, *inputs: Any) -> Any:
        """A block of the network of which the inputs are stored; computed again with the adapters as they were."""
        names = acting(self.network)
        again = lambda: (nullcontext(), adapters(self.network, names))  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=again)

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents in the scaling of the network -> pictures in [0, 1], float32."""
        vae, config = self.pipe.vae, self.pipe.vae.config
        scaled = latents.float() / config.scaling_factor
        if (means := getattr(config, "latents_mean", None)) is not None:
            mean, deviation = (scaled.new_tensor(v).view(1, -1, 1, 1) for v in (means, config.latents_std))
            scaled = scaled * deviation + mean
        pictures: Tensor = vae.decode(scaled + (getattr(config, "shift_factor", None) or 0.0)).sample
        return pictures.float() / 2 + 0.5
