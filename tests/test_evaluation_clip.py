"""CLIP embeddings of pictures and captions from a tiny random checkpoint in a folder, and the score of both."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import clip_tokenizer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pilotage.errors import UsageError
from pilotage.evaluation import open_features
from pilotage.evaluation.features.clip import DEVIATION, MEAN, ClipExtractor, pooled
from pilotage.evaluation.metrics.clip_score import clip_score

SIDE = 32
CAPTIONS = ["a cat", "two dogs and a very small bird", "", "a cat"]


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("extractor", "clip"):
        monkeypatch.setattr(f"pilotage.evaluation.features.{module}.ROWS", 3)


@pytest.fixture(scope="module")
def network() -> CLIPModel:
    layers = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    words = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    config = CLIPConfig(
        text_config=layers | words, vision_config=layers | {"image_size": SIDE, "patch_size": 8}, projection_dim=24
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(network: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    network.save_pretrained(path)
    clip_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 48, 70), dtype=np.uint8))


def opened(folder: Path, *settings: str) -> ClipExtractor:
    extractor = open_features(",".join([f"clip:model={folder}", *settings]))
    assert isinstance(extractor, ClipExtractor)
    return extractor


def test_pictures_go_as_through_the_processor(network: CLIPModel, folder: Path, pictures: Tensor) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    images = [Image.fromarray(p) for p in pictures.permute(0, 2, 3, 1).numpy()]
    values = torch.as_tensor(np.stack(processor(images=images)["pixel_values"]))
    extractor = opened(folder)
    found = extractor(pictures)
    assert found.shape == (5, extractor.dim) == (5, 24) and extractor.side == SIDE
    torch.testing.assert_close(found, pooled(network.get_image_features(pixel_values=values)), rtol=1e-4, atol=1e-5)
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


@pytest.mark.parametrize("preset", ["cmmd-ref", "cmmd-files"])
def test_presets_of_cmmd(preset: str, network: CLIPModel, folder: Path, pictures: Tensor) -> None:
    if preset == "cmmd-ref":
        values = torch.nn.functional.interpolate(pictures / 255, (SIDE, SIDE), mode="bicubic")
    else:
        images = [
            np.asarray(Image.fromarray(p).crop((11, 0, 59, 48)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for p in pictures.permute(0, 2, 3, 1).numpy()
        ]
        values = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    wanted = pooled(network.get_image_features(pixel_values=(values - mean) / deviation))
    torch.testing.assert_close(opened(folder, f"preset={preset}")(pictures), wanted, rtol=1e-4, atol=1e-5)


def test_captions_as_transformers_has_them(network: CLIPModel, folder: Path) -> None:
    found = opened(folder).encode_text(CAPTIONS)
    tokens = clip_tokenizer()(CAPTIONS, padding=True, return_tensors="pt")
    assert found.embeddings.shape == (4, 24) and found.truncated == 0
    torch.testing.assert_close(found.embeddings, pooled(network.get_text_features(**tokens)), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.embeddings[0], found.embeddings[3])
    assert not torch.equal(found.embeddings[0], found.embeddings[1])


def test_neighbours_of_a_caption_do_not_matter(folder: Path) -> None:
    extractor = opened(folder)
    whole = extractor.encode_text(CAPTIONS).embeddings
    assert torch.equal(torch.cat([extractor.encode_text([text]).embeddings for text in CAPTIONS]), whole)
    assert torch.equal(extractor.encode_text("a cat").embeddings, whole[:1])


def test_prefix(folder: Path) -> None:
    extractor = opened(folder)
    prefixed = extractor.encode_text(["a cat"], prefix="A photo depicts ").embeddings
    assert torch.equal(prefixed, extractor.encode_text(["A photo depicts a cat"]).embeddings)


def test_long_captions_are_cut_and_counted(folder: Path) -> None:
    """75 words and both ends fill the context of 77."""
    extractor = opened(folder)
    just, over = "a " * 75, "a " * 76
    assert extractor.encode_text([just]).truncated == 0
    found = extractor.encode_text([just, over, over + " b", "a"])
    assert found.truncated == 2
    assert torch.equal(found.embeddings[1], found.embeddings[0])  # cut to the same words, the end kept
    assert torch.equal(found.embeddings[2], found.embeddings[0])


def test_identity(folder: Path) -> None:
    made = [opened(folder, f"preset={preset}") for preset in ("clip", "cmmd-ref", "cmmd-files")]
    assert len({e.preprocessing_id for e in made}) == 3 and len({e.extractor_id for e in made}) == 1
    assert made[0].extractor_id.endswith("projection-float32") and made[0].distance == "fd_clip"


def test_bfloat16(folder: Path, pictures: Tensor) -> None:
    exact, half = opened(folder), opened(folder, "dtype=bfloat16")
    for a, b in (
        (exact(pictures), half(pictures)),
        (exact.encode_text(CAPTIONS).embeddings, half.encode_text(CAPTIONS).embeddings),
    ):
        assert b.dtype == torch.float32 and not torch.equal(a, b)
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.99


def test_tensors_and_outputs_are_taken() -> None:
    embeddings = torch.ones(2, 3)
    assert pooled(embeddings) is embeddings and pooled(SimpleNamespace(pooler_output=embeddings)) is embeddings


def test_bad_captions_and_folders_are_refused(network: CLIPModel, folder: Path, tmp_path: Path) -> None:
    extractor = opened(folder)
    for texts in ([], ["a", None]):
        with pytest.raises(UsageError, match="captions must be text"):
            extractor.encode_text(texts)
    network.save_pretrained(tmp_path)  # without a tokenizer
    images_only = opened(tmp_path)
    assert images_only.weights == extractor.weights  # pictures need no tokenizer
    with pytest.raises(UsageError, match="has no tokenizer") as caught:
        images_only.encode_text(CAPTIONS)
    assert "\n" not in str(caught.value)


# -- the score ---------------------------------------------------------------------------------------------------------


def test_score_by_hand() -> None:
    """Cosines 1, 0.6, 0 and -0.8: the paper's score clips the last pair before the mean."""
    pictures = torch.tensor([[2.0, 0], [3, 0], [0, 5], [1, 0]])
    texts = torch.tensor([[7.0, 0], [0.3, 0.4], [1, 0], [-4, 3]])
    found = clip_score(pictures=pictures, texts=texts)
    assert found.cosines.tolist() == pytest.approx([1, 0.6, 0, -0.8], abs=1e-7)
    assert found.cosine == pytest.approx(0.2) and found.percent == pytest.approx(20)
    assert found.score == pytest.approx(2.5 * 1.6 / 4)  # clipped after the mean it would be 0.5
    spread = math.sqrt(sum((c - 0.2) ** 2 for c in (1, 0.6, 0, -0.8)) / 3)
    half = 1.959964 * spread / 2
    assert found.cosine_interval == pytest.approx((0.2 - half, 0.2 + half), rel=1e-6)
    assert found.percent_interval == pytest.approx((20 - 100 * half, 20 + 100 * half), rel=1e-6)
    clipped = np.array([2.5, 1.5, 0, 0])
    half = 1.959964 * clipped.std(ddof=1) / 2
    assert found.score_interval == pytest.approx((1 - half, 1 + half), rel=1e-6)


