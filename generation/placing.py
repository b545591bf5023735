"""A pipeline onto its device, with the switches for memory."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ..errors import UsageError, nearest
from .memory import OFFLOADS, Memory, choose
from .spec import RunSpec

# diffusers' quantisations that can be named: the package that each needs, and what the line may say of it.
BACKENDS = {"bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes", "torchao": "torchao"}
_QUANTISED = ("unet", "transformer", "transformer_2")  # the networks; the other parts stay as they are


def quantisation(line: str | None) -> Any:
    """diffusers' configuration for a line such as `bitsandbytes_4bit:bnb_4bit_quant_type=nf4`, which quantises the
    network when it is loaded; None for no line. UsageError for an unknown one, and where its package is missing."""
    if line is None:
        return None
    from ..grammar import name_and_settings

    name, settings = name_and_settings(line)
    if name not in BACKENDS:
        raise UsageError(f"unknown quantisation {name!r}: {nearest(name, BACKENDS)}")
    package = BACKENDS[name]
    if find_spec(package) is None:
        raise UsageError(f"memory.quantize {name} needs the package {package}, which is not installed; "
                         f"leave it out, or pip install {package}")  # fmt: skip
    from diffusers import PipelineQuantizationConfig

    try:
        config = _config(name, settings)
        return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(_QUANTISED, config))
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise UsageError(f"cannot quantize by {line!r}: {' '.join(str(error).split())[:200]}") from None


def _config(name: str, settings: dict[str, Any]) -> Any:
    if name == "torchao":  # its classes are named as they are there: torchao:config=Int8WeightOnlyConfig
        import torchao.quantization
        from diffusers import TorchAoConfig

        named = str(settings.pop("config", "Int8WeightOnlyConfig"))
        config = getattr(torchao.quantization, named)
        if not (named.endswith("Config") and isinstance(config, type)):  # the line may come from a stranger's picture
            raise ValueError(f"{named} is no configuration of torchao")
        return TorchAoConfig(config(**settings))
    from diffusers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{f"load_in_{name.removeprefix('bitsandbytes_')}": True}, **settings)


def chosen(memory: Memory, pipe: Any, spec: RunSpec, device: str) -> Memory:
    """The same with what `auto` chooses for this pipeline, which is still in the computer's memory, and this device.
    What is set already stays. Without a GPU there is nothing to move away."""
    if not memory.auto:
        return memory
    parts = [sum(p.numel() * p.element_size() for p in part.parameters()) for part in modules_of(pipe).values()]
    own = side_of(pipe)
    tile = getattr(getattr(pipe, "vae", None), "tile_sample_min_size", None)
    found = choose(
        free_bytes(device), sum(parts), max(parts, default=0),
        bytes_each=4 if spec.dtype == "float32" else 2,
        pixels=(spec.width or own) * (spec.height or own),
        tile=tile**2 if isinstance(tile, int) else 512**2,
        pictures=spec.batch_size, rows=2 * spec.batch_size,
    )  # fmt: skip
    if device == "cpu":
        found.pop("offload", None)
    if getattr(pipe, "vae", None) is None:
        found = {name: value for name, value in found.items() if not name.startswith("vae")}
    kept = {name: value for name, value in found.items() if getattr(memory, name) in (False, "none")}
    return memory.model_copy(update=kept)


def side_of(pipe: Any) -> int:
    """Pixels of a side of the pipeline's own pictures; 1024 where it does not say."""
    inside = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
    side = getattr(pipe, "default_sample_size", None) or inside
    return side * (getattr(pipe, "vae_scale_factor", None) or 8) if isinstance(side, int) else 1024


def free_bytes(device: str) -> int:
    """Of the device; of the computer's memory for the CPU and devices that share it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def modules_of(pipe: Any) -> dict[str, Any]:
    """The networks of a pipeline by name."""
    from torch import nn

    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def place(pipe: Any, memory: Memory, device: str) -> None:
    """Switch on what is wanted and put the pipeline where it belongs. UsageError for what it does not know."""
    from ..guidance.pipelines import adapter_of

    if memory.vae_slicing:
        _of_vae(pipe, "slicing")
    if memory.vae_tiling:
        _of_vae(pipe, "tiling")
    if memory.attention_slicing:
        _slice_attention(pipe)
    if memory.channels_last:
        _channels_last(pipe)
    _to(pipe, memory.offload if device != "cpu" else "none", device)
    if memory.compile is not None:
        _compile(pipe, (adapter_of(pipe).network, *adapter_of(pipe).experts), memory.compile)


def placed_beside(network: Any, memory: Memory, device: str) -> Any:
    """A further network, such as a weak one, on the same device under the same switches. Where whole parts are moved it
    stays, for it is wanted at every step."""
    import torch

    if memory.channels_last:
        network.to(memory_format=torch.channels_last)
    if memory.offload == "sequential" and device != "cpu":
        from accelerate import cpu_offload

        return cpu_offload(network.to("cpu"), torch.device(device))
    network.to(device)
    if memory.compile is not None:
        network.compile(backend=memory.compile)
    return network


def _of_vae(pipe: Any, what: str) -> None:
    switch = getattr(getattr(pipe, "vae", None), f"enable_{what}", None)
    if switch is None:
        raise UsageError(f"the autoencoder of {type(pipe).__name__} knows no {what}; leave memory.vae_{what} out")
    try:
        switch()
    except NotImplementedError:
        raise UsageError(
            f"the autoencoder of {type(pipe).__name__} knows no {what}; leave memory.vae_{what} out"
        ) from None


def _slice_attention(pipe: Any) -> None:
    if not any(hasattr(part, "set_attention_slice") for part in modules_of(pipe).values()):
        raise UsageError(f"{type(pipe).__name__} knows no attention slicing; leave memory.attention_slicing out")
    pipe.enable_attention_slicing()


def _channels_last(pipe: Any) -> None:
    """Of the networks that convolve pictures; the others have no such order."""
    import torch
    from torch import nn

    convolving = [m for m in modules_of(pipe).values() if any(isinstance(layer, nn.Conv2d) for layer in m.modules())]
    for module in convolving:
        module.to(memory_format=torch.channels_last)


def _to(pipe: Any, offload: str, device: str) -> None:
    """Hooks of accelerate move parts, or layers, to the device when they are called. `notes` says that the CPU has
    nothing to offload to."""
    if offload == "none":
        pipe.to(device)
        return
    try:
        if offload == OFFLOADS[1]:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{type(pipe).__name__} cannot be offloaded: {said}; leave memory.offload out") from None


def _compile(pipe: Any, networks: tuple[str, ...], backend: str) -> None:
    from torch import _dynamo

    if backend not in _dynamo.list_backends(exclude_tags=()):
        raise UsageError(f"torch knows no backend {backend!r} to compile with: "
                         f"{nearest(backend, _dynamo.list_backends(exclude_tags=()))}")  # fmt: skip
    for name in networks:
        if (network := getattr(pipe, name, None)) is not None:
            network.compile(backend=backend)
