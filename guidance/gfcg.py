"""GFCG, gradient-free classifier guidance: OUR RECONSTRUCTION of Shenoy et al. 2026 (WACV), arXiv 2411.15393.

Only the abstract was read. It says: a classifier is used in inference mode; at each step it picks a reference class and
a scale from how confused it is; the reference is a *conditional* prediction for that class, in the place of CFG's null
prediction; with autoguidance it costs no further evaluation of the denoiser. The formulas below are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..samplers.prediction import Prediction
from .gradient.attributes import CAPTION, GUIDE, aim_of_captions, captions_of, check_guide, guide_at
from .gradient.autograd import check_word
from .gradient.losses import Classes, classes_of, decoded, fed
from .rule import Ask, Context, Guide, Rule
from .scale import Scale, is_off
from .trees import map_tensors

FORMS = ("alone", "cfg", "autoguidance")
LAWS = ("confusion", "constant")
READS = ("pictures", "latents", "noisy")


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
    number itself. reads: "pictures" needs the run's decode, "latents" does not; "noisy" gives classifier(x, level) the
    noisy latents. classifier "guide" is the embedded world's, with target "caption": each row's rival is its own prompt
    with the one attribute exchanged that is the most confused. It reads the clean estimate, or with "noisy" x.
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

    passes: ClassVar[int] = 6
    selective: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_word("gfcg", "form", self.form, FORMS)
        check_word("gfcg", "law", self.law, LAWS)
        check_word("gfcg", "reads", self.reads, READS)
        check_guide("gfcg", self.classifier, self.target)
        if self.classifier == GUIDE and self.target != CAPTION:
            raise UsageError(f"gfcg with classifier=guide takes target=caption, not {self.target!r}")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return {"alone": ("cond",), "cfg": ("cond", "uncond"), "autoguidance": ("cond", "weak")}[self.form]

    def guide(self, ctx: Context) -> Guide:
        (cond,) = yield (Ask(),)
        if self.classifier == "" or is_off(self.scale):
            ctx.log(scale=1.0)
            return cond
        found = self._rivals(cond, ctx)
        scale = self._scales(found.confusion, ctx)
        on = scale != 1
        ctx.log(scale=scale, rival=found.labels, confusion=found.confusion)
        usual = {"alone": None, "cfg": "uncond", "autoguidance": "weak"}[self.form]
        other = "weak" if self.form == "autoguidance" else "cond"
        swapped, kept = on & found.confused, on & ~found.confused
        asks = {}
        if bool(swapped.any()):
            asks[Ask(other, edit=found.edit(swapped), rows=swapped)] = swapped
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
    def _rivals(self, cond: Prediction, ctx: Context) -> Rivals:
        if isinstance(self.classifier, str):
            captions = captions_of(ctx, "gfcg")
            if ctx.progress < self.start:
                return waiting(torch.full((len(ctx.x),), -1, device=ctx.x.device), None)
            z, time = (ctx.x, ctx.level.time) if self.reads == "noisy" else (cond.denoised, 0.0)
            return caption_rivals(captions, guide_at(z.detach(), time), self.sure)
        own = classes_of(self.target, len(ctx.x), ctx.x.device)
        if ctx.progress < self.start:
            return waiting(own, self.conditions)
        if self.reads == "noisy":
            logits = self.classifier(ctx.x.detach(), ctx.level)
        else:
            z = cond.denoised.detach()
            logits = fed(self.classifier, decoded(z, ctx, "gfcg") if self.reads == "pictures" else z)
        rival, confusion, confused = rival_of(logits, own, self.sure)
        return Rivals(rival, confusion, confused, self.conditions)

    def _scales(self, confusion: Tensor, ctx: Context) -> Tensor:
        """w of each row, float64 (B,)."""
        most = torch.tensor(self.scale, dtype=torch.float64, device=confusion.device).expand(len(confusion))
        if self.law == "constant" or ctx.progress < self.start:
            return most
        return 1 + (most - 1) * (2 * confusion).clamp(max=1)


@dataclass(frozen=True, eq=False)
class Rivals:
    """What the classifier says of a batch.

    labels: the rival's class int64 (B,), -1 where there is none. confusion: (B,) in [0, 1]. confused: bool (B,).
    conditions: a tree with a row for each class, or None; rows: which row of it is each sample's, the label if None.
    """

    labels: Tensor
    confusion: Tensor
    confused: Tensor
    conditions: Any = None
    rows: Tensor | None = None

    def edit(self, asked: Tensor) -> Rival:
        return Rival(self.labels if self.rows is None else self.rows, asked, self.conditions)


def waiting(labels: Tensor, conditions: Any) -> Rivals:
    """Before the classifier is asked: no row is confused, and the scale is whole."""
    half = torch.full((len(labels),), 0.5, dtype=torch.float64, device=labels.device)
    return Rivals(labels, half, torch.zeros_like(labels, dtype=torch.bool), conditions)


def rival_of(logits: Tensor, own: Tensor, sure: float, without: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """The rival class int64 (B,), the confusion (B,) in [0, 1], and whether a row is confused, bool (B,). without:
    classes that are nobody's rival."""
    p = logits.double().softmax(1)
    p_own = p.gather(1, own[:, None])[:, 0]
    others = p.scatter(1, own[:, None], -1.0)
    others[:, list(without)] = -1.0
    p_rival = others.amax(1)
    rival = (others == p_rival[:, None]).int().argmax(1)  # ties: the lowest number
    confusion = p_rival / (p_own + p_rival).clamp(min=torch.finfo(torch.float64).tiny)
    return rival, confusion, ~((p_own > p_rival) & (p_own >= sure))


