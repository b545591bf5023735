"""Weights of open_clip's CLIP under the names of transformers' CLIPModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .weights import fill, tensors_of

# open_clip's names -> transformers'. The fused projections of attention and the two matrices that multiply from the
# right stand apart, in `renamed`.
NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
)
TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")


def fill_from_open_clip(network: Any, file: str) -> None:
    """Put an open_clip checkpoint into a CLIPModel of the same size."""
    what = "an open_clip model of this size; HPSv2's are on the hub at xswu/HPSv2"
    fill(network, renamed(tensors_of(file, what)), what)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state as transformers': x P becomes a layer with P transposed, the fused projection three."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in TURNED:
            found[TURNED[name]] = value.T.contiguous()
        elif fused := FUSED.fullmatch(name):
            for part, piece in zip("qkv", value.chunk(3)):
                found[_renamed(f"{fused[1]}.attn.{part}_proj.{fused[2]}")] = piece.clone()
        elif name != "attn_mask":  # a constant
            found[_renamed(name)] = value
    return found


def _renamed(name: str) -> str:
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name
