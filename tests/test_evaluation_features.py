"""Extractors: who they are, that batching does not matter, and that the random one is the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pilotage.errors import UsageError
from pilotage.evaluation import FEATURES, frechet_distance, open_features
from pilotage.evaluation.features import ROWS, Extractor, FullCalls, weights_hash
from pilotage.evaluation.features.random import RandomConvolutions

OWN = ("random", "pixels")
SHIPPED = ("embedded", "score-norms", *OWN)  # those that need nothing to be fetched


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", OWN)
def test_batching_and_layout_do_not_matter(name: str) -> None:
    extractor, batch = open_features(name), pictures(ROWS + 9)
    whole = extractor(batch)
    assert whole.dtype == torch.float32 and whole.shape[0] == ROWS + 9
    assert torch.equal(torch.cat([extractor(batch[:7]), extractor(batch[7:50]), extractor(batch[50:])]), whole)
    assert torch.equal(extractor(torch.from_numpy(batch).permute(0, 3, 1, 2)), whole)
    assert torch.equal(extractor(batch[::-1].copy()), whole.flip(0))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_extractors_say_who_they_are(name: str) -> None:
    extractor = open_features(name)
    assert extractor.extractor_id.startswith(name) and len(extractor.preprocessing_id) == 16
    assert extractor(pictures(3)).shape == (3, extractor.dim)
    assert extractor.distance == f"fd_{name}" and {"resize", "size", "mapping", "decoder", "rows"} <= {
        *extractor.preprocessing_fields
    }


@pytest.mark.parametrize("name", FEATURES)
def test_registered_extractors_can_be_read_about(name: str) -> None:
    spec = FEATURES[name]
    assert spec.summary and callable(spec.load()) and spec.load().__name__ == name.replace("-", "_")
    assert spec.defaults["device"] == "cpu"
    assert (name in SHIPPED) == (not any("weights" in need or "checkpoint" in need for need in spec.needs))


def test_settings_in_a_line() -> None:
    seeded = open_features("random:seed=3")
    assert seeded.weights == weights_hash(RandomConvolutions(3)) != open_features("random").weights
    with pytest.raises(UsageError, match="no setting 'sede': did you mean seed"):
        open_features("random:sede=3")


def test_a_network_may_tell_more_than_features() -> None:
    """What is prepared picture by picture is padded after that, and every output is cut and cast."""
    seen = []

    def network(values: Tensor) -> dict[str, Tensor]:
        seen.append(values.shape)
        return {"features": values, "logits": values[:, :2].to(torch.bfloat16)}

    def halved(batch: Tensor) -> Tensor:
        return batch.float().mean((2, 3)) / 2

    extractor = Extractor("two", network, "none", prepare=halved)
    batch = pictures(ROWS + 3)
    found = extractor.outputs(batch)
    assert seen == [(ROWS, 3), (ROWS, 3)]
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "features": ((ROWS + 3, 3), torch.float32),
        "logits": ((ROWS + 3, 2), torch.float32),
    }
    assert torch.allclose(found["features"], torch.from_numpy(batch).float().mean((1, 2)) / 2)
    assert torch.equal(extractor(batch), found["features"])
    with pytest.raises(UsageError, match="must return features"):
        Extractor("none", lambda values: {"logits": values}, "none", prepare=halved)(batch)
    with pytest.raises(UsageError, match="must return logits"):
        Extractor("odd", lambda v: {"features": v, "logits": v[:5]}, "none", prepare=halved)(batch)


def test_random_weights_are_pinned() -> None:
    """Drawn with PCG64 in float64, then cast: the same on every platform. A change of layout changes this hash."""
    before = torch.random.get_rng_state()
    network = RandomConvolutions()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights_hash(network)[:16] == PINNED
    assert weights_hash(RandomConvolutions(1)) != weights_hash(network)


PINNED = "041befae21c91d5c"


def test_random_features_take_any_size() -> None:
    assert open_features("random")(pictures(2, 50)).shape == (2, 64)


def test_random_features_see_damage() -> None:
    """Distances grow with blur, noise and saturation, from the halves of clean pictures on."""
    world = pytest.importorskip("pilotage.zoo.world")
    extractor = open_features("random")
    clean = torch.from_numpy(world.pictures(range(600), "test")).permute(0, 3, 1, 2)
    real, other = clean[:300], clean[300:]

    def distance(changed: Tensor) -> float:
        made = changed.round().clamp(0, 255).to(torch.uint8)
        return frechet_distance(real=extractor(real), generated=extractor(made))

    def blurred(sigma: float) -> Tensor:
        reach = int(3 * sigma + 1)
        kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        padded = nn.functional.pad(other.float(), [reach] * 4, mode="replicate")
        return nn.functional.conv2d(nn.functional.conv2d(padded, kernel, groups=3), kernel.mT.contiguous(), groups=3)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(other.shape, generator=generator)
    grey = other.float().mean(1, keepdim=True)
    null = distance(other.float())
    for steps in (
        [blurred(s) for s in (0.5, 1, 2)],
        [other + s * noise for s in (8, 24)],
        [grey + s * (other - grey) for s in (1.5, 3)],
    ):
        values = [null, *map(distance, steps)]
        assert values == sorted(values)


def test_a_callable_or_a_module_serves_as_features() -> None:
    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, batch: Tensor) -> Tensor:
            return self.dropout(batch.float().mean((2, 3)) * self.scale)

    module = Means()
    extractor = open_features(module)
    found = extractor(pictures(3))
    assert not found.requires_grad and torch.equal(found, extractor(pictures(3)))  # eval mode
    assert extractor.weights == weights_hash(module) and open_features(extractor) is extractor
    plain = open_features(lambda batch: batch.float().mean((2, 3)))
    assert plain.weights == "unknown" and torch.allclose(plain(pictures(3)), found)


def test_bad_extractors_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean random"):
        open_features("radnom")
    with pytest.raises(UsageError, match="name or a callable"):
        open_features(3)
    with pytest.raises(UsageError, match="pool and flatten"):
        open_features(lambda batch: batch.float())(pictures(2))
    with pytest.raises(UsageError, match="N, 3, H, W"):
        open_features("random")(np.zeros((2, 4, 4), np.uint8))


def test_identities_differ_with_weights_and_preprocessing() -> None:
    ids = {open_features(name).preprocessing_id for name in OWN}
    assert len(ids) == 2
    digest = hashlib.sha256()
    for name, value in sorted(RandomConvolutions().state_dict().items()):
        digest.update(name.encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == weights_hash(RandomConvolutions())


def test_pictures_of_mixed_sizes_share_full_calls() -> None:
    """As many calls as if all were of one size, and the features of each alone."""
    rng = np.random.default_rng(0)
    mixed = [torch.from_numpy(rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8)) for side in (8, 16, 24) * 30]
    plain, calls = open_features("pixels"), []
    counted = replace(plain, network=lambda ready: calls.append(len(ready)) or plain.network(ready))
    stream = FullCalls(counted)
    found = [part for picture in mixed for part in stream.take(picture)]
    rows = torch.cat([part["features"] for part in (*found, *stream.rest())])
    assert calls == [64, 64] and len(rows) == 90
    assert torch.equal(rows, torch.cat([plain(picture) for picture in mixed]))
