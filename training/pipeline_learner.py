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
from ..generation.models import load
from ..guidance.grammar import parse
from ..guidance.guided import Guided
from ..guidance.pipelines import adapter_of
from ..guidance.pipelines.forms import LENGTHS, evaluate, weights_of
from ..samplers.denoiser import NetworkDenoiser
from ..samplers.sampler import Level
from .conditions import Conditions
from .learner import Learner
from .lora import NAME, LoraSettings, acting, adapters, add_lora, change_norm, lora_state, save_lora
from .middle import middle_features
from .sharding import Sharding, full, is_sharded, make_whole
from .spec import TrainingSpec

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def network_of(pipe: Any) -> Any:
    """The network of a pipeline that denoises."""
    return getattr(pipe, adapter_of(pipe).network)


def load_for(spec: TrainingSpec, device: torch.device, sharding: Sharding | None = None) -> Any:
    """The pipeline of a spec. Where its network is frozen and computes in bfloat16, all but the VAE is read in that.
    What is sharded is in the computer's memory first."""
    frozen = spec.train == "lora" and spec.precision == "bf16" and getattr(spec, "fake_lora", True)
    where = str(device) if sharding is None else "cpu"
    dtype: Any = {"default": torch.bfloat16, "vae": torch.float32} if frozen else torch.float32
    if spec.model == "embedded":  # small, and one file for all
        dtype = torch.float32
    return load(spec.model, dtype=dtype, device=where, allow_download=spec.allow_download)


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
            return evaluate(self.network, x.to(self.weights), time, **condition)

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self.autocast, cache_enabled=False) if self.autocast else nullcontext()


