"""What a gradient is taken of: losses, (B,) from a clean estimate, each row from its own row, to be lowered.

    Colour("red")                                  the mean colour of the decoded picture; "colour" in a line of text
    Inpaint(mask, known)                           |mask (z - known)|^2
    Measurement(operator, value)                   |operator(z) - value|^2, the inverse problems of DPS
    Similarity(reference, features)                1 - cosine to a reference
    ClassifierLoss(network, 207)                   - log p(class) of an ordinary classifier
    OnPictures(f), OnLatents(f), Reward(f)         any callable; a bare one is OnLatents
    Together((1.0, Colour("red")), (0.1, other))   a weighted sum

Those that look at pictures need the run's `decode`: attach(pipe, rule, decode=...), Guided(..., decode=...).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import UsageError, nearest
from ...registry import Spec, lookup
from ..rule import Context

Classes = int | str | tuple[int, ...]  # one class for all rows, or one a row


class Loss(ABC):
    """A loss compares by identity, for it may hold tensors and networks."""

    pictures = False  # does it look at decoded pictures (B, 3, H, W) in [0, 1], or at latents?

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """(B,), to be lowered."""

    def of(self, denoised: Tensor, ctx: Context) -> Tensor:
        """The loss of a clean estimate (B, ...) of the network."""
        values = self(decoded(denoised, ctx, type(self).__name__) if self.pictures else denoised)
        if not isinstance(values, Tensor) or values.shape != denoised.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"{type(self).__name__} gave {got} for {len(denoised)} rows; a loss is one number a row, never a mean "
                "over the batch"
            )
        return values.double() if denoised.dtype == torch.float64 else values.float()


def decoded(denoised: Tensor, ctx: Context, who: str) -> Tensor:
    """The picture of a clean estimate, differentiable where `decode` is."""
    if ctx.decode is None:
        raise UsageError(
            f"{who} looks at pictures; pass decode=, a function from denoised latents to pictures (B, 3, H, W) in "
            "[0, 1], to attach or Guided"
        )
    return ctx.decode(denoised)


def loss_of(loss: Any, target: str = "") -> Loss | None:
    """A loss as it is; a callable as one on latents; a name with its target; None for ""."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        return named_loss(loss, target) if loss else None
    if callable(loss):
        return OnLatents(loss)
    raise UsageError(f"a loss is a Loss, a callable on latents or a name ({', '.join(LOSSES)}), not {loss!r}")


@cache
def named_loss(name: str, target: str) -> Loss:
    """A loss of the registry by name, and what it is to aim at."""
    cls = lookup("losses", LOSSES, name, "loss").load()
    if not hasattr(cls, "named"):
        raise UsageError(f"the loss {name} holds tensors or networks; build it in Python: loss={cls.__name__}(...)")
    if not target:
        raise UsageError(f"the loss {name} needs a target; write for example loss={name},target={cls.example}")
    return cls.named(target)


# -- callables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OnLatents(Loss):
    """f(denoised latents (B, ...)) -> (B,), lower is better."""

    f: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        return self.f(z)


@dataclass(frozen=True, eq=False)
class OnPictures(OnLatents):
    """f(pictures (B, 3, H, W) in [0, 1]) -> (B,), lower is better."""

    pictures = True


@dataclass(frozen=True, eq=False)
class Reward(Loss):
    """Minus f(pictures), or minus f(latents): higher is better."""

    f: Callable[[Tensor], Tensor]
    pictures: bool = True

    def __call__(self, z: Tensor) -> Tensor:
        return -self.f(z)


class Together(Loss):
    """sum_i weight_i loss_i."""

    def __init__(self, *parts: tuple[float, Any]):
        self.parts = [(weight, found) for weight, loss in parts if (found := loss_of(loss)) is not None]

    def __call__(self, z: Tensor) -> Tensor:
        raise UsageError("a sum of losses is evaluated by its method `of`, with the run's decode")

    def of(self, denoised: Tensor, ctx: Context) -> Tensor:
        return torch.stack([weight * loss.of(denoised, ctx) for weight, loss in self.parts]).sum(0)


