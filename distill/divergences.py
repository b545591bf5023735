"""f-divergences of a teacher p and a student q, by name, by a line, or by the second derivative of f.

    D_f(p || q) = E_q[f(r)],   r = p / q,   f convex, f(1) = 0
    grad D_f = E[h(r) (score_q - score_p)(x) . dx],   h(r) = f''(r) r^2

(Xu, Nie & Vahdat 2025, arXiv 2502.15681.) Only h is needed to learn, up to a factor: it says how much a sample counts
of which the teacher makes more (r > 1) or less than the student. The slower f'' falls as r grows, the more a mode of
the teacher that the student misses counts: less mode-seeking, more coverage, at the price of a wider spread of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import UsageError
from ..grammar import name_and_settings
from ..registry import Spec, make

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """log_weight: log h(r) of log r. f: of r, where it is known. trades: what it buys and what that costs.

    flat: h is constant, so that no ratio has to be known; the weights are then exactly 1.
    """

    name: str
    log_weight: Function
    f: Function | None = None
    trades: str = ""
    flat: bool = False

    def weight(self, log_ratio: Tensor) -> Tensor:
        """h(r) = f''(r) r^2 of log r, elementwise, without gradient.

        From the logarithm, so it is finite for every log r: log h is kept within 0.45 of the logarithm of the largest
        number (40 in float32, 319 in float64), which leaves room for squares.
        """
        if self.flat:
            return torch.ones_like(log_ratio, dtype=_at_least_single(log_ratio))
        log_ratio = log_ratio.detach().to(_at_least_single(log_ratio))
        return self.log_weight(log_ratio).clamp(max=_room(log_ratio)).exp()

    def second(self, r: Tensor) -> Tensor:
        """f''(r) = h(r) / r^2, up to the factor that `weight` has."""
        return self.weight(r.log()) / r**2


def _at_least_single(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _room(values: Tensor) -> float:
    return 0.45 * math.log(torch.finfo(values.dtype).max)


def from_second(second: Function, name: str = "user-defined") -> Divergence:
    """The divergence whose f has the second derivative `second`, a function of r, elementwise.

    It is asked for r between exp(-10) and exp(10) in float32, exp(-80) and exp(80) in float64. UsageError where it is
    not positive and finite at 0.1, 1 and 10.
    """
    seen = torch.as_tensor(second(torch.tensor([0.1, 1.0, 10.0])))
    if seen.shape != (3,) or not bool((seen.isfinite() & (seen > 0)).all()):
        raise UsageError(f"{name} is no second derivative of a convex f: it must be positive and finite, elementwise")

    def log_weight(log_ratio: Tensor) -> Tensor:
        most = _room(log_ratio) / 4
        log_ratio = log_ratio.clamp(-most, most)
        return second(log_ratio.exp()).log() + 2 * log_ratio

    return Divergence(name, log_weight)


def reverse_kl() -> Divergence:
    """f = -log r, f'' = 1/r^2, h = 1"""
    return Divergence(
        "reverse-kl",
        torch.zeros_like,
        lambda r: -r.log(),
        "mode-seeking: yes; saturates: no; variance of the weights: none. No ratio is needed, so no discriminator.",
        flat=True,
    )


def softened() -> Divergence:
    """f = (r + 1) log(1/2 + 1/(2r)), f'' = 1/(r^2 (r + 1)), h = 1/(1 + r)"""
    return Divergence(
        "softened",
        lambda log_r: -softplus(log_r),
        lambda r: (r + 1) * (0.5 + 0.5 / r).log(),
        "mode-seeking: yes; saturates: no; variance of the weights: low.",
    )


def jensen_shannon() -> Divergence:
    """f = r log r - (r + 1) log((r + 1)/2), f'' = 1/(r (r + 1)), h = r/(1 + r)"""
    return Divergence(
        "jensen-shannon",
        lambda log_r: -softplus(-log_r),
        lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        "mode-seeking: medium; saturates: yes, so start from the teacher's weights; variance of the weights: low.",
    )


def hellinger() -> Divergence:
    """f = 1 - sqrt(r), f'' = r^(-3/2) / 4, h = sqrt(r) / 4"""
    return Divergence(
        "hellinger",
        lambda log_r: log_r / 2 - math.log(4),
        lambda r: 1 - r.sqrt(),
        "mode-seeking: medium; saturates: yes, so start from the teacher's weights; variance of the weights: low.",
    )


def forward_kl() -> Divergence:
    """f = r log r, f'' = 1/r, h = r"""
    return Divergence(
        "forward-kl",
        lambda log_r: log_r,
        lambda r: r * r.log(),
        "mode-seeking: no; saturates: no; variance of the weights: high. Clipped ratios make its students too narrow.",
    )


def jeffreys() -> Divergence:
    """f = (r - 1) log r, f'' = 1/r + 1/r^2, h = 1 + r: reverse plus forward KL"""
    return Divergence(
        "jeffreys",
        softplus,
        lambda r: (r - 1) * r.log(),
        "mode-seeking: no; saturates: no; variance of the weights: between those of its two halves.",
    )


def neyman() -> Divergence:
    """f = 1/r - 2 + r, f'' = 2/r^3, h = 2/r: Neyman's chi-square"""
    return Divergence(
        "neyman",
        lambda log_r: math.log(2) - log_r,
        lambda r: 1 / r - 2 + r,
        "mode-seeking: yes, the most; variance of the weights: high.",
    )


