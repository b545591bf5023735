"""What NAG and NASA share: a second attention, of the same queries to a negative prompt, inside one evaluation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..prompts import is_prompt, text_of
from ..rule import Ask, Context, Guide, Rule
from .layers import Site, attentions, blocks, module_of
from .patch import Attend, Change, Forward, Intercept, Patch, Scene, argument, intercepted, joint_block, with_argument


@dataclass(frozen=True)
class NegativeAttention(Rule):
    """The conditional prediction of a network whose attention to the text is steered away from a negative prompt.

    layers: the cross-attentions (blocks, where text and picture attend jointly) that are steered; "" is all of them.
    negative: embeddings of a negative prompt, (1, tokens, width), as the network's `encoder_hidden_states`; all rows
    share them. Then a step costs one evaluation, and no negative branch is needed: that is for guidance-distilled
    models. So it is with branch="prompt:grey_and_blurry" in a pipeline, which encodes that text for all rows. Otherwise
    the text is that of the branch `branch`, row by row; its rows are evaluated as well.
    """

    layers: str = field(default="", kw_only=True)
    branch: str = field(default="uncond", kw_only=True)
    negative: Any = field(default=None, kw_only=True)

    passes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if isinstance(self.negative, Tensor):
            object.__setattr__(self, "negative", Text(self.negative))

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("cond",) if self.negative is not None else ("cond", self.branch)

    @property
    @abstractmethod
    def off(self) -> bool:
        """Do the settings leave the attention as it is?"""

    @abstractmethod
    def patch(self, text: Text | None) -> NegativePatch:
        """The perturbation, with these embeddings or with those of the other half of the rows."""

    def guide(self, ctx: Context) -> Guide:
        if self.off:
            (cond,) = yield (Ask(),)
            return cond
        negative = self.negative if self.negative is not None else self._encoded(ctx)
        if negative is not None:
            (steered,) = yield (Ask(patch=self.patch(negative)),)
            return steered
        patch = self.patch(None)
        steered, _ = yield Ask(patch=patch), Ask(self.branch, patch=patch)  # one network call
        return steered

    def _encoded(self, ctx: Context) -> Text | None:
        """A further prompt's text, where a pipeline encodes it."""
        if ctx.encode is None or not is_prompt(self.branch):
            return None
        changes = ctx.encode(self.branch)
        if "encoder_hidden_states" not in changes:
            raise UsageError(f"this network attends to no text, so {text_of(self.branch)!r} cannot steer it; use cfg")
        return Text(changes["encoder_hidden_states"])


@dataclass(frozen=True)
class Text:
    """Embeddings, compared by identity."""

    embeddings: Tensor = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and other.embeddings is self.embeddings

    def __hash__(self) -> int:
        return id(self.embeddings)

    def like(self, text: Tensor) -> Tensor:
        """One copy a row, in the dtype and device of the positive text."""
        given = self.embeddings if self.embeddings.dim() == 3 else self.embeddings[None]
        if len(given) != 1:
            raise UsageError(f"negative= takes one prompt, (1, tokens, width), for all rows, not {tuple(given.shape)}")
        return given.to(text.device, text.dtype).expand(len(text), -1, -1)


@dataclass
class Carried:
    """The negative text on its way through the network, None before and where it does not change."""

    text: Tensor | None = None