# -- pictures and measurements ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Colour(Loss):
    """Squared distance of the picture's mean colour from rgb, each channel in [0, 1]; the structure stays free."""

    rgb: str | tuple[float, float, float]

    pictures = True
    example: ClassVar[str] = "red"

    def __post_init__(self) -> None:
        if isinstance(self.rgb, str):
            object.__setattr__(self, "rgb", rgb_of(self.rgb))

    @classmethod
    def named(cls, target: str) -> Colour:
        return cls(target)

    def __call__(self, z: Tensor) -> Tensor:
        apart = z.flatten(2).mean(2) - z.new_tensor(self.rgb)
        return apart.square().sum(1)


def rgb_of(name: str) -> tuple[float, float, float]:
    """A colour of the embedded world, of the web ("tomato"), or "#4488ff"."""
    from PIL import ImageColor

    from ...zoo.world import COLOURS

    if name in COLOURS:
        red, green, blue = COLOURS[name]
    else:
        try:
            red, green, blue = ImageColor.getrgb(name)[:3]
        except ValueError:
            raise UsageError(f"unknown colour {name!r}: {nearest(name, [*COLOURS, *ImageColor.colormap])}") from None
    return red / 255, green / 255, blue / 255


@dataclass(frozen=True, eq=False)
class Measurement(Loss):
    """|operator(z) - value|^2 of each row; value (B, ...), or one row for all. pictures: what z is."""

    operator: Callable[[Tensor], Tensor]
    value: Tensor
    pictures: bool = False

    def __call__(self, z: Tensor) -> Tensor:
        return (self.operator(z) - self.value.to(z)).square().flatten(1).sum(1)


class Inpaint(Measurement):
    """|mask (z - known)|^2 of each row: 1 in the mask is known, 0 is to be filled in. pictures: what z is."""

    def __init__(self, mask: Tensor, known: Tensor, pictures: bool = False):
        super().__init__(lambda z: mask.to(z) * z, mask.to(known.dtype) * known, pictures)


@dataclass(frozen=True, eq=False)
class Similarity(Loss):
    """1 - cosine of features(z) and features(reference), row by row. features: a network, or None for z itself;
    reference: (B, ...), or one row for all."""

    reference: Tensor
    features: Callable[[Tensor], Tensor] | None = None
    pictures: bool = True

    def __call__(self, z: Tensor) -> Tensor:
        read = self.features or (lambda picture: picture)
        with torch.no_grad():
            wanted = read(self.reference.to(z)).flatten(1)
        return 1 - nn.functional.cosine_similarity(read(z).flatten(1), wanted, dim=1)


# -- classifiers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassifierLoss(Loss):
    """- class_score of network(z): logits (B, K). own = others = 1 is - log p(target | z)."""

    network: Callable[[Tensor], Tensor]
    target: Classes
    own: float = 1.0
    others: float = 1.0
    pictures: bool = True

    def __call__(self, z: Tensor) -> Tensor:
        return -class_score(fed(self.network, z), self.target, self.own, self.others)


def class_score(logits: Tensor, target: Classes, own: float = 1.0, others: float = 1.0) -> Tensor:
    """own f_y - log sum_k exp(others f_k), (B,), of logits f (B, K): the joint direction at others = 0, the conditional
    log p(y | x) at own = others = 1 (Ma et al. 2024, arXiv 2310.11311)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    chosen = wide.gather(1, classes_of(target, len(wide), wide.device)[:, None])[:, 0]
    return own * chosen - torch.logsumexp(others * wide, dim=1)


def classes_of(target: Classes, rows: int, device: Any = None) -> Tensor:
    """int64 (B,) of one class for all rows, or one a row."""
    if isinstance(target, str):
        if not target.isdecimal():
            raise UsageError(f"the class {target!r} is no number; give target=207, or one number a row")
        target = int(target)
    wanted = torch.as_tensor(target, dtype=torch.int64, device=device).reshape(-1)
    if len(wanted) not in (1, rows):
        raise UsageError(f"{len(wanted)} classes for {rows} rows; give one, or one a row")
    return wanted.expand(rows)


def fed(network: Any, z: Tensor, *more: Any) -> Any:
    """network(z) in the network's own precision."""
    if isinstance(network, nn.Module):
        own = next((p for p in network.parameters() if p.is_floating_point()), None)
        z = z if own is None else z.to(own.dtype)
    return network(z, *more)