def test_score_is_of_directions_and_of_pairs() -> None:
    rng = np.random.default_rng(0)
    pictures, texts = rng.standard_normal((2, 50, 16))
    found = clip_score(pictures=pictures, texts=texts)
    scaled = clip_score(pictures=pictures * rng.random((50, 1)) * 9, texts=texts * 1e-8)
    assert scaled.cosine == pytest.approx(found.cosine, abs=1e-12)
    assert clip_score(pictures=pictures, texts=texts[::-1].copy()).cosine != found.cosine
    same = clip_score(pictures=pictures, texts=pictures)
    assert same.cosine == pytest.approx(1) and same.score == pytest.approx(2.5) and same.cosines.max() <= 1


def test_score_of_one_pair_has_no_interval() -> None:
    found = clip_score(pictures=[[1.0, 1.0]], texts=[[1.0, 0.0]])
    assert found.cosine == pytest.approx(math.sqrt(0.5)) and math.isnan(found.cosine_interval[0])


def test_score_refuses_what_is_no_pair() -> None:
    with pytest.raises(UsageError, match="one caption a picture"):
        clip_score(pictures=np.ones((3, 4)), texts=np.ones((2, 4)))
    with pytest.raises(UsageError, match="length 0"):
        clip_score(pictures=np.ones((2, 4)), texts=np.zeros((2, 4)))
    with pytest.raises(UsageError, match="not finite"):
        clip_score(pictures=np.full((2, 4), np.nan), texts=np.ones((2, 4)))
