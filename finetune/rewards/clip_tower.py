"""CLIP with a gradient in the pictures: the towers that CLIP score, aesthetic, PickScore and HPSv2 stand on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluation.features.clip import pooled, tokenizer_of
from ...evaluation.features.extractor import weights_hash
from ...evaluation.features.pretrained import load_pretrained
from .sight import Sight

PROMPTS = 4096  # whose embeddings are kept


@dataclass(frozen=True, eq=False)
class ClipTower:
    """network: transformers' CLIPModel. words: one prompt -> its embedding (D,). identity: a hash of the weights."""

    network: Any
    words: Callable[[str], Tensor]
    sight: Sight
    identity: str

    def of_pictures(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> unit embeddings (B, D), differentiable, in the network's precision."""
        values = self.sight(pictures.to(self.network.logit_scale.dtype))
        return nn.functional.normalize(pooled(self.network.get_image_features(pixel_values=values)), dim=1)

    def of_prompts(self, prompts: Sequence[str]) -> Tensor:
        """B prompts -> unit embeddings (B, D), without a gradient. Each is read alone, so neighbours do not matter."""
        return torch.stack([self.words(prompt) for prompt in prompts])

    def cosines(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,), each picture with its own prompt."""
        return (self.of_pictures(pictures) * self.of_prompts(prompts)).sum(1)


def clip_tower(
    model: str,
    device: torch.device | str = "cpu",
    allow_download: bool = False,
    tokenizer: str = "",
    fit: str = "crop",
    weights: Callable[[Any], None] | None = None,
) -> ClipTower:
    """A CLIP checkpoint from a folder or a hub id, float32, frozen.

    A hub id comes from the local cache unless allow_download. tokenizer: where it is, if not beside the model. fit: see
    `Sight`. weights: puts other weights into the loaded network.
    """
    from transformers import CLIPModel

    network = load_pretrained(CLIPModel, model, "clip", allow_download, attn_implementation="sdpa", dtype="float32")
    if weights:
        weights(network)
    identity = weights_hash(network)
    network = network.to(torch.device(device))
    reader = cache(partial(tokenizer_of, tokenizer or model, allow_download))
    words = lru_cache(maxsize=PROMPTS)(partial(_embedded, network, reader))
    return ClipTower(network, words, Sight(network.config.vision_config.image_size, fit), identity)


def _embedded(network: Any, reader: Callable[[], Any], prompt: str) -> Tensor:
    """The unit embedding (D,) of one prompt, cut at the length of the context."""
    length = network.config.text_config.max_position_embeddings
    place = network.logit_scale.device
    tokens = reader()(prompt, truncation=True, max_length=length, return_tensors="pt").to(place)
    # The embedding is kept: made under inference_mode it could never be part of a gradient.
    with torch.inference_mode(False), torch.no_grad():
        ids, mask = tokens["input_ids"].clone(), tokens["attention_mask"].clone()
        found = pooled(network.get_text_features(input_ids=ids, attention_mask=mask))
        return nn.functional.normalize(found, dim=1)[0]