class PipelineLearner(Learner):
    """pipe: any text-to-image pipeline that `attach` knows; everything in it is frozen but what learns here.

    lora: None trains all weights. network: what learns, of the pipeline's own class and its own network by default,
    which is changed in place. base: the network before training where all weights learn, a copy of it by default.
    adapter: the name of the adapters, of which one network may carry several. seed: of the adapters' first values.
    precision: "no", "bf16" or "fp16" of the network's passes; what learns is float32 and so is the VAE.
    network_checkpoints: the network stores its blocks' inputs only, and so does the VAE. networks: further ones that a
    rule asks for, by name. size: (width, height) of the pictures, the model's own without it. call: further arguments
    of the pipeline's call that say what its network is told, {"guidance_scale": 1.0} where that is an input of the
    network. conditions: of the same pipeline, where several learners share them; they have their own size and call.
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
        call: Mapping[str, Any] | None = None,
        conditions: Conditions | None = None,
    ):
        self.conditions = conditions or Conditions(pipe, size, call)
        self.model = self.conditions.model
        self.pipe, self.size, self.device = pipe, self.conditions.size, torch.device(pipe.device)
        self.network = self.model.network if network is None else network
        self.adapter = None if lora is None else adapter
        self.networks = dict(networks or {})
        self.autocast, self._trained = PRECISIONS[precision], True
        if conditions is None:
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval().requires_grad_(False)
        self._prepare(lora, base, seed)
        if network_checkpoints:
            self._store_inputs_only()
        self.shape = self.model.shape

    def _prepare(self, lora: LoraSettings | None, base: Any, seed: int) -> None:
        if self.model.vae is not None:
            self.model.vae.float()  # in half precision it gives NaN for some pictures
        self.model.find_decoder()
        self._base: Any = None
        if lora is None:
            self._base = copy.deepcopy(self.network) if base is None else base
            self.parameters = list(_as_float32(self.network).requires_grad_(True).parameters())
            before = dict(self._base.named_parameters())  # now: parts are exchanged for whole ones during a call
            self._before = [before.get(name) for name, _ in self.network.named_parameters()]
        else:
            if self.autocast is not None and weights_of(self.network) != self.autocast:
                self.network.to(self.autocast)
            self.parameters = add_lora(self.network, lora, seed, self.adapter or NAME)
            for parameter in self.parameters:  # also where the weights beside them wait in the computer's memory
                parameter.data = parameter.data.to(self.device)
        self.weights = weights_of(self.network)

    def _store_inputs_only(self) -> None:
        try:
            self.network.enable_gradient_checkpointing(self._block)
        except (AttributeError, ValueError):
            name = type(self.network).__name__
            raise UsageError(f"{name} has no gradient checkpoints; leave out network_checkpoints") from None
        if getattr(self.model.vae, "_supports_gradient_checkpointing", False):
            self.model.vae.enable_gradient_checkpointing()  # pictures of 1024 would keep 20 GB on their way back

    # -- what a Learner is ---------------------------------------------------------------------------------------

    def denoiser(
        self, prompts: Sequence[str | None], guidance: str = "none", told: Mapping[str, Tensor] | None = None
    ) -> Guided:
        """told: further arguments of the network, a row for each prompt."""
        rule = parse(guidance)
        schedule, kind = self.model.schedule, self.model.kind
        conditions = {"cond": {**self.conditions.of(prompts), **(told or {})}}
        if "uncond" in rule.needs:
            conditions["uncond"] = self.conditions.of([""], negative=True)
        nets = {name: _Network(net, acting(net), self.weights, self.autocast) for name, net in self.networks.items()}
        denoisers = {n: NetworkDenoiser(net, schedule, kind) for n, net in {"main": self._network(), **nets}.items()}
        return Guided(denoisers, rule, conditions, self.decode, [prompt or "" for prompt in prompts])

    def inner(self, prompts: Sequence[str], x: Tensor, level: Level) -> Tensor:
        """(B, C, H, W) or (B, C, N, 1): what reaches the middle of the network of noisy latents, as `middle_features`
        has it; nothing after it is computed."""
        network, condition = self._network(), self.conditions.of(prompts)
        if LENGTHS in condition:  # prompts of different lengths are different calls of the network
            rows = zip(prompts, x.split(1), strict=True)
            return torch.cat([self.inner([prompt], row, level) for prompt, row in rows])
        time = torch.full((len(x),), level.time, dtype=torch.float32, device=x.device)
        return middle_features(network.network, lambda: network(x, time, **condition), self.shape).float()

    def has_lengths(self, prompts: Sequence[str]) -> bool:
        """Is the network told of these prompts in different lengths? Then they go through it one by one."""
        return LENGTHS in self.conditions.of(prompts)

    def decode(self, latents: Tensor) -> Tensor:
        if torch.is_grad_enabled() and latents.requires_grad:
            found: Tensor = checkpoint(self._decode, latents, use_reentrant=False)
            return found
        return self._decode(latents)

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean of the VAE's posterior, in the scaling of the network: the inverse of `decode`."""
        return self.model.encode(pictures)

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
        """The norm of the difference of all weights from the base's; of weights that the base lacks, their own."""
        if self.adapter is not None:
            return change_norm(self.network, self.adapter)
        total = 0.0
        for parameter, before in zip(self.parameters, self._before, strict=True):
            change = parameter.detach().double()
            if before is not None:
                change = change - before.detach().double()
            total += float(full(change.square().sum()))
        return total**0.5

    def make_whole(self, keep: bool) -> None:
        """Put a network together whose weights all learn and were sharded; on every process, and before it is saved.
        keep: on this one. It is not called any more after this."""
        if self.adapter is None and is_sharded(self.network):
            make_whole(self.network, keep)

    def save(self, folder: Path) -> None:
        """What was learnt: a LoRA as `pipe.load_lora_weights` has it, or the network as `save_pretrained` writes it."""
        if self.adapter is None:
            self.network.save_pretrained(folder)
        else:
            save_lora(lora_state(self.network, self.model.attribute, self.adapter), folder)

    # -- parts of it ---------------------------------------------------------------------------------------------

    def _network(self) -> _Network:
        """As it learns, or before: without its adapters, or the kept copy."""
        if self._base is None:
            names = (self.adapter,) if self._trained and self.adapter is not None else ()
            return _Network(self.network, names, self.weights, self.autocast)
        network = self.network if self._trained else self._base
        return _Network(network, acting(network), self.weights, self.autocast)

    def _block(self, block: Any, *inputs: Any, **further: Any) -> Any:
        """A block of the network of which the inputs are stored; computed again with the adapters as they were."""
        names = acting(self.network)
        again = lambda: (nullcontext(), adapters(self.network, names))  # noqa: E731
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=again, **further)

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents in the scaling of the network -> pictures in [0, 1], float32."""
        return self.model.decode(latents)


def _as_float32(network: Any) -> Any:
    """Untouched where it is: weights that were sharded are not moved again."""
    return network if all(p.dtype == torch.float32 for p in network.parameters()) else network.float()
