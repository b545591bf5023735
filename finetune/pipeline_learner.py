"""A diffusers pipeline as the model that learns: adapters on its network, or all of the network's weights."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UsageError
from ..guidance.grammar import parse
from ..guidance.guided import Guided
from ..guidance.pipelines.denoiser import condition_of
from ..guidance.trees import joined
from ..samplers.denoiser import NetworkDenoiser, raw_output
from ..samplers.prediction import predicted_by
from ..samplers.schedule import NoiseSchedule
from .learner import Learner
from .lora import LoraSettings, adapters, adapters_on, add_lora, change_norm

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROMPTS = 2048  # whose conditions are kept


@dataclass(frozen=True, eq=False)
class _Network:
    """The network with its adapters on or off, as it was made: a checkpoint that computes it again during the backward
    pass enters that state again, whatever has been switched in between.

    Autocast keeps no cache of weights: one that was filled without a graph would be used where a graph is wanted.
    """

    network: Any
    on: bool
    weights: torch.dtype
    autocast: torch.dtype | None

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        with adapters(self.network, self.on), self._precision(x.device.type):
            return raw_output(self.network(x.to(self.weights), time, **condition))

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self.autocast, cache_enabled=False) if self.autocast else nullcontext()


class PipelineLearner(Learner):
    """pipe: Stable Diffusion or SDXL; its network is changed in place and everything else is frozen.

    lora: None trains all weights, and a copy of the network at the start is kept as the base. seed: of the adapters'
    first values. precision: "no", "bf16" or "fp16" of the network's passes; what learns is float32 and so is the VAE.
    network_checkpoints: the network stores its blocks' inputs only. networks: further ones that a rule asks for, by
    name. size: (width, height) of the pictures, the model's own without it.
    """

    def __init__(
        self,
        pipe: Any,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008, frozen
        *,
        seed: int = 0,
        precision: str = "no",
        network_checkpoints: bool = False,
        networks: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ):
        condition_of(pipe, "", size=size)  # refuses other pipelines
        self.pipe, self.size, self.device = pipe, size, torch.device(pipe.device)
        self.networks = dict(networks or {})
        self.autocast, self._trained = PRECISIONS[precision], True
        self._conditions: OrderedDict[tuple[str, bool], Any] = OrderedDict()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        self._prepare(lora, seed)
        if network_checkpoints:
            pipe.unet.enable_gradient_checkpointing(self._block)
        self.shape = self._shape()

    def _prepare(self, lora: LoraSettings | None, seed: int) -> None:
        unet = self.pipe.unet
        self.pipe.vae.float()  # in half precision it gives NaN for some pictures
        self._base: Any = None
        if lora is None:
            self._base = copy.deepcopy(unet)
            self.parameters = list(unet.float().requires_grad_(True).parameters())
        else:
            if self.autocast is not None:
                unet.to(self.autocast)
            self.parameters = add_lora(unet, lora, seed)
        self.weights = unet.conv_in.weight.dtype

    def _shape(self) -> tuple[int, int, int]:
        config, factor = self.pipe.unet.config, self.pipe.vae_scale_factor
        side = config.sample_size
        width, height = self.size or (side * factor, side * factor)
        if width % factor or height % factor:
            raise UsageError(f"{width}x{height} does not go: both must be multiples of {factor} for this model")
        return config.in_channels, height // factor, width // factor

    # -- what a Learner is ---------------------------------------------------------------------------------------

    def denoiser(self, prompts: Sequence[str], guidance: str = "none") -> Guided:
        rule = parse(guidance)
        schedule, kind = NoiseSchedule.from_scheduler(self.pipe.scheduler), predicted_by(self.pipe.scheduler)
        conditions = {"cond": joined([self._condition(prompt) for prompt in prompts])}
        if "uncond" in rule.needs:
            conditions["uncond"] = self._condition("", negative=True)
        nets = {name: _Network(net, True, self.weights, self.autocast) for name, net in self.networks.items()}
        denoisers = {n: NetworkDenoiser(net, schedule, kind) for n, net in {"main": self._network(), **nets}.items()}
        return Guided(denoisers, rule, conditions, self.decode)

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
        if self._base is None:
            return change_norm(self.pipe.unet)
        pairs = zip(self.parameters, self._base.parameters(), strict=True)
        return sum(float((p.detach().double() - b.detach().double()).square().sum()) for p, b in pairs) ** 0.5

    # -- parts of it ---------------------------------------------------------------------------------------------

    def _network(self) -> _Network:
        if self._trained or self._base is None:
            return _Network(self.pipe.unet, self._trained, self.weights, self.autocast)
        return _Network(self._base, True, self.weights, self.autocast)

    def _block(self, block: Any, *inputs: Any) -> Any:
        """A block of the network of which the inputs are stored; computed again with the adapters as they were."""
        on = adapters_on(self.pipe.unet)
        again = lambda: (nullcontext(), adapters(self.pipe.unet, on))  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=again)

    def _condition(self, prompt: str, negative: bool = False) -> Any:
        """What the network is told of one prompt, encoded alone, so that it depends on no other."""
        key = prompt, negative
        if key not in self._conditions:
            self._conditions[key] = condition_of(self.pipe, prompt, size=self.size, negative=negative)
            if len(self._conditions) > _PROMPTS:
                self._conditions.popitem(last=False)
        self._conditions.move_to_end(key)
        return self._conditions[key]

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents in the scaling of the network -> pictures in [0, 1], float32."""
        vae, config = self.pipe.vae, self.pipe.vae.config
        scaled = latents.float() / config.scaling_factor
        if (means := getattr(config, "latents_mean", None)) is not None:
            mean, deviation = (scaled.new_tensor(v).view(1, -1, 1, 1) for v in (means, config.latents_std))
            scaled = scaled * deviation + mean
        pictures: Tensor = vae.decode(scaled + (getattr(config, "shift_factor", None) or 0.0)).sample
        return pictures.float() / 2 + 0.5
