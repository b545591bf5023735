"""CLIP (Radford et al. 2021, 2103.00020): embeddings of pictures, and of captions in the same space."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UsageError
from ..arrays import full_precision
from .extractor import ROWS, Extractor, dtype_named, weights_hash
from .pretrained import load_pretrained, quiet, refused, source_of
from .resize import preset_named
from .standardise import standardised

PRESETS = ("clip", "cmmd-ref", "cmmd-files")
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training set, on the scale of 0..1
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class TextEmbeddings(NamedTuple):
    """float32 (N, D) on the CPU, not normalised, and how many captions were cut at the length of the context."""

    embeddings: Tensor
    truncated: int


@dataclass(frozen=True)
class ClipExtractor(Extractor):
    """An extractor that also embeds captions."""

    model: Any = None
    tokenizer: Callable[[], Any] | None = None  # loaded when captions come: pictures need none

    def encode_text(self, texts: Iterable[str], prefix: str = "") -> TextEmbeddings:
        """Embed captions, each with the prefix before it (CLIPScore's is "A photo depicts ").

        Every call of the network has the same rows and the full context, so neighbours do not matter. Captions longer
        than the context (77 tokens with both ends) are cut and counted. Errors: no captions, something else than text.
        """
        captions = [texts] if isinstance(texts, str) else list(texts)
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise UsageError("captions must be text, at least one; leave out pictures that have none")
        assert self.tokenizer is not None
        tokenizer, context = self.tokenizer(), self.model.config.text_config.max_position_embeddings
        captions = [prefix + caption for caption in captions]
        with quiet():
            lengths = [len(ids) for ids in tokenizer(captions)["input_ids"]]
            tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        with full_precision(self.device):
            parts = [
                self._texts(ids, mask)
                for ids, mask in zip(tokens["input_ids"].split(ROWS), tokens["attention_mask"].split(ROWS))
            ]
        return TextEmbeddings(torch.cat(parts), sum(length > context for length in lengths))

    def _texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        rows = torch.arange(ROWS).clamp(max=len(ids) - 1)
        padded = {"input_ids": ids[rows].to(self.device), "attention_mask": mask[rows].to(self.device)}
        return pooled(self.model.get_text_features(**padded))[: len(ids)].float().cpu()


def clip(
    device: torch.device | str = "cpu",
    model: str = "openai/clip-vit-large-patch14-336",
    preset: str = "clip",
    dtype: str = "float32",
    allow_download: bool = False,
) -> ClipExtractor:
    """Image embeddings after the projection, not normalised: 768 of ViT-L/14, 512 of ViT-B/32.

    model: a folder, or a hub id, which comes from the local cache unless allow_download. preset: clip (the shorter edge
    to the network's size by Pillow's bicubic, then the centre), cmmd-ref (bicubic without antialias on floats, no crop)
    or cmmd-files (the centre square, then Pillow's bicubic: what CMMD's programs do with picture files).
    """
    from transformers import CLIPModel

    resize, arithmetic, place = preset_named(preset, PRESETS), dtype_named(dtype), torch.device(device)
    network = load_pretrained(CLIPModel, model, "clip", allow_download, attn_implementation="sdpa", dtype="float32")
    identity = weights_hash(network)
    network = network.to(place, arithmetic)
    side = network.config.vision_config.image_size
    return ClipExtractor(
        "clip",
        partial(_embedded, network),
        identity,
        {
            **resize.fields(side),
            "mapping": "(x / 255 - mean) / deviation",
            "mean": list(MEAN),
            "deviation": list(DEVIATION),
            "attention": "sdpa",
            "preset": preset,
        },
        side=side,
        device=place,
        prepare=partial(standardised, resize=resize, side=side, mean=MEAN, deviation=DEVIATION, dtype=arithmetic),
        layer="projection",
        dtype=dtype,
        dim=network.config.projection_dim,
        model=network,
        tokenizer=cache(partial(tokenizer_of, model, allow_download)),
    )


def tokenizer_of(model: str, allow_download: bool = False) -> Any:
    """The tokenizer beside the model. One without a vocabulary, which transformers makes up silently, is refused."""
    from transformers import AutoTokenizer

    with quiet(), refused(model, allow_download):
        found = AutoTokenizer.from_pretrained(**source_of(model, allow_download))
    if len(found) < 256:  # every byte has a token
        raise UsageError(f"{model} has no tokenizer; save one beside the model with save_pretrained")
    return found


def pooled(found: Any) -> Tensor:
    """The embeddings of what `get_image_features` and `get_text_features` return: a tensor, or since transformers 5 an
    output that has them as `pooler_output`."""
    embeddings: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embeddings


def _embedded(network: Any, values: Tensor) -> Tensor:
    return pooled(network.get_image_features(pixel_values=values))
