"""The rewards by name, and what is made of rewards."""

from __future__ import annotations

from ...registry import Spec

_CLIP = ("prompts", "a CLIP checkpoint: a folder, or a hub id in the local cache")

REWARDS: dict[str, Spec] = {
    "adherence": Spec(
        "finetune.rewards.adherence:adherence",
        "log-probability of what the caption states, by the embedded classifier that guides",
        needs=("prompts of the embedded world",),
        notes="Usually -100..0. Apache-2.0. The judge of evaluation is another network.",
    ),
    "colour": Spec(
        "finetune.rewards.colour:colour",
        "minus the distance to a target colour, of the pixels or of their mean",
        notes="-1..0. No weights.",
    ),
    "saturation": Spec("finetune.rewards.colour:saturation", "mean saturation (HSV)", notes="0..1. No weights."),
    "brightness": Spec("finetune.rewards.colour:brightness", "mean luma", notes="0..1. No weights."),
    "symmetry": Spec(
        "finetune.rewards.symmetry:symmetry", "minus the difference from the mirror image", notes="-1..0. No weights."
    ),
    "jpeg": Spec(
        "finetune.rewards.jpeg:jpeg",
        "a differentiable stand-in for the JPEG size; sign=-1 small files, sign=1 large ones",
        "Black et al. 2023, 2305.13301 (the reward); the stand-in is ours",
        notes="0..8 bits a pixel times the sign. No weights.",
    ),
    "jpeg-kilobytes": Spec(
        "finetune.rewards.jpeg:jpeg_kilobytes",
        "the JPEG size in kB; sign=-1 small files, sign=1 large ones; no gradient",
        "Black et al. 2023, 2305.13301",
        notes="20..200 kB at 512x512, times the sign. No weights.",
    ),
    "similarity": Spec(
        "finetune.rewards.similarity:similarity",
        "likeness to a reference picture, by pixels or by features",
        needs=("a picture: reference=FILE",),
        notes="0..1 of pixels, -1..1 of features. Licence of the features.",
    ),
    "clip-score": Spec(
        "finetune.rewards.clip_score:clip_score",
        "cosine of picture and prompt in CLIP",
        "Hessel et al. 2021, 2104.08718",
        needs=_CLIP,
        notes="Usually .15 to .35. OpenAI's CLIP: MIT.",
    ),
    "aesthetic": Spec(
        "finetune.rewards.aesthetic:aesthetic",
        "LAION's aesthetic score, version 2",
        "Schuhmann et al. 2022, 2210.08402",
        needs=("its head: weights=FILE or PILOTAGE_AESTHETIC", "CLIP ViT-L/14: a folder, or a hub id"),
        notes="About 1..10. Apache-2.0 (head), MIT (CLIP).",
    ),
    "pickscore": Spec(
        "finetune.rewards.clip_score:pickscore",
        "PickScore: CLIP ViT-H/14 tuned on what people picked",
        "Kirstain et al. 2023, 2305.01569",
        needs=_CLIP,
        notes="Usually 18 to 24. Licence: see the checkpoint.",
    ),
    "hpsv2": Spec(
        "finetune.rewards.clip_score:hpsv2",
        "human preference score, version 2.0",
        "Wu et al. 2023, 2306.09341",
        needs=("prompts", "its weights: weights=FILE, or model=FOLDER that has them"),
        notes="Usually .2 to .35; not comparable with 2.1. Apache-2.0.",
    ),
    "hpsv2.1": Spec(
        "finetune.rewards.clip_score:hpsv2_1",
        "human preference score, version 2.1",
        "Wu et al. 2023, 2306.09341",
        needs=("prompts", "its weights: weights=FILE, or model=FOLDER that has them"),
        notes="Wider than 2.0 and not comparable with it. Apache-2.0.",
    ),
    "imagereward": Spec(
        "finetune.rewards.imagereward:imagereward",
        "ImageReward 1.0: BLIP tuned on rankings by people",
        "Xu et al. 2023, 2304.05977",
        needs=("prompts", "its weights: weights=FILE", "BERT's tokenizer: a folder, or a hub id"),
        notes="About -2..2. Apache-2.0.",
    ),
}

# Written "NAME of ...": those with `rewards` take all terms that follow, those with `reward` their sum.
COMBINATIONS: dict[str, Spec] = {
    "ensemble": Spec("finetune.rewards.mixing:ensemble", "mean - c std over the rewards"),
    "minimum": Spec("finetune.rewards.mixing:minimum", "the least of the rewards"),
    "harmonic": Spec(
        "finetune.rewards.mixing:harmonic",
        "weighted harmonic mean of two rewards in 0..1",
        "Miao et al. 2024, 2407.12164",
    ),
    "near": Spec("finetune.rewards.mixing:near", "-|r - value|"),
    "up-to": Spec("finetune.rewards.mixing:up_to", "-relu(value - r)"),
    "normalised": Spec("finetune.rewards.mixing:normalised", "(r - mean) / deviation"),
}
