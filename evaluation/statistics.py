"""Statistics of a set of pictures in a file, so that a reference is read once: our own container.

An .npz without pickle. `meta` is JSON: the identity of the features, the number of pictures, what they were. `mu` (D,)
and `sigma` (D, D), float64, N - 1 covariance, are there under the names that other tools use, so that those can read
ours too. With the rows come `features` (N, D) float32 and other outputs of the network, the colours of each picture,
and `radii_<k>`, exact squares of the distances to the k-th neighbours.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..storage import disk_errors, whole
from ..version import __version__
from .collect import Collected
from .metrics.colour import Colour
from .metrics.moments import Moments
from .metrics.prdc import Radii
from .sources.limits import RATIO, TOTAL_BYTES
from .space import Space

SCHEMA = "pilotage.statistics/1"
K = 5  # neighbours whose radii are kept with the rows


def write_statistics(collected: Collected, path: str | Path, *, rows: bool = True, space: str = "") -> Path:
    """Write what is known of a set in one space; the old file stays until the new one is complete.

    rows: with the features themselves (4 D bytes a picture), which all but Frechet distances need. Errors: the folder
    cannot be written to, no suffix .npz.
    """
    target = Path(path)
    if target.suffix != ".npz":
        raise UsageError(f"{target} must end in .npz; statistics are arrays in one file")
    seen = collected.space(space)
    arrays: dict[str, Any] = {"mu": seen.moments.mean, "sigma": seen.moments.covariance}
    if rows:
        arrays |= {"features": seen.features, **{n: v for n, v in seen.outputs.items() if n != "features"}}
        arrays["colour"] = collected.colour.stacked()
        if len(collected) > K:
            arrays[f"radii_{K}"] = seen.radii(K).squared
    arrays["meta"] = np.array(json.dumps(_meta(collected, seen), sort_keys=True))
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: _array(value) for name, value in arrays.items()})
    return target


def _meta(collected: Collected, seen: Space) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "pilotage": __version__,
        "name": collected.name,
        "n": len(collected),
        "space": seen.name,
        "distance": seen.distance,
        "identity": dict(seen.identity),
        "outputs": [name for name in seen.outputs if name != "features"],
        "side": seen.side,
        "sizes": {f"{height}x{width}": count for (height, width), count in collected.sizes.items()},
        "notes": dict(collected.notes),
    }


def is_own(path: Path) -> bool:
    """Is that file one of ours?"""
    try:
        with zipfile.ZipFile(path) as archive:
            return "meta.npy" in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def is_statistics(source: Any) -> bool:
    """Is that a file of statistics, ours or of another tool, and not of pictures?"""
    from .foreign_statistics import is_foreign

    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        return False
    return is_own(Path(source)) or is_foreign(Path(source))


def read_statistics(path: str | Path, *, assume: str | None = None) -> Collected:
    """What a file of statistics says, ours or of another tool (see `foreign_statistics`), as a set without pictures.

    assume: the preprocessing preset behind a foreign file, which does not say it; not for ours. Nothing is unpickled.
    Errors: not readable, damaged, covariances that are none, a foreign file without `assume`.
    """
    from .foreign_statistics import read_foreign

    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no file {file}; check the path, or make it with `pilotage stats`")
    if file.suffix == ".npz" and not zipfile.is_zipfile(file):
        raise UsageError(f"{file} is damaged: it is no .npz; make or fetch it again")
    if file.suffix == ".npz":
        _refuse_bomb(file)
    if not is_own(file):
        return read_foreign(file, assume)
    if assume is not None:
        raise UsageError(f"{file} says itself how its pictures were prepared; leave assume away")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            if meta.get("schema") != SCHEMA:
                raise UsageError(f"{file} was written by another version of pilotage; run `pilotage stats` again")
            return _collected(file, meta, {name: arrays[name] for name in arrays.files if name != "meta"})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, OverflowError,
            RecursionError, MemoryError, zipfile.BadZipFile) as e:  # fmt: skip
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{file} is damaged ({e}); make it again with `pilotage stats`") from None


def _refuse_bomb(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as packed:
            size = sum(member.file_size for member in packed.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}); make or fetch it again") from None
    if size > max(TOTAL_BYTES, RATIO * file.stat().st_size):
        raise UsageError(f"{file} of {file.stat().st_size} bytes unpacks to {size}: a bomb; make or fetch it again")


def _collected(file: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Collected:
    n = int(meta["n"])
    moments = moments_of(file, arrays["mu"], arrays["sigma"], n)
    outputs = {name: _tensor(arrays[name]) for name in ("features", *meta["outputs"]) if name in arrays}
    if any(len(rows) != n for rows in outputs.values()):
        raise ValueError(f"it says {n} pictures and has other numbers of rows")
    radii = {int(name[6:]): Radii(_tensor(v), int(name[6:])) for name, v in arrays.items() if name.startswith("radii_")}
    colour = Colour.unstacked(arrays["colour"]) if "colour" in arrays else Colour.joined([])
    space = Space(
        meta["space"], meta["identity"], outputs, moments, str(file), int(meta["side"]), meta["distance"], radii
    )
    sizes = Counter({_size(text): int(count) for text, count in meta["sizes"].items()})
    notes = Counter(meta["notes"])
    return Collected(
        f"{meta['name']} ({file})", [], [], [], {space.name: space}, colour, None, "statistics have no pictures",
        sizes, notes, n,
    )  # fmt: skip


def _size(text: str) -> tuple[int, int]:
    height, width = (int(x) for x in text.split("x"))
    return height, width


def moments_of(file: Path, mu: np.ndarray, sigma: np.ndarray, n: int) -> Moments:
    """Mean (D,) and N - 1 covariance (D, D), checked: finite, symmetric to 1e-6, no negative variances."""
    mean, covariance = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UsageError(f"{file}: mu {mean.shape} and sigma {covariance.shape} do not fit; it holds no statistics")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UsageError(f"{file} has statistics that are not finite; make it again")
    largest = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > 1e-6 * largest or (np.diagonal(covariance) < 0).any():
        raise UsageError(f"{file}: sigma is no covariance (not symmetric, or negative on its diagonal); make it again")
    origin = _tensor(mean)
    return Moments(n, origin, torch.zeros_like(origin), _tensor((covariance + covariance.T) / 2) * (n - 1))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
