"""The feature networks by name."""

from __future__ import annotations

from ...registry import Spec

FEATURES: dict[str, Spec] = {
    "embedded": Spec(
        "evaluation.features.embedded:embedded",
        "64 features of a network trained on the embedded world",
        cost="5 M multiply-adds a picture",
        needs=("pictures of the embedded world",),
    ),
    "random": Spec(
        "evaluation.features.random:random",
        "64 features of seeded random convolutions; no weights",
        "Naeem et al. 2020, 2002.09797, section 5 (R64)",
        notes="Deterministic. Sees blur, noise and colour, hardly sees classes.",
    ),
    "pixels": Spec(
        "evaluation.features.pixels:pixels",
        "the picture itself at 8x8, as a baseline",
        notes="Any other space should beat it; slight blur improves its distances.",
    ),
    "score-norms": Spec(
        "evaluation.features.score_norms:score_norms",
        "10 norms of the embedded model's score: how usual a picture is to the model",
        "Mahmood et al. 2021, 2010.13132",
        cost="10 evaluations of the model's UNet a picture",
        needs=("pictures of the embedded world",),
        notes="For another model see `evaluation.features.score_norms.of_denoiser`.",
    ),
    "inception": Spec(
        "evaluation.features.inception:inception",
        "2048 features and 1008 logits of Inception-v3 of 2015-12-05: the network of FID, KID and IS",
        "Szegedy et al. 2015, 1512.00567; Heusel et al. 2017, 1706.08500",
        cost="5.7 G multiply-adds a picture",
        needs=("its weights: weights=FILE or PILOTAGE_INCEPTION",),
        notes="Say the preset with the number: clean, legacy-tf, legacy-torch or torchmetrics-aa.",
    ),
    "dinov2": Spec(
        "evaluation.features.dinov2:dinov2",
        "the CLS features of DINOv2, 1024 of ViT-L/14: the network of FD-DINOv2",
        "Oquab et al. 2023, 2304.07193; Stein et al. 2023, 2306.04675",
        cost="80 G multiply-adds a picture",
        needs=("a DINOv2 checkpoint: a folder, or a hub id in the local cache",),
        notes="Not on the scale of FID: typical distances are 20 to 300.",
    ),
    "clip": Spec(
        "evaluation.features.clip:clip",
        "image embeddings of CLIP, 768 of ViT-L/14 at 336: the network of CMMD; also embeds captions",
        "Radford et al. 2021, 2103.00020; Jayasumana et al. 2024, 2401.09603",
        cost="190 G multiply-adds a picture",
        needs=("a CLIP checkpoint: a folder, or a hub id in the local cache",),
        notes="Embeddings are not normalised; the metrics do that.",
    ),
}
