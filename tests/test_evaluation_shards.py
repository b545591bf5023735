"""Tars and webdataset shards: samples by their names, captions and classes beside them, shards in order, one pass."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from evaluation_sources_help import encoded, make_tar, pixels, refused, same

from pilotage.errors import UsageError
from pilotage.evaluation import Picture, open_source
from pilotage.evaluation.sources import part, size_of
from pilotage.evaluation.sources.tar_shards import shards_of


def test_sidecars_give_captions_and_labels(tmp_path: Path) -> None:
    files = {
        "a/1.cls": b"7\n",
        "a/1.png": encoded(1),
        "a/1.txt": b" a red star \n",
        "a/2.jpg": encoded(2, "JPEG"),
        "a/2.json": json.dumps({"caption": "from json", "label": "cat", "width": 6}).encode(),
        "a/3.json": json.dumps({"prompt": "from json", "cls": 3}).encode(),
        "a/3.txt": b"the text",
        "a/3.png": encoded(3),
        "a/4.cls": b"dog",
        "a/4.png": encoded(4),
        "a/5.json": b"[1, 2]",
        "a/5.png": encoded(5),
    }
    source = open_source(make_tar(tmp_path / "x.tar", files))
    found = list(source)
    assert [p[1:] for p in found] == [
        ("a/1.png", "a red star", 7),
        ("a/2.jpg", "from json", "cat"),
        ("a/3.png", "the text", 3),
        ("a/4.png", None, "dog"),
        ("a/5.png", None, None),
    ]
    assert (found[0].pixels == pixels(1)).all() and source.notes == {"PNG files": 4, "JPEG files": 1}
    assert size_of(source) is None and isinstance(source.name, str)


def test_every_format_of_tar_and_names_of_any_length(tmp_path: Path) -> None:
    names = [
        "./a.png",
        "deep/" * 40 + "b.png",
        "ümlaut-ß.png",
        "x" * 200 + ".png",
        "cfg7.5_0001.png",
        "cfg7.5_0002.png",
    ]
    for i, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        kept = [n for n in names if form != tarfile.USTAR_FORMAT or len(n.encode()) < 100]
        for mode, suffix in (("w", "tar"), ("w:gz", "tgz")):
            path = tmp_path / f"{i}.{suffix}"
            make_tar(path, {n: encoded(k) for k, n in enumerate(kept)}, mode, format=form)
            expected = [Picture(pixels(k), n.removeprefix("./")) for k, n in enumerate(kept)]
            assert same(list(open_source(path)), expected)


def test_a_packed_folder_is_read_as_tar_wrote_it(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(encoded(len(name)))
    with tarfile.open(tmp_path / "x.tar", "w", pax_headers={"comment": "global headers name no file"}) as packed:
        packed.add(tmp_path / "f", ".")
    assert sorted(p.key for p in open_source(tmp_path / "x.tar")) == ["a.png", "b/2.png"]
    (tmp_path / "x.tar").rename(tmp_path / "x.bin")
    assert len(list(open_source(tmp_path / "x.bin"))) == 2  # by its content


def test_further_pictures_of_a_sample_are_left_out_and_counted(tmp_path: Path) -> None:
    """`a.edge.png` and `a.seg.png` belong to `a`, wherever they stand in it; so do captions."""
    files = {
        "a.edge.png": encoded(8),
        "a.cls": b"1",
        "a.jpg.md5": b"x",
        "a.png": encoded(0),
        "a.seg.png": encoded(9),
        "b.seg.txt": b"x",
        "b.png": encoded(1),
        "b.txt": b"bee",
        "inner.tar": b"x",
        "c.txt": b"a caption without a picture",
    }
    source = open_source(make_tar(tmp_path / "x.tar", files))
    assert same(list(source), [Picture(pixels(0), "a.png", None, 1), Picture(pixels(1), "b.png", "bee")])
    assert source.notes == {
        "PNG files": 2,
        "further pictures of a sample left out": 2,
        "files that are no pictures left out": 3,
        "archives among the pictures left out": 1,
    }
    refused(
        make_tar(tmp_path / "x.tar", {"a.png": encoded(), "a.jpg": encoded()}), "member a.jpg, is a second picture of a"
    )


def test_shards_by_pattern_glob_and_folder(tmp_path: Path) -> None:
    for i in range(12):
        make_tar(tmp_path / f"data-{i:03d}.tar", {f"{k}.png": encoded(10 * i + k) for k in range(2)})
    expected = [Picture(pixels(10 * i + k), f"data-{i:03d}.tar/{k}.png") for i in range(12) for k in range(2)]
    for given in (f"{tmp_path}/data-{{000..011}}.tar", f"{tmp_path}/data-*.tar", tmp_path):
        source = open_source(given, workers=2)
        assert same(list(source), expected)
        assert same(list(part(source, 1, 5)), expected[1::5])
        assert same(list(source.pick(["data-003.tar/1.png"]).values()), [expected[7]])
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / "deep" / name).parent.mkdir(parents=True)
        make_tar(tmp_path / "deep" / name, {"x.png": encoded()})
    assert [p.key for p in open_source(tmp_path / "deep")] == ["a/0.tar/x.png", "b/0.tar/x.png"]
    assert next(p.key for p in open_source(f"{tmp_path}/data-{{003..004}}.tar")) == "data-003.tar/0.png"
    refused(f"{tmp_path}/data-{{000..012}}.tar", "there is no file .*data-012.tar")
    refused(f"{tmp_path}/no-*.tar", "no file is called .*no-\\*.tar; check the pattern")
    (tmp_path / "a.png").write_bytes(encoded())
    refused(f"{tmp_path}/*.png", "names .*a.png, which is no tar")
    beside = open_source(tmp_path)  # of pictures and archives, the pictures
    assert [p.key for p in beside] == ["a.png"] and beside.notes["archives among the pictures left out"] == 14


def test_patterns() -> None:
    assert [p.name for p in shards_of("d-{8..11}.tar")] == ["d-8.tar", "d-9.tar", "d-10.tar", "d-11.tar"]
    assert [str(p) for p in shards_of("{0..1}/{00..01}.tar")] == ["0/00.tar", "0/01.tar", "1/00.tar", "1/01.tar"]
    for bad in ("{0..999999999999}.tar", "{0..99999}{0..99999}.tar", "{5..4}.tar"):
        with pytest.raises(UsageError, match=r"stands for -?\d+ files; between 1 and"):
            shards_of(bad)


def test_errors_name_the_tar_and_the_member(tmp_path: Path) -> None:
    refused(make_tar(tmp_path / "x.tar", {}), "x.tar holds no pictures")
    refused(make_tar(tmp_path / "x.tar", {"a.txt": b"x"}), "x.tar holds no pictures")
    refused(make_tar(tmp_path / "x.tar", {"a.png": b"x"}), "x.tar, member a.png cannot be read as a picture")
    refused(
        make_tar(tmp_path / "x.tar", {"a.png": encoded(), "a.json": b"{"}), "x.tar, member a.json, is not understood"
    )
    refused(
        make_tar(tmp_path / "x.tar", {"a.png": encoded(), "a.txt": b"\xff"}), "x.tar, member a.txt, is not understood"
    )
    refused(
        make_tar(tmp_path / "x.tar.bz2", {"a.png": encoded()}, "w:bz2"), "packed with bzip2; unpack it to a plain .tar"
    )
    refused(make_tar(tmp_path / "x.tar.xz", {"a.png": encoded()}, "w:xz"), "packed with xz")
