"""Low-rank adapters: put on a network, switched off for a while, saved as diffusers has them, and mixed.

A layer's weight is W + scale B A with A (rank, inputs), B (outputs, rank), scale = alpha / rank (Hu et al. 2021,
arXiv 2106.09685). Files hold scale B, so that their own scale is 1 and no further number is needed to load them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UsageError
from ..samplers.noise import derived_seed
from ..storage import disk_errors, make_folder, whole

FILE = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for first
ATTENTION = "attention"  # as a target: the projections of all attention layers, whatever the network calls them
NAME = "default"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_PROJECTIONS = (
    "to_q", "to_k", "to_v", "to_out.0",  # nearly all
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",  # the text's in joint attention
    "to_out", "to_qkv_mlp_proj", "to_q_t", "to_k_t", "to_v_t", "to_out_t",  # Flux 2, HiDream
    "to_query", "to_key", "to_value", "out_layer", "img_qkv_proj", "txt_kv_proj",  # Kandinsky 5, PRX
)  # fmt: skip


@dataclass(frozen=True)
class LoraSettings:
    """rank: of the change. alpha: scale is alpha / rank; None is alpha = rank. targets: ends of the names of layers, or
    "attention" for the projections of the attention layers under the names of the network's class."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where it stands in a spec

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = (ATTENTION,)


def add_lora(network: Any, settings: LoraSettings, seed: int, name: str = NAME) -> list[nn.Parameter]:
    """Adapters on the layers of a diffusers network, float32, B = 0 and A ~ N(0, 1/rank^2) by the seed. What learns.

    Everything else is frozen, but for adapters of other names that learn. UsageError where no layer has such a name.
    """
    from peft import LoraConfig

    others = [parameter for parameter in network.parameters() if parameter.requires_grad] if _layers(network) else []
    network.requires_grad_(False)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    inject(network, LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=_targets(network, settings)), name)
    named = [(place, parameter) for place, parameter in network.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        for place, parameter in named:
            parameter.data = parameter.data.float()
            if ".lora_A." in place:
                generator = torch.Generator().manual_seed(derived_seed(seed, "lora", place))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / settings.rank)
    for parameter in others:  # peft's own switch has frozen them
        parameter.requires_grad_(True)
    return [parameter for _, parameter in named]


def inject(network: Any, config: Any, name: str) -> None:
    """A peft adapter on a network, of diffusers' own making where its class has that."""
    if hasattr(network, "add_adapter"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft warns of a second adapter, which is meant
            network.add_adapter(config, adapter_name=name)
        return
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, network, name)
    for layer in _layers(network):
        layer.set_adapter([name])


def _targets(network: nn.Module, settings: LoraSettings) -> list[str]:
    """The names, or ends of names, of the layers that are meant. UsageError, with names that there are, where none
    has such a name."""
    kinds = nn.Linear, nn.Conv2d
    places = [place.removesuffix(".base_layer") for place, part in network.named_modules() if isinstance(part, kinds)]
    attention = [place for place in places if _ends(place, _PROJECTIONS) and ("attn" in place or "attention" in place)]
    wanted = [name for end in settings.targets for name in (attention if end == ATTENTION else [end])]
    if any(_ends(place, wanted) for place in places):
        return wanted
    last = dict.fromkeys(part for place in places if not (part := place.rpartition(".")[2]).isdigit())
    raise UsageError(
        f"no layer of {type(network).__name__} is called {', '.join(settings.targets)}; name others with targets, "
        f"such as {', '.join(list(last)[:12])}"
    )


def _ends(place: str, names: Sequence[str]) -> bool:
    return place in names or place.endswith(tuple(f".{name}" for name in names))


