"""The pictures of a run spec as a source of pictures: made as they are scored, and never written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ..evaluation.sources import IndexedSource
from ..evaluation.sources.picture import Picture
from ..evaluation.sources.source import Read
from .pictures import Generation, Watch
from .spec import RunSpec, read_yaml


class RunSource(IndexedSource):
    """Pictures 0, 1, ... of a spec, called by their numbers, with their prompts. The model is opened for the first."""

    def __init__(self, spec: RunSpec, name: str = ""):
        self.spec, self.wanted = spec, spec.pictures()
        super().__init__(name or f"{len(self.wanted)} pictures of {spec.model}")

    @classmethod
    def read_from(cls, file: Path) -> RunSource:
        """Of a YAML file, such as the run.yaml of a run folder."""
        return cls(RunSpec(**read_yaml(file)), str(file))

    @cached_property
    def generation(self) -> Generation:
        """The model with the rule of the spec."""
        return Generation(self.spec, None, Watch(), fill=True)

    def __len__(self) -> int:
        return len(self.wanted)

    def key(self, index: int) -> str:
        return f"{index:06d}"

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        for sample in self.generation.pictures(set(self.within(indices))):
            pixels = np.array(sample.image.convert("RGB"))
            yield Picture(pixels, self.key(sample.index), sample.prompt), []
