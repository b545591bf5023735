"""Reference statistics of other tools, read without executing anything, and written for them.

read   pytorch-fid, clean-fid, EDM .npz (mu, sigma); clean-fid's KID .npz (feats); guided-diffusion .npz (mu, sigma,
       perhaps arr_0, mu_s, sigma_s); EDM2 .pkl (fid, fd_dinov2); torch-fidelity .pt (mu, sigma)
write  pytorch-fid, clean-fid, EDM

None of them says how its pictures were prepared: whoever reads one says it (`assume`).
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - EDM2 publishes nothing else; only arrays are built, see _ArraysOnly
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError, nearest
from ..storage import disk_errors, whole
from .collect import Collected
from .features.clip import PRESETS as CLIP
from .features.dinov2 import PRESETS as DINOV2
from .features.resize import PRESETS
from .metrics.colour import Colour
from .metrics.moments import Moments
from .space import Space

FORMATS = ("pytorch-fid", "clean-fid", "edm")
_NETWORK_OF = {preset: "dinov2" for preset in DINOV2} | {preset: "clip" for preset in CLIP}  # else Inception
_KEYS = {"mu", "sigma", "feats"}
_SUFFIXES = (".npz", ".pkl", ".pt")
_UNKNOWN_N = 2**31  # covariances are given, so that N only matters for the bias, which stays unknown


def is_foreign(path: Path) -> bool:
    """Does that file hold statistics of another tool? An .npz of pictures alone does not."""
    if path.suffix in (".pkl", ".pt"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix == ".npz" and bool(_KEYS & {name.removesuffix(".npy") for name in archive.namelist()})
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_foreign(file: Path, assume: str | None) -> Collected:
    """A set of unknown pictures of which the statistics are known. assume: a preset of `features.resize`."""
    known = ", ".join(sorted(PRESETS))
    if assume is None:
        raise UsageError(f"{file} does not say how its pictures were prepared; say it with --assume, one of {known}")
    if assume not in PRESETS:
        raise UsageError(f"unknown preset {assume!r}: {nearest(assume, PRESETS)}")
    network = _NETWORK_OF.get(assume, "inception")
    try:
        found = _contents(file, "fd_dinov2" if network == "dinov2" else "fid")
        return _collected(file, found, network, assume)
    except UsageError:
        raise
    except Exception as error:  # readers of hostile files raise nearly anything
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} cannot be read as statistics ({why}); fetch it again") from None


def _contents(file: Path, which: str) -> Mapping[str, Any]:
    """ "mu" and "sigma", or "feats", and "n" where the file says it."""
    if file.suffix == ".pkl":
        return _of_edm2(file, which)
    if file.suffix == ".pt":
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        return {name: np.asarray(loaded[name]) for name in ("mu", "sigma")}
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name in _KEYS}


def _collected(file: Path, found: Mapping[str, Any], network: str, assume: str) -> Collected:
    from .statistics import moments_of

    outputs, n = {}, int(found.get("n", 0))
    if "feats" in found:
        rows = torch.from_numpy(np.ascontiguousarray(found["feats"], np.float32))
        if rows.ndim != 2 or len(rows) < 2 or not bool(rows.isfinite().all()):
            raise UsageError(f"{file}: feats must be finite rows (N, D), got {tuple(rows.shape)}; make it again")
        outputs, n, moments = {"features": rows}, len(rows), Moments.of(rows)
    elif {"mu", "sigma"} <= set(found):
        moments = moments_of(file, found["mu"], found["sigma"], n or _UNKNOWN_N)
    else:
        raise UsageError(f"{file} has neither mu and sigma nor feats; it holds no statistics")
    identity = {"extractor": network, **_fields(assume)}
    distance = "fid" if network == "inception" else f"fd_{network}"
    space = Space(network, identity, outputs, moments, str(file), distance=distance)
    no_colour = Colour.joined([])
    return Collected(
        f"{file}, assumed {assume}",
        [],
        [],
        [],
        {network: space},
        no_colour,
        None,
        "statistics have no pictures",
        count=n,
    )


def _fields(assume: str) -> dict[str, Any]:
    """What a preset says of the preprocessing, but for the size, which the network says."""
    return {f"preprocessing.{name}": value for name, value in PRESETS[assume].fields(0).items() if name != "size"}


# -- EDM2 -----------------------------------------------------------------------------------------------------------

_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy.core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
}


class _ArraysOnly(pickle.Unpickler):
    """Builds dictionaries, numbers, text and NumPy arrays; every other name in the stream is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UsageError(f"it asks for {module}.{name}, which statistics do not need; it may be an attack")
        return _ALLOWED[module, name]

    def persistent_load(self, _: Any) -> Any:
        raise UsageError("it refers to objects outside itself, which statistics do not need; it may be an attack")


def _of_edm2(file: Path, which: str) -> Mapping[str, Any]:
    if file.stat().st_size > 2**28:
        raise UsageError(f"{file} has more than 256 MB, which statistics never have; give the right file")
    try:
        found = _ArraysOnly(io.BytesIO(file.read_bytes())).load()
    except UsageError as error:
        raise UsageError(f"{file} is refused: {error}") from None
    sets = found.get(which) if isinstance(found, dict) else None
    if not isinstance(sets, dict) or not all(isinstance(sets.get(m), np.ndarray) for m in ("mu", "sigma")):
        raise UsageError(f"{file} has no {which} statistics as EDM2 writes them; give another file")
    return {"mu": sets["mu"], "sigma": sets["sigma"], "n": int(found.get("num_images", 0))}


# -- writing --------------------------------------------------------------------------------------------------------


def write_foreign(collected: Collected, path: str | Path, *, space: str = "") -> Path:
    """mu and sigma under the names that pytorch-fid, clean-fid and EDM read: three names of one format."""
    target = Path(path)
    if target.suffix != ".npz":
        raise UsageError(f"{target} must end in .npz; statistics are arrays in one file")
    moments = collected.space(space).moments
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as part, part.open("wb") as file:
            np.savez(file, mu=moments.mean.cpu().numpy(), sigma=moments.covariance.cpu().numpy())
    return target


def clean_fid_name(name: str, *, mode: str = "clean", split: str = "custom", resolution: str = "na") -> str:
    """The file name under which clean-fid looks for statistics: {name}_{mode}_{split}_{res}.npz in lower case."""
    return f"{name}_{mode}_{split}_{resolution}.npz".lower()