def _layers(network: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def acting(network: nn.Module) -> tuple[str, ...]:
    """The names of its adapters that act."""
    layer = next(iter(_layers(network)), None)
    return () if layer is None or layer._disable_adapters else tuple(layer.active_adapters)


@contextmanager
def adapters(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, the network with its adapters of those names and no others.

    peft's own switch would also take requires_grad from the parameters, and a backward pass that happens meanwhile
    would then drop their gradients without a word.
    """
    before = [(layer, layer._disable_adapters, layer._active_adapter) for layer in _layers(network)]
    for layer, _, _ in before:
        layer._disable_adapters = not names
        if names:
            layer._active_adapter = list(names)
    try:
        yield
    finally:
        for layer, disabled, active in before:
            layer._disable_adapters, layer._active_adapter = disabled, active


def lora_state(network: nn.Module, prefix: str = "unet", name: str = NAME) -> dict[str, Tensor]:
    """The adapters by diffusers' names, with the scale in B. prefix: the pipeline's name of the network."""
    found: dict[str, Tensor] = {}
    for place, layer in network.named_modules():
        if name not in getattr(layer, "lora_A", {}):
            continue
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        found[f"{prefix}.{place}{_A}"] = a.detach().float().cpu().clone()
        found[f"{prefix}.{place}{_B}"] = (b.detach().float() * layer.scaling[name]).cpu()
    return found


def change_norm(network: nn.Module, name: str = NAME) -> float:
    """The norm of the change of all weights, sqrt(sum |scale B A|^2), from the small products A A' and B' B."""
    total = 0.0
    for layer in (layer for layer in _layers(network) if name in getattr(layer, "lora_A", {})):
        a, b = (layer.lora_A[name].weight, layer.lora_B[name].weight)
        a, b = a.detach().double().flatten(1), b.detach().double().flatten(1)
        total += layer.scaling[name] ** 2 * float(((a @ a.T) * (b.T @ b)).sum())
    return max(total, 0.0) ** 0.5


def save_lora(state: Mapping[str, Tensor], folder: Path) -> Path:
    """A folder that `pipe.load_lora_weights(folder)` loads. The file."""
    make_folder(folder)
    file = folder / FILE
    with disk_errors(folder), whole(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, part, metadata={"format": "pt"})
    return file


def read_lora(folder: str | Path) -> dict[str, Tensor]:
    """The adapters in a folder or file. UsageError for what is none of ours: a scale of its own, or other kinds."""
    path = Path(folder)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"there is no LoRA {file}; give a folder that pilotage finetune wrote")
    try:
        state = load_file(file)
    except Exception as error:  # safetensors has its own kinds
        raise UsageError(f"cannot read the LoRA {file}: {' '.join(str(error).split())[:200]}") from None
    other = next((name for name in state if not name.endswith((_A, _B))), None)
    if other is not None:
        raise UsageError(f"{file} holds {other}, which is no plain LoRA; mix it with pipe.set_adapters instead")
    return state


def wear_lora(network: Any, folder: str | Path, name: str = NAME) -> None:
    """The adapters of a folder on a network, as they are in the file: for networks whose pipelines have no
    `load_lora_weights` (PixArt, DiT, Hunyuan-DiT, CogView 3). UsageError where a layer is missing."""
    from peft import LoraConfig

    state = read_lora(folder)
    prefix = next(iter(state)).partition(".")[0]
    ranks = {key.removesuffix(_A).removeprefix(f"{prefix}."): len(a) for key, a in state.items() if key.endswith(_A)}
    missing = next(iter(set(ranks) - {place for place, _ in network.named_modules()}), None)
    if missing is not None:
        raise UsageError(f"{type(network).__name__} has no layer {missing}; this LoRA is of another network")
    config = LoraConfig(rank_pattern=ranks, alpha_pattern=dict(ranks), target_modules=list(ranks), inference_mode=True)
    inject(network, config, name)
    fill_lora(network, state, name, prefix)


def scaled(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The same adapters with their change times `scale`: 0 is the base model, 1 leaves every bit as it is."""
    return {name: tensor if name.endswith(_A) or scale == 1 else tensor * scale for name, tensor in state.items()}


def mixed(parts: Sequence[tuple[str | Path, float]], scale: float = 1.0) -> dict[str, Tensor]:
    """One LoRA whose change is scale * sum_j w_j B_j A_j, of [(folder, w), ...]: `save_lora` writes it.

    The *changes of the weights* are summed, exactly, by stacking the adapters along their rank: B A of the stack is the
    sum of B_j A_j. Averaging the A and the B by themselves would be another model. An adapter of weight 0 is left out,
    so that weights (1, 0) give the first one bit for bit. The multi-reward mixing of AlignProp (arXiv 2310.03739) and
    DRaFT (arXiv 2309.17400), where the weights sum to 1.
    """
    if not parts:
        raise UsageError("nothing to mix; give [(folder, weight), ...]")
    states = [scaled(read_lora(folder), weight * scale) for folder, weight in parts if weight * scale != 0]
    if not states:
        return scaled(read_lora(parts[0][0]), 0.0)
    if len(states) == 1:
        return states[0]
    modules = dict.fromkeys(name.removesuffix(_A) for state in states for name in state if name.endswith(_A))
    result: dict[str, Tensor] = {}
    for module in modules:
        pairs = [_pair(state, module, states) for state in states]
        result[module + _A] = torch.cat([a for a, _ in pairs], dim=0)
        result[module + _B] = torch.cat([b for _, b in pairs], dim=1)
    return result


def _pair(state: Mapping[str, Tensor], module: str, states: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """A and B of a layer; zeros of this adapter's rank where it has none there, so that all layers have one rank."""
    if module + _A in state:
        return state[module + _A], state[module + _B]
    like = next(other for other in states if module + _A in other)
    rank = next(len(tensor) for name, tensor in state.items() if name.endswith(_A))
    a, b = like[module + _A], like[module + _B]
    return a.new_zeros(rank, *a.shape[1:]), b.new_zeros(len(b), rank, *b.shape[2:])


def fill_lora(network: nn.Module, state: Mapping[str, Tensor], name: str = NAME, prefix: str = "unet") -> None:
    """Copy saved adapters, whose scale is in B, into those of a network. UsageError where they are of other layers or
    ranks."""
    own = {
        f"{prefix}.{place}": layer for place, layer in network.named_modules() if name in getattr(layer, "lora_A", {})
    }
    fits = {key.removesuffix(_A) for key in state if key.endswith(_A)} == own.keys()
    if not fits or any(state[key + _A].shape != layer.lora_A[name].weight.shape for key, layer in own.items()):
        raise UsageError("that LoRA has other layers or another rank than this run's; give the same lora settings")
    with torch.no_grad():
        for key, layer in own.items():
            layer.lora_A[name].weight.copy_(state[key + _A])
            layer.lora_B[name].weight.copy_(state[key + _B] / layer.scaling[name])
