"""GFCG, gradient-free classifier guidance: OUR RECONSTRUCTION of Shenoy et al. 2026 (WACV), arXiv 2411.15393.

Only the abstract was read. It says: a classifier is used in inference mode; at each step it picks a reference class and
a scale from how confused it is; the reference is a *conditional* prediction for that class, in the place of CFG's null
prediction; with autoguidance it costs no further evaluation of the denoiser. The formulas below are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.prediction import Prediction
from .gradient.autograd import check_word
from .gradient.losses import Classes, classes_of, decoded, fed
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, is_off
from .trees import map_tensors

FORMS = ("alone", "cfg", "autoguidance")
LAWS = ("confusion", "constant")
READS = ("pictures", "latents")


@dataclass(frozen=True)
class GFCGReconstruction(Rule):
    """ref + w (cond - ref), ref the prediction for the rival class r = argmax over k != target of p_k(D), row by row.

    form: what ref is. "alone": the model on r. "cfg": likewise, and the null branch in rows that are not confused.
    "autoguidance": the network "weak" on r, and on the own class in rows that are not confused: as many evaluations as
    autoguidance. `cfg + gfcg` (a sum) keeps both references, at three evaluations. classifier: network(pictures) ->
    logits (B, K), "" is off. target: the class asked for, or one a row. scale: 1 is off. law: "confusion", w = 1 +
    (scale - 1) min(1, 2 kappa), kappa = p_r / (p_target + p_r); or "constant", w = scale. sure: a row is not confused
    when the target leads with at least this probability; above 1, all are. start: share of the run that passes before
    the classifier is asked, for the first estimates are blurred; till then no row is confused. conditions: a tree of
    tensors with a row for each class, the conditions of the classes (prompts); None where the condition is the class
    number itself. reads: "pictures" needs the run's decode, "latents" does not.
    """

    classifier: Any = ""
    target: Classes = ""
    scale: Scale = 2.0
    form: str = "alone"
    law: str = "confusion"
    sure: float = 0.9
    start: float = 0.0
    conditions: Any = None
    reads: str = "pictures"

    passes: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_word("gfcg", "form", self.form, FORMS)
        check_word("gfcg", "law", self.law, LAWS)
        check_word("gfcg", "reads", self.reads, READS)

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return {"alone": ("cond",), "cfg": ("cond", "uncond"), "autoguidance": ("cond", "weak")}[self.form]

    def guide(self, ctx: Context) -> Guide:
        (cond,) = yield (Ask(),)
        if isinstance(self.classifier, str) or is_off(self.scale):
            ctx.log(scale=1.0)
            return cond
        rival, confusion, confused = self._rivals(cond, ctx)
        scale = self._scales(confusion, ctx)
        on = scale != 1
        ctx.log(scale=scale, rival=rival, confusion=confusion)
        usual = {"alone": None, "cfg": "uncond", "autoguidance": "weak"}[self.form]
        other = "weak" if self.form == "autoguidance" else "cond"
        swapped, kept = on & confused, on & ~confused
        asks = {}
        if bool(swapped.any()):
            asks[Ask(other, edit=Rival(rival, swapped, self.conditions), rows=swapped)] = swapped
        if usual is not None and bool(kept.any()):
            asks[Ask(usual, rows=kept)] = kept
        if not asks:
            return cond
        references, result = (yield tuple(asks)), cond
        for rows, reference in zip(asks.values(), references, strict=True):
            if reference.kind is not cond.kind:
                reference = cond.with_denoised(reference.denoised)
            guided = reference.native + ctx.column(scale.to(cond.native)) * (cond.native - reference.native)
            result = cond.like(guided).where(rows, result)
        return result

    @torch.no_grad()
    def _rivals(self, cond: Prediction, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The rival class int64 (B,), the confusion (B,) in [0, 1], and whether a row is confused, bool (B,)."""
        rows, device = len(ctx.x), ctx.x.device
        own = classes_of(self.target, rows, device)
        if ctx.progress < self.start:
            return own, torch.ones(rows, dtype=torch.float64, device=device) / 2, ~ctx.every_row
        z = cond.denoised.detach()
        logits = fed(self.classifier, decoded(z, ctx, "gfcg") if self.reads == "pictures" else z)
        p = logits.double().softmax(1)
        p_own = p.gather(1, own[:, None])[:, 0]
        others = p.scatter(1, own[:, None], -1.0)
        p_rival = others.amax(1)
        rival = (others == p_rival[:, None]).int().argmax(1)  # ties: the lowest number
        confusion = p_rival / (p_own + p_rival).clamp(min=torch.finfo(torch.float64).tiny)
        return rival, confusion, ~((p_own > p_rival) & (p_own >= self.sure))

    def _scales(self, confusion: Tensor, ctx: Context) -> Tensor:
        """w of each row, float64 (B,)."""
        most = torch.tensor(self.scale, dtype=torch.float64, device=confusion.device).expand(len(confusion))
        if self.law == "constant" or ctx.progress < self.start:
            return most
        return 1 + (most - 1) * (2 * confusion).clamp(max=1)


@dataclass(frozen=True, eq=False)
class Rival:
    """The condition of each row's rival class, in the place of its own.

    labels (B,): the classes. rows bool (B,): those that were asked for; a pipeline hands over these alone.
    """

    labels: Tensor
    rows: Tensor
    conditions: Any = None

    def __call__(self, conditioning: Any) -> Any:
        labels = self._labels_for(conditioning)
        if self.conditions is not None:
            picked = map_tensors(self.conditions, lambda t: t.index_select(0, labels.to(t.device)))
            both = isinstance(conditioning, Mapping) and isinstance(picked, Mapping)
            return {**conditioning, **picked} if both else picked
        changed: list[Tensor] = []

        def relabelled(t: Tensor) -> Tensor:
            if t.dim() != 1 or t.is_floating_point() or t.dtype == torch.bool:
                return t
            changed.append(t)
            return labels.to(t)

        edited = map_tensors(conditioning, relabelled)
        if not changed:
            raise UsageError("gfcg: this conditioning holds no class numbers; pass conditions=, a row for each class")
        return edited

    def _labels_for(self, conditioning: Any) -> Tensor:
        """All labels where the conditioning has all rows, else those of the rows that were asked for."""
        sizes: set[int] = set()

        def noted(t: Tensor) -> Tensor:
            sizes.update(t.shape[:1])
            return t

        map_tensors(conditioning, noted)
        if not sizes or len(self.labels) in sizes:
            return self.labels
        chosen = self.labels[self.rows]
        if sizes <= {1, len(chosen)}:
            return chosen
        raise UsageError(
            f"gfcg was given {sorted(sizes)} rows of a batch of {len(self.labels)}; it knows the classes by row, "
            "so what calls it must edit the conditioning of all rows before it picks some"
        )
