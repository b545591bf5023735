"""ImageReward 1.0 (Xu et al. 2023, 2304.05977): BLIP's text encoder reads the prompt while it looks at the picture."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...evaluation.features.clip import tokenizer_of
from .reward import Reward
from .sight import Sight
from .weights import file_hash, fill, linear_head, tensors_of

WORDS = 35  # the prompt's tokens, both ends included
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the raw score, in the published code
WHAT = "ImageReward 1.0 (ImageReward.pt, on the hub at THUDM/ImageReward)"

# BLIP's names -> transformers'. Those of the text encoder are the same.
NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)


@dataclass(frozen=True, eq=False)
class Blip:
    """eyes: BLIP's vision transformer. reader: its text encoder, with attention to the picture. head: to one number."""

    eyes: Any
    reader: Any
    head: nn.Module
    tokenizer: Callable[[], Any]
    sight: Sight

    def scores(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """(head(first token) - mean) / deviation, (B,)."""
        first = next(self.eyes.parameters())
        seen = self.eyes(pixel_values=self.sight(pictures.to(first.dtype))).last_hidden_state
        tokens = self.tokenizer()(
            list(prompts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
        ).to(first.device)
        read = self.reader(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=first.device),
            is_decoder=False,  # no token hides later ones
        ).last_hidden_state
        scores: Tensor = self.head(read[:, 0])[:, 0]
        return (scores - MEAN) / DEVIATION


def imagereward(
    weights: str | os.PathLike[str] = "",
    tokenizer: str = "google-bert/bert-base-uncased",
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> Reward:
    """About -2..2. weights: the published file ImageReward.pt. tokenizer: BERT's, a folder or a hub id.

    The networks are transformers' BLIP: ViT-L/16 at 224 and BERT with cross attention. Errors: no file, other weights.
    """
    if not weights:
        raise UsageError(f"imagereward needs its weights: give imagereward:weights=FILE, {WHAT}")
    blip = blip_of(tensors_of(weights, WHAT), cache(partial(tokenizer_of, tokenizer, allow_download)))
    for network in (blip.eyes, blip.reader, blip.head):
        network.to(device)
    return Reward(
        "imagereward",
        blip.scores,
        range="about -2..2",
        needs_prompt=True,
        licence="Apache-2.0",
        model=f"blip-{file_hash(weights)}",
        preprocessing=blip.sight.said,
    )


def blip_of(tensors: Mapping[str, Tensor], tokenizer: Callable[[], Any]) -> Blip:
    """The networks, with widths and depths as the tensors have them; a head of attention is 64 wide."""
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    eyes = {_renamed(name): value for name, value in _below("blip.visual_encoder.", tensors).items()}
    reader = _below("blip.text_encoder.", tensors)
    reader.pop("embeddings.position_ids", None)  # a constant
    if "embeddings.position_embedding" not in eyes or "embeddings.word_embeddings.weight" not in reader:
        raise UsageError(f"these are not the weights of {WHAT}")
    vision, text = _vision_config(eyes), _text_config(reader)
    networks = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
    for network, own in zip(networks, (eyes, reader)):
        fill(network, own, WHAT)
        network.eval().requires_grad_(False)
    head = linear_head(_below("mlp.", tensors), text.hidden_size, WHAT)
    return Blip(*networks, head, tokenizer, Sight(int(vision.image_size)))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _vision_config(eyes: Mapping[str, Tensor]) -> Any:
    from transformers.models.blip.configuration_blip import BlipVisionConfig

    width, _, patch, _ = eyes["embeddings.patch_embedding.weight"].shape
    side = patch * round((eyes["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=_depth(eyes, "encoder.layers"),
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of BLIP's code; transformers' default is another
    )


def _text_config(reader: Mapping[str, Tensor]) -> Any:
    from transformers.models.blip.configuration_blip import BlipTextConfig

    words, width = reader["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=reader["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(reader["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_depth(reader, "encoder.layer"),
        num_attention_heads=width // 64,
        max_position_embeddings=len(reader["embeddings.position_embeddings.weight"]),
    )


def _depth(tensors: Mapping[str, Tensor], layers: str) -> int:
    layers += "."
    return 1 + max(int(name.removeprefix(layers).split(".")[0]) for name in tensors if name.startswith(layers))
