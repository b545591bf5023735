"""Rows as they come: in memory while they are few, in a temporary file when they are many."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..storage import disk_errors

LIMIT = 2**29  # bytes kept in memory; 50,000 rows of 2,048 float32 are 410 MB


class FeatureStore:
    """An accumulator of float32 rows (N, D) in the order of `append`.

    limit: bytes in memory, above which everything lies in an unnamed file in the folder for temporary files
    (TMPDIR), mapped into memory when it is read, and gone with the last reader.
    """

    def __init__(self, limit: int = LIMIT):
        self.limit, self.width = limit, 0
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None
        self._written = 0

    def __len__(self) -> int:
        return self._written + sum(len(part) for part in self._parts)

    @property
    def on_disk(self) -> bool:
        """Do the rows lie in a file?"""
        return self._file is not None

    def append(self, rows: Tensor) -> FeatureStore:
        """Take in rows (B, D) of any float dtype; returns itself."""
        if rows.ndim != 2 or (self.width and rows.shape[1] != self.width):
            raise UsageError(f"rows must be (N, {self.width or 'D'}), got {tuple(rows.shape)}; use one extractor")
        self.width = rows.shape[1]
        self._parts.append(rows.detach().float().cpu())
        if 4 * self.width * (len(self) - self._written) > (2**24 if self.on_disk else self.limit):
            self._flush()
        return self

    def merge(self, other: FeatureStore) -> FeatureStore:
        """Of the rows of both, these first; neither is changed."""
        joined = FeatureStore(self.limit)
        for store in (self, other):
            for part in store.rows().split(4096) if len(store) else ():
                joined.append(part)
        return joined

    def rows(self) -> Tensor:
        """float32 (N, D); of a large store a view of the file, which must not be written to."""
        if not self.on_disk:
            self._parts = [torch.cat(self._parts)] if self._parts else []
            return self._parts[0] if self._parts else torch.zeros(0, self.width)
        self._flush()
        # mode "c": writes would stay in memory; torch takes no read-only array without a copy or a warning
        file: Any = self._file
        return torch.from_numpy(np.memmap(file, np.float32, "c", shape=(self._written, self.width)))

    def _flush(self) -> None:
        with disk_errors(Path(tempfile.gettempdir())):
            self._file = self._file or tempfile.TemporaryFile(prefix="pilotage-")  # noqa: SIM115 - lives with the store
            for part in self._parts:
                self._file.write(part.contiguous().numpy().data)
                self._written += len(part)
            self._file.flush()
        self._parts = []