def pearson() -> Divergence:
    """f = (r - 1)^2, f'' = 2, h = 2 r^2: Pearson's chi-square"""
    return Divergence(
        "pearson",
        lambda log_r: math.log(2) + 2 * log_r,
        lambda r: (r - 1) ** 2,
        "mode-seeking: no, the least; variance of the weights: very high.",
    )


def power(exponent: float = -1.5) -> Divergence:
    """f'' = r^exponent, h = r^(exponent + 2): -3 Neyman, -2 reverse KL, -1.5 Hellinger, -1 forward KL, 0 Pearson"""
    if not isinstance(exponent, int | float) or not math.isfinite(exponent):
        raise UsageError(f"exponent must be a number, not {exponent!r}; write power:exponent=-1.5")
    order = exponent + 2
    return Divergence(f"power:exponent={exponent}", lambda log_r: order * log_r, flat=order == 0)


def _spec(cls: Callable[[], Divergence], summary: str, paper: str = "Xu, Nie & Vahdat 2025, 2502.15681") -> Spec:
    return Spec(cls, summary, paper, notes=cls().trades)


DIVERGENCES: dict[str, Spec] = {
    "reverse-kl": _spec(reverse_kl, "all samples count alike: that of DMD and VSD"),
    "softened": _spec(softened, "samples count less the more the teacher makes of them; bounded weights"),
    "jensen-shannon": _spec(jensen_shannon, "samples count less the less the teacher makes of them; bounded weights"),
    "hellinger": _spec(hellinger, "between the two KLs: weights grow as the root of the ratio"),
    "forward-kl": _spec(forward_kl, "covers all that the teacher makes"),
    "jeffreys": _spec(jeffreys, "the sum of reverse and forward KL"),
    "neyman": _spec(neyman, "keeps away from what the teacher does not make"),
    "pearson": _spec(pearson, "covers the teacher's rarest samples first", ""),
    "power": Spec(
        power,
        "f'' is a power of the ratio: most of the others and all between",
        limits={"exponent": "below -2: more mode-seeking than reverse KL; towards 0: covers more, weights spread more"},
    ),
}

# The keys that NVlabs/FastGen has for them.
ALIASES = {
    "rkl": "reverse-kl",
    "sf": "softened",
    "js": "jensen-shannon",
    "sh": "hellinger",
    "kl": "forward-kl",
    "jf": "jeffreys",
}


def make_divergence(divergence: str | Divergence | Function) -> Divergence:
    """The given one, that of a line ("js", "forward-kl", "power:exponent=-1.5"), or that whose f'' is given as a
    function of r. UsageError: an unknown name or setting, an f that is not convex."""
    if isinstance(divergence, Divergence):
        return divergence
    if callable(divergence):
        return from_second(divergence, getattr(divergence, "__name__", "the given function"))
    name, settings = name_and_settings(divergence)
    made: Divergence = make("divergences", DIVERGENCES, ALIASES.get(name, name), "divergence", **settings)
    return made
