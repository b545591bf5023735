"""A running generator as a source: seeds in, pictures out, one batch at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_sources_help import pixels, refused, same
from PIL import Image

from pilotage.errors import UsageError
from pilotage.evaluation import ImageSource, Picture, SamplerSource, open_source, score
from pilotage.evaluation.sources import items, part, size_of


class Sampler:
    """Pictures that depend on their seed alone; remembers what it was asked for."""

    def __init__(self, form: str = "array"):
        self.form, self.asked = form, list[list[int]]()

    def __call__(self, seeds: list[int]) -> Any:
        self.asked.append(seeds)
        made = np.stack([pixels(seed) for seed in seeds])
        images = [Image.fromarray(one) for one in made]
        return {
            "array": made,
            "tensor": torch.from_numpy(made).permute(0, 3, 1, 2),
            "floats": torch.from_numpy(made).permute(0, 3, 1, 2) / 255,
            "list of tensors": [torch.from_numpy(one).permute(2, 0, 1) for one in made],
            "images": images,
            "output": SimpleNamespace(images=images),
            "with captions": (images, [f"seed {seed}" for seed in seeds]),
            "too few": made[1:],
            "nothing": None,
        }[self.form]


@pytest.mark.parametrize("form", ["array", "tensor", "floats", "list of tensors", "images", "output", "with captions"])
def test_forms_of_pictures(form: str) -> None:
    for batch in (1, 2, 4, 100):
        sampler = Sampler(form)
        source = SamplerSource(sampler, count=7, batch=batch, first=100, value_range=(0, 1))
        found = list(open_source(source))
        texts = [f"seed {s}" if form == "with captions" else None for s in range(100, 107)]
        assert same(found, [Picture(pixels(s), str(s), text) for s, text in zip(range(100, 107), texts)])
        assert [len(seeds) for seeds in sampler.asked] == [batch] * (7 // batch) + ([7 % batch] if 7 % batch else [])
    assert size_of(source) == 7 and isinstance(source, ImageSource)


def test_only_what_is_read_is_made() -> None:
    sampler = Sampler()
    source = SamplerSource(sampler, count=50_000, batch=4)
    assert sampler.asked == [] and next(iter(source)).key == "0" and sampler.asked == [[0, 1, 2, 3]]
    sampler.asked.clear()
    assert [p.key for p in items(source, [3, 7, 11, 15, 19])] == ["3", "7", "11", "15", "19"]
    assert sampler.asked == [[3, 7, 11, 15], [19]]
    assert list(source.pick(["9", "2"])) == ["2", "9"] and sampler.asked[-1] == [2, 9]
    small = SamplerSource(sampler, count=7, batch=2)
    parts = [list(part(small, rank, 3)) for rank in range(3)]
    assert [[p.key for p in found] for found in parts] == [["0", "3", "6"], ["1", "4"], ["2", "5"]]


def test_captions_go_with_seeds() -> None:
    source = SamplerSource(Sampler("with captions"), 5, 2, captions=[f"c{i}" for i in range(5)])
    assert [p.text for p in items(source, [1, 4])] == ["c1", "c4"]
    assert [p.text for p in open_source(source, captions=list("vwxyz"))] == list("vwxyz")
    with pytest.raises(UsageError, match="5 pictures but 1 captions"):
        SamplerSource(Sampler(), 5, captions=["c"])


def test_what_cannot_be() -> None:
    refused(Sampler(), r"give SamplerSource\(sampler, count=50000\)")
    refused(SamplerSource(Sampler("too few"), 4), "3 pictures for 4 seeds; return one for each seed")
    refused(SamplerSource(Sampler("floats"), 4), "value_range")
    refused(SamplerSource(Sampler("nothing"), 4), "picture 0 is of NoneType")
    with pytest.raises(UsageError, match="count and batch must be 1 or more"):
        SamplerSource(Sampler(), 0)


def test_a_generator_is_scored_without_writing() -> None:
    real = np.stack([pixels(seed) for seed in range(64)])
    found = score(generated=SamplerSource(Sampler(), 64, 16), real=real, metrics="frechet", features="pixels")
    assert abs(found["frechet"].value) < 1e-6 and found.sources["generated"]["pictures"] == 64
