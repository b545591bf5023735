"""Sources: which pictures, in which order, with which captions; and what is refused, naming the file."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from pilotage.errors import UsageError
from pilotage.evaluation import ImageSource, Picture, open_source
from pilotage.evaluation.sources import size_of


def pixels(seed: int = 0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray | None = None, chunk: str | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if chunk is not None:
        info.add_text("pilotage", chunk)
    Image.fromarray(pixels() if array is None else array).save(path, **({"pnginfo": info} if chunk else {}), **options)
    return path


def refused(source: Any, says: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        list(open_source(source, **options))
    assert "\n" not in str(caught.value)


# -- folders --------------------------------------------------------------------------------------------------------


def test_folder_is_read_below_in_posix_order(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.png", "a.PNG", "b/10.png", "c.bmp", ".hidden.png", "notes.md"]):
        if name.endswith("md"):
            (tmp_path / name).write_text("no picture")
        else:
            save(tmp_path / name, pixels(i))
    source = open_source(tmp_path)
    assert size_of(source) == 4 and isinstance(source, ImageSource)
    found = list(source)
    assert [picture.key for picture in found] == ["a.PNG", "b/10.png", "b/2.png", "c.bmp"]
    assert (found[0].pixels == pixels(1)).all() and found[0].pixels.dtype == np.uint8
    assert [p.key for p in source] == [p.key for p in found] and source.notes["PNG files"] == 3


def test_npy_pictures_are_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pixels())
    assert (next(iter(open_source(tmp_path))).pixels == pixels()).all()
    np.save(tmp_path / "y.npy", pixels().astype(float))
    refused(tmp_path, "y.npy must be uint8")
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path, "y.npy cannot be read")


def test_run_folder_gives_its_finished_pictures_only(tmp_path: Path) -> None:
    for name in ("000000.png", "000001.png", "preview.png"):
        save(tmp_path / "run" / name)
    save(tmp_path / "sheet.png")
    lines = [json.dumps({"file": f"00000{i}.png"}) for i in range(3)]
    (tmp_path / "run" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    source = open_source(tmp_path)
    assert [p.key for p in source] == ["run/000000.png", "run/000001.png"]
    assert source.notes["pictures of the manifest are missing"] == 1
    for bad, says in [('{"file": "../../etc/x.png"}', "is not in its folder"), ("{", "line 1, names no file")]:
        (tmp_path / "run" / "manifest.jsonl").write_text(bad)
        refused(tmp_path, says)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "there is no folder .*gone")
    refused(tmp_path, "holds no pictures")
    refused(save(tmp_path / "x.png"), "is a file, not a folder")


# -- captions -------------------------------------------------------------------------------------------------------


def texts(source: Any, **options: Any) -> list[str | None]:
    return [picture.text for picture in open_source(source, **options)]


def test_captions_from_the_png_itself(tmp_path: Path) -> None:
    chunks = ['{"prompt": "two red stars", "seed": 3}', "{broken", '["prompt"]', '{"prompt": 3}', "[" * 100_000]
    for i, chunk in enumerate(chunks):
        save(tmp_path / f"{i}.png", chunk=chunk)
    save(tmp_path / "9.png")
    source = open_source(tmp_path)
    assert [p.text for p in source] == ["two red stars", None, None, None, None, None]
    assert source.notes["metadata without a prompt"] == 4


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c/d.png"):
        save(tmp_path / name, chunk='{"prompt": "its own"}')
    (tmp_path / "captions.csv").write_text('file,caption\nc/d.png,"a, b"\na.png,first\nb.png,\n')
    assert texts(tmp_path) == ["first", "its own", "a, b"]
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "prompts.txt").write_text("one\ntwo\n\nthree\n")
    assert texts(tmp_path) == ["one", "two", "three"]
    assert texts(tmp_path, captions=["x", "y", "z"]) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompts.txt", b"only one", "1 lines for 2 pictures"),
        ("prompts.txt", b"\xff\xfe", "prompts.txt cannot be read"),
        ("captions.csv", b"a,b\n1,2\n", "needs the columns file,caption"),
        ("captions.csv", b"file,caption\nz.png,x\n", "names none of the pictures, such as 'a.png'"),
    ],
)
def test_captions_that_cannot_be_right(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, says)


def test_captions_must_be_as_many(tmp_path: Path) -> None:
    refused(np.zeros((3, 4, 4, 3), np.uint8), "3 pictures but 2 captions", captions=["a", "b"])
    refused(iter([pixels()] * 3), "3 pictures but 2 captions", captions=["a", "b"])
    refused(iter([pixels()] * 1), "1 pictures but 2 captions", captions=["a", "b"])


# -- modes ----------------------------------------------------------------------------------------------------------


def test_transparency_is_refused_or_laid_on_a_background(tmp_path: Path) -> None:
    rgba = np.dstack([pixels(), np.full((6, 6), 255, np.uint8)])
    save(tmp_path / "x.png", rgba)
    assert (next(iter(open_source(tmp_path))).pixels == pixels()).all()  # an opaque channel changes nothing
    rgba[0, 0, 3] = 0
    save(tmp_path / "x.png", rgba)
    refused(tmp_path, r"x.png is transparent; give a background")
    source = open_source(tmp_path, background=(9, 8, 7))
    found = next(iter(source)).pixels
    assert found[0, 0].tolist() == [9, 8, 7] and (found[1:] == pixels()[1:]).all()
    assert source.notes["transparent, laid on the background"] == 1
    palette = Image.fromarray(pixels()).convert("P")
    palette.save(tmp_path / "x.png", transparency=int(palette.getpixel((0, 0))))
    refused(tmp_path, "is transparent")


def test_other_modes_are_converted_and_counted(tmp_path: Path) -> None:
    grey = pixels()[:, :, 0]
    save(tmp_path / "grey.png", grey)
    save(tmp_path / "grey16.png", grey.astype(np.uint16) * 257)
    Image.fromarray(pixels()).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(pixels()).convert("CMYK").save(tmp_path / "cmyk.tiff")
    source = open_source(tmp_path)
    found = {p.key: p.pixels for p in source}
    assert (found["grey.png"] == grey[:, :, None]).all() and (found["grey16.png"] == grey[:, :, None]).all()
    assert {p.shape for p in found.values()} == {(6, 6, 3)}
    assert source.notes["greyscale converted to RGB"] == 1 and source.notes["16-bit converted to 8"] == 1
    assert source.notes["palette converted to RGB"] == 1 and source.notes["CMYK converted to RGB"] == 1
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tiff")
    refused(tmp_path, "float.tiff has 32-bit pixels")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.png", b""),
        ("text.png", b"<html>not found</html>"),
        ("cut.png", png(4, 4, chunk(b"IDAT", b"\x78"))),
        ("header.png", png(4, 4)),
        ("bomb.png", png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b"\0" * 100)))),
        ("textbomb.png", png(1, 1, chunk(b"zTXt", b"pilotage\0\0" + zlib.compress(b"\0" * 10**8)))),
        ("short.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF"),
        ("bad.tiff", b"II*\x00\xff\xff\xff\xff"),
        (
            "huge.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 9, 3)}".ljust(128),
        ),
    ],
)
def test_hostile_and_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, name)


# -- memory ---------------------------------------------------------------------------------------------------------


def test_arrays_and_tensors_in_either_layout() -> None:
    batch = np.stack([pixels(0), pixels(1)])
    for given in (batch, torch.from_numpy(batch), torch.from_numpy(batch).permute(0, 3, 1, 2)):
        source = open_source(given)
        assert size_of(source) == 2
        assert (np.stack([p.pixels for p in source]) == batch).all()
    floats = torch.from_numpy(batch).float() / 127.5 - 1
    assert (np.stack([p.pixels for p in open_source(floats, value_range=(-1, 1))]) == batch).all()
    refused(floats, "value_range")
    refused(torch.zeros(2, 4, 4, 4, dtype=torch.uint8), "N, 3, H, W")
    refused(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "empty")
    refused(3, "int is no source")


def test_iterators_of_many_kinds() -> None:
    items = [
        pixels(0),
        torch.from_numpy(pixels(1)).permute(2, 0, 1),
        (pixels(2), "a caption"),
        (np.stack([pixels(3), pixels(4)]), ["b", "c"]),
        Image.fromarray(pixels(5)),
        Picture(pixels(6), "mine", "d"),
    ]
    found = list(open_source(iter(items)))
    assert [p.key for p in found] == ["0", "1", "2", "3", "4", "5", "mine"]
    assert [p.text for p in found] == [None, None, "a caption", "b", "c", None, "d"]
    assert all((p.pixels == pixels(i)).all() for i, p in enumerate(found))
    refused(iter([]), "gave none")
    refused(iter([Image.new("RGBA", (3, 3))]), "picture 0 is transparent; give a background")
    refused(iter([np.zeros(3, np.uint8)]), "picture 0")


# -- the embedded world ---------------------------------------------------------------------------------------------


def test_embedded_world_is_a_source() -> None:
    world = pytest.importorskip("pilotage.zoo.world")
    source = open_source("embedded:test:5")
    found = list(source)
    assert size_of(source) == 5 and source.name == "embedded:test:5"
    assert [p.text for p in found] == world.captions(range(5), "test")
    assert (np.stack([p.pixels for p in found]) == world.pictures(range(5), "test")).all()
    assert size_of(open_source("embedded")) == 2000 and size_of(open_source("embedded:heldout")) == 2000
    for wrong in ("embedded:tets", "embedded:test:0", "embedded:test:x", "embedded:test:5:7"):
        refused(wrong, "embedded|split")