@dataclass(frozen=True)
class NegativePatch(Patch):
    """Attention to a negative prompt beside that to the prompt. text: its embeddings; None: each row's negative prompt
    is that of the row half a batch away, and only the rows whose negative is wanted have a meaning."""

    text: Text | None = None

    @abstractmethod
    def combined(self, towards: Tensor, away: Tensor) -> Tensor:
        """The attention outputs (B, heads, tokens, d) of the prompt and of the negative prompt, combined."""

    def default(self, sites: Sequence[Site]) -> Sequence[Site]:
        return sites

    @contextmanager
    def on(self, network: Any) -> Iterator[None]:
        if self.text is None:
            _refuse_split_calls(module_of(network))
        with super().on(network):
            yield

    def changes(self, root: nn.Module, scene: Scene) -> list[Change]:
        carried = Carried()
        changes = [] if self.text is not None else [_checking(root)]
        for name in ("context_embedder", "caption_projection", "encoder_hid_proj"):
            if getattr(root, name, None) is not None:
                changes.append((getattr(root, name), self._embedding(carried)))
        if stages := [site for site in blocks(root) if joint_block(site[1])]:
            steered = {name for name, _ in self.chosen(stages, root)}
            return changes + [(block, self._joint(block, carried, name in steered)) for name, block in stages]
        return changes + [(layer, self._crossing(layer, carried)) for _, layer in self._cross(root)]

    def _cross(self, root: nn.Module) -> Sequence[Site]:
        return self.chosen(attentions(root, cross=True), root)

    def _embedding(self, carried: Carried) -> Callable[[Forward], Forward]:
        """Where the text enters the network, its negative does too."""

        def change(forward: Forward) -> Forward:
            def embedding(text: Tensor, *args: Any, **kwargs: Any) -> Any:
                towards = forward(text, *args, **kwargs)
                carried.text = swapped(towards) if self.text is None else forward(self.text.like(text), *args, **kwargs)
                return towards

            return embedding

        return change

    def _crossing(self, layer: Any, carried: Carried) -> Callable[[Forward], Forward]:
        """Cross-attention: keys and values once more, by the same projections."""

        def change(forward: Forward) -> Forward:
            def crossing(*args: Any, **kwargs: Any) -> Any:
                text = argument("encoder_hidden_states", 1, args, kwargs)
                text, pictures = (text[0], text[1:]) if isinstance(text, tuple) else (text, None)  # IP-Adapter
                negative = carried.text
                if negative is None:
                    negative = swapped(text) if self.text is None else self.text.like(text)
                kept: list[Tensor] = []

                def keep(call: Attend) -> Tensor:
                    kept.append(call.run())
                    return kept[0]

                other = negative if pictures is None else (negative, *pictures)
                a, k = with_argument("encoder_hidden_states", 1, other, args, kwargs)
                mask = argument("attention_mask", 2, args, kwargs)
                if mask is not None:
                    a, k = with_argument("attention_mask", 2, swapped(mask) if self.text is None else None, a, k)
                intercepted(layer, keep, forward)(*a, **k)
                return intercepted(layer, lambda call: self.combined(call.run(), kept[0]), forward)(*args, **kwargs)

            return crossing

        return change

    def _joint(self, block: nn.Module, carried: Carried, steered: bool) -> Callable[[Forward], Forward]:
        """Joint attention: the block runs twice, once a text; both texts are carried on, and the picture tokens of the
        attention are combined."""
        first = type(block).__name__.startswith("Flux")

        def change(forward: Forward) -> Forward:
            def joint(*args: Any, **kwargs: Any) -> Any:
                picture = argument("hidden_states", 0, args, kwargs)
                text, negative = argument("encoder_hidden_states", 1, args, kwargs), carried.text
                assert negative is not None
                if first and negative.shape[1] != text.shape[1]:
                    raise UsageError(
                        f"negative= has {negative.shape[1]} tokens and the prompt {text.shape[1]}; this transformer "
                        "needs equal numbers: encode both with the same max_sequence_length"
                    )
                n, kept = picture.shape[1], []

                def of_picture(z: Tensor) -> Tensor:
                    return z[:, :, -n:] if first else z[:, :, :n]

                def keep(call: Attend) -> Tensor:
                    z = call.run()
                    kept.append(of_picture(z))
                    return z

                def combine(call: Attend) -> Tensor:
                    z = call.run()
                    if not steered:
                        return z
                    both = self.combined(of_picture(z), kept[0])
                    return torch.cat([z[:, :, :-n], both] if first else [both, z[:, :, n:]], 2)

                a, k = with_argument("encoder_hidden_states", 1, negative, args, kwargs)
                with Intercept(keep):
                    carried.text, _ = forward(*a, **k)
                with Intercept(combine) as mode:
                    output = forward(*args, **kwargs)
                if not mode.met:
                    raise UsageError(f"{type(block).__name__} does not use torch's scaled_dot_product_attention here")
                return output

            return joint

        return change


def swapped(rows: Tensor) -> Tensor:
    """The halves of a batch exchanged."""
    return rows.roll(len(rows) // 2, 0)


_NO_PAIRS = (
    "each row needs its negative row in the same network call; pass negative= embeddings, or give the prompts one "
    "length and use neither rows_per_call nor a pipeline that calls the network once a branch"
)


def _checking(root: nn.Module) -> Change:
    """Refuses a batch whose halves are not the same pictures, which only differ in their text."""
    entry = next(getattr(root, name) for name in ("conv_in", "x_embedder", "pos_embed") if hasattr(root, name))
    channels = root.config.out_channels  # type: ignore[union-attr]

    def change(forward: Forward) -> Forward:
        def checking(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen = x[:, :channels] if x.dim() == 4 else x
            half = len(x) // 2
            if len(x) % 2 or not torch.equal(seen[:half], seen[half:]):
                raise UsageError(_NO_PAIRS)
            return forward(x, *args, **kwargs)

        return checking

    return root.get_submodule(next(n for n, m in root.named_children() if m is entry)), change


def _refuse_split_calls(root: nn.Module) -> None:
    """An attached pipeline that pads or splits its calls."""
    from ..pipelines.shadow import shadow_of

    shadow = shadow_of(root, "forward")
    call: Any = None if shadow is None else shadow.call
    call = getattr(call, "func", call)  # one network of several
    if getattr(getattr(call, "__self__", None), "rows_per_call", None):
        raise UsageError(_NO_PAIRS)
