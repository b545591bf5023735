"""Perturbing a network for one call: forwards of some of its layers are exchanged on the instances and put back.

Not the attention processors but the `forward` around them is exchanged, and inside it the call of
`scaled_dot_product_attention` is intercepted (torch's function mode, thread-local). So every processor that uses it
works as it is - joint attention, rotary positions, IP-Adapters, LoRA - and `attn_processors` is never touched.

The perturbed call of a compiled network runs uncompiled: dynamo (torch 2.13) does not guard what a function mode closes
over, and would answer with the graph of another perturbation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UsageError
from .layers import Default, Site, attentions, chosen, is_joint, middle, module_of

Forward = Callable[..., Any]
Change = tuple[nn.Module, Callable[[Forward], Forward]]  # a module, and its new forward out of the old one


@dataclass
class Scene:
    """What is known only while the network runs: the number of text tokens, and the grids of picture tokens."""

    text: int = 0
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)  # by the name of the module that was given it

    def grid(self, name: str, tokens: int) -> tuple[int, int]:
        """Height and width of the tokens of the attention layer `name`: those of its nearest ancestor."""
        owners = [owner for owner in self.grids if owner == "" or name.startswith(owner + ".")]
        for owner in sorted(owners, key=len, reverse=True):
            height, width = self.grids[owner]
            if height * width == tokens:
                return height, width
        raise UsageError(
            f"the {tokens} tokens of {name} are no grid of pixels that this rule knows; choose other layers"
        )


@dataclass(frozen=True)
class Patch(ABC):
    """A perturbation that compares by value. `layers` as in `layers.py`; empty is the default."""

    layers: str = ""

    @contextmanager
    def on(self, network: Any) -> Iterator[None]:
        root = module_of(network)
        scene = Scene()
        with torch.compiler.set_stance("force_eager"), exchanged([*_notes(root, scene), *self.changes(root, scene)]):
            yield

    @abstractmethod
    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        """The modules whose forward is exchanged, and with what."""

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return middle(sites)

    def chosen(self, sites: Sequence[Site], root: nn.Module) -> list[Site]:
        default: Default = self.default
        return chosen(sites, self.layers, default, root)


class AttentionPatch(Patch):
    """Changes what the chosen self-attention layers compute: `attended` in place of softmax(q k^T) v."""

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        sites = self.chosen(attentions(root), root)
        return [(layer, self._changing(name, layer, scene)) for name, layer in sites]

    def _changing(self, name: str, layer: nn.Module, scene: Scene) -> Callable[[Forward], Forward]:
        def change(forward: Forward) -> Forward:
            def changed(*args: Any, **kwargs: Any) -> Any:
                pictures = picture_tokens(layer, args, kwargs, scene)
                return intercepted(layer, lambda call: self.attended(call, pictures, name, scene), forward)(
                    *args, **kwargs
                )

            return changed

        return change

    @abstractmethod
    def attended(self, call: Attend, pictures: slice, name: str, scene: Scene) -> Tensor:
        """(B, heads, tokens, d). pictures: which of the tokens are picture tokens."""


@dataclass(frozen=True)
class Attend:
    """One call of scaled dot-product attention: query, key, value (B, heads, tokens, d), and its other settings."""

    query: Tensor
    key: Tensor
    value: Tensor
    settings: dict[str, Any]

    def run(self, **changes: Any) -> Tensor:
        """softmax(query key^T) value, with other tensors or settings."""
        settings = {**self.settings, **{k: v for k, v in changes.items() if k not in ("query", "key", "value")}}
        return F.scaled_dot_product_attention(
            changes.get("query", self.query), changes.get("key", self.key), changes.get("value", self.value), **settings
        )

    @property
    def values(self) -> Tensor:
        """The values, one head a query head."""
        shared = self.query.shape[1] // self.value.shape[1]
        return self.value if shared == 1 else self.value.repeat_interleave(shared, 1)


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class Intercept(TorchFunctionMode):
    """Hands the first attention computed inside to `instead`. (Later ones are IP-Adapters', with the same queries.)"""

    def __init__(self, instead: Callable[[Attend], Tensor]):
        super().__init__()
        self.instead, self.met = instead, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.met:
            return func(*args, **kwargs)
        self.met = True
        given = {**dict(zip(_ARGUMENTS, args)), **kwargs}
        query, key, value = given.pop("query"), given.pop("key"), given.pop("value")
        return self.instead(Attend(query, key, value, given))


def intercepted(layer: Any, instead: Callable[[Attend], Tensor], forward: Forward) -> Forward:
    """The layer's forward with `instead` for its attention."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with Intercept(instead) as mode:
            output = forward(*args, **kwargs)
        if not mode.met:
            raise UsageError(
                f"the attention processor {type(layer.processor).__name__} does not use torch's "
                "scaled_dot_product_attention, which the attention rules need; leave memory.attention_slicing out, "
                "call pipe.disable_attention_slicing(), pipe.disable_xformers_memory_efficient_attention() "
                "or set the native attention backend"
            )
        return output

    return run


@contextmanager
def exchanged(changes: Sequence[Change]) -> Iterator[None]:
    """The forwards exchanged inside; put back as they were whatever happens, class methods and wrappers alike."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, change in changes:
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = change(module.forward)
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def argument(name: str, position: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An argument of a call, by name or place; None when it was not given."""
    return kwargs[name] if name in kwargs else args[position] if len(args) > position else None


def picture_tokens(layer: Any, args: Sequence[Any], kwargs: dict[str, Any], scene: Scene) -> slice:
    """Which tokens of an attention are the picture's."""
    text = argument("encoder_hidden_states", 1, args, kwargs)
    if is_joint(layer) and text is not None:
        if text_stands_first(layer):
            return slice(text.shape[1], None)
        return slice(0, argument("hidden_states", 0, args, kwargs).shape[1])
    return slice(scene.text, None) if getattr(layer, "pre_only", False) else slice(None)


def text_stands_first(layer: Any) -> bool:
    """Flux puts the text before the picture, SD3 behind it."""
    return type(layer).__name__.startswith("Flux")


def _notes(root: nn.Module, scene: Scene) -> list[Change]:
    """Listeners that fill the scene while the network runs."""
    changes: list[Change] = []
    for name, module in root.named_modules():
        if type(module).__name__ == "Transformer2DModel" and name:
            changes.append((module, _noting_grid(scene, name, 1)))
    embedder: Any = getattr(root, "pos_embed", None)
    if type(embedder).__name__ == "PatchEmbed":
        changes.append((embedder, _noting_grid(scene, "", embedder.patch_size)))
    elif type(embedder).__name__ == "FluxPosEmbed":
        changes.append((embedder, _noting_ids(scene)))
    context: Any = getattr(root, "context_embedder", None)
    if context is not None:
        changes.append((context, _noting_text(scene)))
    return changes


def _noting_grid(scene: Scene, name: str, patch: int) -> Callable[[Forward], Forward]:
    def change(forward: Forward) -> Forward:
        def noting(*args: Any, **kwargs: Any) -> Any:
            pixels = args[0] if args else kwargs["hidden_states"]
            if pixels.dim() == 4:
                scene.grids[name] = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
            return forward(*args, **kwargs)

        return noting

    return change


def _noting_ids(scene: Scene) -> Callable[[Forward], Forward]:
    """Flux tells its grid by the positions of the tokens, text first."""

    def change(forward: Forward) -> Forward:
        def noting(ids: Tensor) -> Any:
            height, width = (int(ids[scene.text :, axis].max()) + 1 for axis in (1, 2))
            scene.grids[""] = (height, width)
            return forward(ids)

        return noting

    return change


def _noting_text(scene: Scene) -> Callable[[Forward], Forward]:
    def change(forward: Forward) -> Forward:
        def noting(*args: Any, **kwargs: Any) -> Any:
            text = forward(*args, **kwargs)
            scene.text = text.shape[1]
            return text

        return noting

    return change


_JOINT_BLOCKS = ("JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")


def joint_block(block: nn.Module) -> bool:
    """Does the block carry text and picture, and answer (text, picture)?"""
    return type(block).__name__ in _JOINT_BLOCKS


def with_argument(
    name: str, position: int, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with another value of an argument."""
    if name in kwargs or len(args) <= position:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs
