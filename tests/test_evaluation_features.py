"""Extractors: who they are, that batching does not matter, and that the random one is the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pilotage.errors import UsageError
from pilotage.evaluation import FEATURES, frechet_distance, open_features
from pilotage.evaluation.features import ROWS, RandomConvolutions, weights_hash

OWN = ("random", "pixels")


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


@pytest.mark.parametrize("name", FEATURES)
def test_registered_extractors_say_who_they_are(name: str) -> None:
    try:
        extractor = open_features(name)
    except UsageError as error:
        pytest.skip(str(error))  # the embedded network's weights are made by training
    assert FEATURES[name].summary
    assert extractor.extractor_id.startswith(name) and len(extractor.preprocessing_id) == 16
    assert extractor(pictures(3)).shape[0] == 3


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