def caption_rivals(captions: Sequence[str], logits: Mapping[str, Tensor], sure: float) -> Rivals:
    """For each caption of the embedded world the same one with its most confused attribute exchanged.

    logits: of each head, (B, classes). Attributes that the caption leaves open, or that no other scene could have in
    their place, have no rival.
    """
    from ..zoo.embedded import text_embedding
    from ..zoo.rewording import exchanged
    from ..zoo.world import ATTRIBUTES

    aim = aim_of_captions(captions).to(next(iter(logits.values())).device)
    labels, confusions, confused = [], [], []
    for i, (head, names) in enumerate(ATTRIBUTES.items()):
        none = [names.index("none")] if "none" in names else []
        rival, confusion, unsure = rival_of(logits[head], aim[:, i].clamp(min=0), sure, none)
        known = [exchanged(c, head, names[r]) is not None for c, r in zip(captions, rival.tolist(), strict=True)]
        possible = torch.tensor(known, device=rival.device)
        labels.append(rival)
        confusions.append(torch.where(possible, confusion, -1.0))
        confused.append(unsure & possible)
    most = torch.stack(confusions, 1).argmax(1, keepdim=True)
    label, confusion, unsure = (torch.stack(t, 1).gather(1, most)[:, 0] for t in (labels, confusions, confused))
    heads = list(ATTRIBUTES)
    texts = [
        exchanged(caption, heads[h], ATTRIBUTES[heads[h]][k]) or caption
        for caption, h, k in zip(captions, most[:, 0].tolist(), label.tolist(), strict=True)
    ]
    conditions = {"encoder_hidden_states": torch.stack([text_embedding(text) for text in texts])}
    rows = torch.arange(len(texts), device=label.device)
    return Rivals(label, confusion.clamp(min=0), unsure, conditions, rows)


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
            return (
                {**conditioning, **{k: as_before(v, conditioning.get(k)) for k, v in picked.items()}}
                if both
                else picked
            )
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


def as_before(value: Any, before: Any) -> Any:
    """In the dtype and on the device of what it replaces."""
    return value.to(before) if isinstance(value, Tensor) and isinstance(before, Tensor) else value
