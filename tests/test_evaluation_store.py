"""Rows in memory and on disk are the same rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from pilotage.errors import UsageError
from pilotage.evaluation import FeatureStore


def test_memory_and_disk_hold_the_same_rows() -> None:
    rows = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    stores = [FeatureStore(limit) for limit in (2**29, 4 * 7 * 100)]
    for store in stores:
        for part in rows.split(64):
            store.append(part.double())
    assert [store.on_disk for store in stores] == [False, True]
    for store in stores:
        assert torch.equal(store.rows(), rows) and len(store) == 1000
        store.append(rows[:5])
        assert torch.equal(store.rows(), torch.cat([rows, rows[:5]]))


def test_merging_joins_in_order_and_changes_nothing() -> None:
    a, b = FeatureStore(40).append(torch.ones(9, 3)), FeatureStore().append(torch.zeros(4, 3))
    joined = a.merge(b)
    assert torch.equal(joined.rows(), torch.cat([torch.ones(9, 3), torch.zeros(4, 3)]))
    assert len(a) == 9 and len(b) == 4 and torch.equal(FeatureStore().merge(b).rows(), b.rows())


def test_the_file_has_no_name_and_outlives_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = FeatureStore(1).append(torch.full((100, 3), 2.0)).rows()
    assert not list(tmp_path.iterdir()) and float(rows.sum()) == 600
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="gone"):
        FeatureStore(1).append(torch.ones(100, 3))


def test_other_widths_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must be \(N, 3\), got \(2, 4\)"):
        FeatureStore().append(torch.ones(2, 3)).append(torch.ones(2, 4))
    assert FeatureStore().rows().shape == (0, 0)