class ImageNetInput(nn.Module):
    """Pictures in [0, 1] as an ImageNet classifier was trained on them: resized to `size` (0: as they are), then the
    mean and deviation of each channel. parity: as EluCD's released code, [-1, 1] straight into the network."""

    def __init__(self, network: nn.Module, size: int = 224, parity: bool = False):
        super().__init__()
        self.network, self.size, self.parity = network, size, parity

    def forward(self, pictures: Tensor) -> Tensor:
        if self.parity:
            return self.network(2 * pictures - 1)
        if self.size and pictures.shape[-1] != self.size:
            pictures = nn.functional.interpolate(
                pictures, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        mean, deviation = (
            pictures.new_tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        return self.network((pictures - mean) / deviation)


def smoothed(network: nn.Module, beta: float = 3.0) -> nn.Module:
    """A copy with every nn.ReLU replaced by softplus(beta z) / beta, whose gradient is smooth (EluCD: beta 3 on DDPM, 5
    on EDM). beta = inf is ReLU. Calls of torch.relu inside the network are not seen."""
    made = copy.deepcopy(network)
    if beta == float("inf"):
        return made
    if isinstance(made, nn.ReLU):
        return nn.Softplus(beta, threshold=40.0)
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus(beta, threshold=40.0))
    return made


@dataclass(frozen=True, eq=False)
class Judged(Loss):
    """- log p of an attribute of the embedded world ("star", "red", "place.left") by its judge of clean pictures."""

    attribute: str

    pictures = True
    example: ClassVar[str] = "star"

    def __post_init__(self) -> None:
        head_of(self.attribute)

    @classmethod
    def named(cls, target: str) -> Judged:
        return cls(target)

    def __call__(self, z: Tensor) -> Tensor:
        head, index = head_of(self.attribute)
        if z.shape[-2:] != (32, 32):
            z = nn.functional.interpolate(z, (32, 32), mode="area")
        return -class_score(fed(embedded_network("judge"), 2 * z - 1)[head], index)


def head_of(attribute: str) -> tuple[str, int]:
    """The head of the embedded classifiers, and the class, of "star" or "shape.star"."""
    from ...zoo.world import ATTRIBUTES

    given, _, word = attribute.rpartition(".")
    found = [(head, names.index(word)) for head, names in ATTRIBUTES.items() if word in names and given in ("", head)]
    if not found:
        raise UsageError(
            f"unknown attribute {attribute!r}: {nearest(word, [n for a in ATTRIBUTES.values() for n in a])}"
        )
    return found[0]


@cache
def embedded_network(name: str) -> Any:
    """The embedded "judge" (clean pictures) or "guide" (noisy latents)."""
    from ...zoo import embedded

    return getattr(embedded, name)()


LOSSES: dict[str, Spec] = {
    "colour": Spec(Colour, "mean colour of the decoded picture", notes="loss=colour,target=red or target='#4488ff'"),
    "judge": Spec(Judged, "an attribute by the embedded world's judge", notes="loss=judge,target=star"),
    "classifier": Spec(ClassifierLoss, "- log p(class) of an ordinary classifier of pictures or latents"),
    "inpaint": Spec(Inpaint, "squared distance to what is known, inside a mask"),
    "measurement": Spec(Measurement, "squared residual of a measurement, as in inverse problems"),
    "similarity": Spec(Similarity, "1 - cosine to a reference, through a feature network"),
}
