"""Statistics files: a round trip gives the same scores, others' files are read, what does not fit is refused."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - to make the files that must be refused
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilotage.errors import UsageError
from pilotage.evaluation import (
    Extractor,
    frechet_distance,
    open_features,
    read_statistics,
    reference,
    score,
    write_statistics,
)
from pilotage.evaluation.foreign_statistics import clean_fid_name, write_foreign
from pilotage.evaluation.metrics.registry import GROUPS
from pilotage.evaluation.statistics import is_statistics


def pictures(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


METRICS = ["frechet", "kernel-distance", *GROUPS["prdc"], *GROUPS["colour"], "vendi"]


def test_a_file_serves_as_the_pictures_would(tmp_path: Path) -> None:
    real = reference(pictures(120, 1), features="random")
    path = write_statistics(real, tmp_path / "new" / "real.npz")
    assert is_statistics(path) and not is_statistics(tmp_path) and not is_statistics("embedded:test:9")
    direct = score(generated=pictures(100), real=pictures(120, 1), metrics=METRICS, features="random")
    by_file = score(generated=pictures(100), real=path, metrics=METRICS, features="random")
    assert [r.value for r in by_file] == [r.value for r in direct]
    assert [r.real for r in by_file] == [r.real for r in direct] and [r.null for r in by_file] == [
        r.null for r in direct
    ]
    assert by_file.sources["real"]["pictures"] == 120 and "8x8" in by_file.sources["real"]["sizes"]


def test_moments_alone_serve_frechet_distances(tmp_path: Path) -> None:
    path = write_statistics(reference(pictures(200, 1), features="random"), tmp_path / "real.npz", rows=False)
    assert path.stat().st_size < 8 * 64 * 66 + 9000
    found = score(generated=pictures(150), real=path, features="random")
    direct = score(generated=pictures(150), real=pictures(200, 1), metrics="frechet", features="random")["frechet"]
    assert found["frechet"].value == pytest.approx(direct.value, rel=1e-9) and found["frechet"].null is None
    assert "only mean and covariance" in found.skipped["coverage"] and found["saturation"].real is None


def test_another_network_or_preprocessing_is_refused_field_by_field(tmp_path: Path) -> None:
    path = write_statistics(reference(pictures(90), features="random"), tmp_path / "real.npz")
    with pytest.raises(UsageError, match="with features random, not pixels"):
        score(generated=pictures(90), real=path, metrics="prdc", features="pixels")
    plain = open_features("random")
    fields = {name: getattr(plain, name) for name in ("name", "network", "weights", "side", "called", "dim")}
    with pytest.raises(UsageError) as caught:
        score(generated=pictures(90), real=path, metrics="prdc", features=Extractor(
            **{**fields, "weights": "f00"}, preprocessing={**plain.preprocessing, "antialias": False}))  # fmt: skip
    said = str(caught.value)
    assert "weights is" in said and "f00" in said and "preprocessing.antialias is True and False" in said
    assert "preprocessing.size" not in said and "\n" not in said


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    path = write_statistics(reference(pictures(60), features="random"), tmp_path / "real.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"real\.npz is damaged"):
        read_statistics(path)
    path.write_bytes(whole)
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays["meta"]))
    for change, says in [
        ({"meta": np.array(json.dumps({**meta, "schema": "x/9"}))}, "another version"),
        ({"meta": np.array("{")}, "damaged"),
        ({"sigma": arrays["sigma"][:5]}, "do not fit"),
        ({"sigma": arrays["sigma"] * np.nan}, "not finite"),
        ({"sigma": -arrays["sigma"]}, "no covariance"),
        ({"sigma": arrays["sigma"] + np.triu(np.ones((64, 64)))}, "no covariance"),
        ({"features": arrays["features"][:9]}, "other numbers of rows"),
    ]:
        np.savez(path, **(arrays | change))
        with pytest.raises(UsageError, match=says) as caught:
            read_statistics(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"must end in \.npz"):
        write_statistics(reference(pictures(9), features="random"), tmp_path / "real.npy")
    with pytest.raises(UsageError, match="no file"):
        read_statistics(tmp_path / "gone.npz")


# -- files of other tools -------------------------------------------------------------------------------------------


def inception_like() -> Extractor:
    """Random features under the name and the identity of Inception in the preset clean."""
    from pilotage.evaluation.features.resize import PRESETS

    plain = open_features("random")
    return Extractor("inception", plain.network, "abc", PRESETS["clean"].fields(32), 32, called="fid")


def moments(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rows = inception_like()(pictures(n, 1)).double().numpy()
    return rows.mean(0), np.cov(rows, rowvar=False)


def written(kind: str, folder: Path) -> Path:
    mu, sigma = moments()
    path = folder / f"ref.{kind.split(':')[-1]}"
    if kind == "kid:npz":
        np.savez(path, feats=inception_like()(pictures(300, 1)).numpy())
    elif kind == "guided-diffusion:npz":
        np.savez(path, mu=mu, sigma=sigma, mu_s=mu[:5], sigma_s=sigma[:5, :5], arr_0=pictures(3))
    elif kind.endswith("npz"):
        np.savez(path, mu=mu, sigma=sigma)
    elif kind == "edm2:pkl":
        path.write_bytes(pickle.dumps({"num_images": 300, "fid": {"mu": mu, "sigma": sigma}}))
    else:
        torch.save({"mu": torch.from_numpy(mu), "sigma": torch.from_numpy(sigma)}, path)
    return path


@pytest.mark.parametrize(
    "kind", ["pytorch-fid:npz", "kid:npz", "guided-diffusion:npz", "edm2:pkl", "torch-fidelity:pt"]
)
def test_statistics_of_other_tools_are_read(kind: str, tmp_path: Path) -> None:
    path, made = written(kind, tmp_path), pictures(200)
    assert is_statistics(path)
    settings: dict[str, Any] = {"metrics": "fid", "features": inception_like()}
    found = score(generated=made, real=path, assume="clean", **settings)["fid"]
    extractor = inception_like()
    expected = frechet_distance(real=extractor(pictures(300, 1)), generated=extractor(made))
    assert found.value == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="say it with --assume"):
        score(generated=made, real=path, **settings)
    with pytest.raises(UsageError, match=r"preprocessing\.resize is bilinear and bicubic"):
        score(generated=made, real=path, assume="legacy-tf", **settings)
    with pytest.raises(UsageError, match="unknown preset 'clear': did you mean clean"):
        score(generated=made, real=path, assume="clear", **settings)


def test_what_we_write_for_others_has_their_names(tmp_path: Path) -> None:
    collected = reference(pictures(100), features="random")
    path = write_foreign(collected, tmp_path / clean_fid_name("Mine", split="train", resolution="32"))
    assert path.name == "mine_clean_train_32.npz"
    arrays = np.load(path)
    rows = open_features("random")(pictures(100)).double().numpy()
    assert set(arrays.files) == {"mu", "sigma"}
    assert np.allclose(arrays["mu"], rows.mean(0), rtol=1e-12)
    assert np.allclose(arrays["sigma"], np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-12)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize("suffix", ["pkl", "pt"])
def test_nothing_is_executed(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / f"ref.{suffix}"
    evil = {"num_images": 5, "fid": {"mu": Evil(), "sigma": np.eye(3)}, "mu": Evil(), "sigma": Evil()}
    path.write_bytes(pickle.dumps(evil)) if suffix == "pkl" else torch.save(evil, path)
    with pytest.raises(UsageError) as caught:
        read_statistics(path, assume="clean")
    assert "\n" not in str(caught.value) and "executed" not in capsys.readouterr().out
    if suffix == "pkl":
        assert "builtins.print" in str(caught.value)


def test_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    held = io.BytesIO()
    np.save(held, np.array([Evil()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "ref.npz", "w") as archive:
        archive.writestr("mu.npy", held.getvalue())
        archive.writestr("sigma.npy", held.getvalue())
    with pytest.raises(UsageError, match="cannot be read as statistics"):
        read_statistics(tmp_path / "ref.npz", assume="clean")


@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"cos\nsystem\n(S'true'\ntR.", b"not a pickle", b"(lp0\n."])
def test_strange_pickles_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ref.pkl").write_bytes(content)
    with pytest.raises(UsageError, match=r"ref\.pkl") as caught:
        read_statistics(tmp_path / "ref.pkl", assume="clean")
    assert "\n" not in str(caught.value)
