"""The word-level tokenizer and the small text encoder."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from .. import world

LENGTH = 24
WIDTH = 96
# The end token must not be number 2, which CLIP's code takes for a sign of an old configuration.
SPECIAL = ("<pad>", "<start>", "<unk>", "<end>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, drops punctuation, one token a word; unknown words become <unk>."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *world.VOCABULARY))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = Normalizers([Lowercase(), Replace(Regex(r"[^\w\s]"), " ")])
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[(t, vocabulary[t]) for t in ("<start>", "<end>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=LENGTH,
        padding_side="right",
    )


def build_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(SPECIAL) + len(world.VOCABULARY),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            pad_token_id=SPECIAL.index("<pad>"),
            bos_token_id=SPECIAL.index("<start>"),
            eos_token_id=SPECIAL.index("<end>"),
            hidden_act="quick_gelu",
        )
    )


def tokenise(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Token numbers int64 (N, 24)."""
    out = tokenizer(list(captions), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = out.input_ids
    return ids


def rewordings(index: int, split: str, count: int) -> list[str]:
    """The scene's own caption, then others that are as true."""
    from dataclasses import replace

    import numpy as np

    scene = world.scene(index, split)
    rng = np.random.default_rng([99, world.SPLITS.index(split), index])
    wordings = [scene.wording] + [world.draw_wording(rng) for _ in range(count - 1)]
    return [replace(scene, wording=w).caption for w in wordings]
