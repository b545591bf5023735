"""Pictures of strangers: `rerun` of a PNG opens, writes and downloads nothing that the PNG names, and no file that only
looks like a picture does any harm."""

from __future__ import annotations

import builtins
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generation_tools import pilotage, tiny_folder
from hostile_tools import DRAWN, drawn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pilotage.errors import UsageError
from pilotage.finetune.rewards import open_rewards
from pilotage.generation import RunSpec, generate, read_png, rerun
from pilotage.generation.call import read_picture
from pilotage.generation.consent import PICTURES, STEPS, THREADS
from pilotage.generation.metadata import KEY, PIXELS
from pilotage.generation.pictures import Sample
from pilotage.generation.saving import save_png

SPEC: dict[str, Any] = dict(prompts=["a red star"], seeds="3", steps=2, batch_size=1, threads=1)
HEAD = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*texts: bytes, size: tuple[int, int] = (32, 32), pixels: bytes | None = None) -> bytes:
    """A PNG with chunks as they are before the pixels."""
    rows = b"".join(b"\0" + bytes(3 * size[0]) for _ in range(size[1])) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return HEAD + head + b"".join(texts) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def ztext(text: bytes, key: bytes = KEY.encode()) -> bytes:
    return chunk(b"zTXt", key + b"\0\0" + zlib.compress(text, 9))


def itext(text: bytes, key: bytes = KEY.encode()) -> bytes:
    return chunk(b"iTXt", key + b"\0\1\0\0\0" + zlib.compress(text, 9))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an honest PNG says."""
    path = tmp_path_factory.mktemp("honest") / "000000.png"
    spec = RunSpec(**SPEC)
    (sample,) = generate(spec)
    assert isinstance(sample, Sample)
    save_png(path, sample, spec, {"revision": "", "inputs": {}, "versions": {}, "threads": 1, "device": "cpu"})
    with Image.open(path) as opened:
        told: dict[str, Any] = json.loads(opened.text[KEY])
    return told


def written(path: Path, found: dict[str, Any], **changes: Any) -> Path:
    """A PNG that says so; "spec.model" reaches inside."""
    told = json.loads(json.dumps(found))
    for name, value in changes.items():
        block, dot, key = name.partition("__")
        (told[block] if dot else told)[key or block] = value
    path.write_bytes(png(ztext(json.dumps(told).encode())))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every path that is opened, listed or asked for meanwhile."""
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(path: Any, *more: Any, **named: Any) -> Any:
            if isinstance(path, (str, bytes, os.PathLike)):
                seen.append(os.fsdecode(path))
            return real(path, *more, **named)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in (
        (builtins, "open"),
        (os, "stat"),
        (os, "open"),
        (os, "listdir"),
        (os, "scandir"),
        (os, "mkdir"),
    ):
        watch(owner, name)
    yield seen


# -- what it may ask for ----------------------------------------------------------------------------------------------

SECRET = "/secret/place"
OUTSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"spec__model": SECRET}, "the model '/secret/place'"),
    "model below": ({"spec__model": "../secret/place"}, "the model"),
    "model of a share": ({"spec__model": "\\\\host\\secret"}, "the model"),
    "model at home": ({"spec__model": "~/secret"}, "the model"),
    "weak": ({"spec__weak": SECRET}, "the weak"),
    "lora": ({"spec__lora": SECRET + "/lora.safetensors"}, "the lora"),
    "image": ({"spec__image": SECRET + ".png"}, "the file '/secret/place.png' as image"),
    "mask": ({"spec__image": SECRET, "spec__mask": SECRET}, "as mask"),
    "teleport": ({"spec__teleport": SECRET}, "as teleport"),
    "rule": ({"spec__guidance": f"cfg:scale=3 + linear:file={SECRET}"}, "in guidance"),
    "rule, quoted": ({"spec__guidance": f"cfg:scale=3 + policy:file='{SECRET}'"}, "in guidance"),
    "grid": ({"spec__grid": f"fitted:file={SECRET}"}, "in grid"),
    "grid here": ({"spec__grid": "fitted:file=secret"}, "in grid"),
    "call": ({"spec__call": {"num_images_per_prompt": 10**6}}, "arguments of the pipeline's call"),
    "compile": ({"spec__memory": {"compile": "inductor"}}, "compiled"),
    "steps": ({"spec__steps": STEPS + 1}, "1001 steps"),
    "batch": ({"batch__pictures": PICTURES + 1}, "65 pictures in its batch"),
    "threads": ({"run__threads": THREADS + 1}, "257 threads"),
    "width": ({"spec__width": 16384}, "16384 pixels in width"),
    "repeats": ({"spec__sampler": "restart:repeats=1000000"}, "restart:repeats=1000000"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_stranger_is_refused_before_anything_is_looked_for(
    tmp_path: Path, found: dict[str, Any], opened: list[str], name: str
) -> None:
    changes, message = OUTSIDE[name]
    path = written(tmp_path / "x.png", found, **changes)
    opened.clear()
    for act in (lambda: rerun(path), lambda: read_png(path, trust=False)):
        with pytest.raises(UsageError) as told:
            act()
        assert message in str(told.value) and "--trust" in str(told.value) and str(told.value).isprintable()
    assert not [seen for seen in opened if "secret" in seen]
    assert pilotage("rerun", str(path)) == pilotage("rerun", str(path), "--dry-run") == 2
    assert not [seen for seen in opened if "secret" in seen] and [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_trust_opens_what_is_named(tmp_path: Path, found: dict[str, Any]) -> None:
    path = written(tmp_path / "x.png", found, spec__model=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="there is no model"):
        rerun(path, trust=True)
    path = written(path, found, spec__model=tiny_folder(), spec__width=16, spec__height=16)
    with pytest.raises(UsageError, match="--trust"):
        rerun(path)
    assert rerun(path, trust=True).file.is_file()


def test_what_the_caller_gives_himself_needs_no_trust(tmp_path: Path, found: dict[str, Any]) -> None:
    path = written(tmp_path / "x.png", found, spec__model=SECRET, spec__grid=f"fitted:file={SECRET}")
    assert rerun(path, {"model": "embedded", "grid": None}).largest is None
    with pytest.raises(UsageError, match="in grid; if"):
        rerun(path, {"model": "embedded"})


def test_nothing_is_downloaded_or_written_because_metadata_say_so(
    tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def from_pretrained(name: str, **settings: Any) -> Any:
        asked.append(settings["local_files_only"])
        raise OSError("not here")

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", from_pretrained)
    outside = {"spec__output": str(tmp_path / "out"), "spec__preview_every": 1, "spec__allow_download": True}
    path = written(tmp_path / "x.png", found, spec__model="owner/name", **outside)
    with pytest.raises(UsageError, match="not in the local cache"):
        rerun(path)
    assert asked == [True] and not (tmp_path / "out").exists()
    record, _ = read_png(path)
    assert (record.spec.output, record.spec.preview_every, record.spec.allow_download) == (None, 0, False)
    with pytest.raises(UsageError, match="cannot download"):
        rerun(path, {"allow_download": True})  # the caller's own word
    assert asked == [True, False]


def test_a_folder_of_a_hub_ids_name_is_a_folder(
    tmp_path: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UsageError, match="the model 'owner/name'"):
        rerun(written(tmp_path / "x.png", found, spec__model="owner/name"))


def test_an_honest_picture_is_made_again_without_a_word(tmp_path: Path, found: dict[str, Any]) -> None:
    made = rerun(written(tmp_path / "x.png", found), output=tmp_path / "again.png")
    assert rerun(tmp_path / "again.png", output=tmp_path / "third.png").largest == 0 and made.file.is_file()


# -- metadata that lie ------------------------------------------------------------------------------------------------

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def refused_or_read(path: Path) -> None:
    try:
        read_png(path, trust=False)
    except UsageError as error:
        assert str(error).isprintable()


@DRAWN
def test_any_value_anywhere_in_the_metadata(tmp_path: Path, found: dict[str, Any], share: float) -> None:
    blocks = [*found, *(f"{b}__{key}" for b in ("spec", "batch", "run") for key in [*found[b], "self", "x"])]

    @drawn(150, share)
    @given(changes=st.dictionaries(st.sampled_from(blocks), JSON, max_size=2))
    def check(changes: dict[str, Any]) -> None:
        order = sorted(changes, key=lambda name: "__" not in name)  # whole blocks last
        refused_or_read(written(tmp_path / "x.png", found, **{name: changes[name] for name in order}))

    check()


@DRAWN
def test_any_text_as_metadata(tmp_path: Path, share: float) -> None:
    @drawn(100, share)
    @given(text=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
    def check(text: bytes) -> None:
        for kind in (ztext, itext):
            (tmp_path / "x.png").write_bytes(png(kind(text)))
            refused_or_read(tmp_path / "x.png")

    check()


@pytest.mark.parametrize("value", [2.5, "x", True, [3], "\ud800"])
def test_arguments_of_the_call_that_are_no_table(tmp_path: Path, found: dict[str, Any], value: Any) -> None:
    with pytest.raises(UsageError, match="arguments of the pipeline's call"):
        read_png(written(tmp_path / "x.png", found, spec__call=value), trust=False)


def test_terminal_codes_in_metadata_are_not_obeyed(
    tmp_path: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "x.png", found, run__versions={"\x1b[2J": "\x1b]0;title\x07"}, run__revision="\x1b[31m")
    assert pilotage("rerun", str(path)) == 0
    told = "".join(capsys.readouterr())
    assert "note: " in told and "\x1b" not in told and "\x07" not in told


@pytest.mark.parametrize(
    "texts",
    [
        [ztext(bytes(10**8))], [itext(bytes(10**8))], [ztext(b"[" * 10**6)], [itext(b'{"a":' * 10**5)],
        [ztext(bytes(10**6), b"k%d" % i) for i in range(80)], [ztext(b"9" * 10**6)], [chunk(b"zTXt", b"pilotage")],
        [chunk(b"zTXt", b"pilotage\0\0not packed")], [chunk(b"iTXt", b"pilotage\0\1")],
        [chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8)))],
        [chunk(b"zTXt", b"pilotage\0\7" + zlib.compress(b"{}"))], [chunk(b"tEXt", b"\0" * 10**6)],
    ],
)  # fmt: skip
def test_bombs_in_text_chunks(tmp_path: Path, texts: list[bytes]) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(*texts))
    begun = time.perf_counter()
    with pytest.raises(UsageError):
        rerun(path)
    assert time.perf_counter() - begun < 3


# -- files that are no pictures ---------------------------------------------------------------------------------------


def bombs(folder: Path) -> dict[str, Path]:
    side = 2**14
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    vast = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0))
    whole = png()
    content = {
        "empty.png": b"", "text.png": b"no picture", "head.png": HEAD, "cut.png": whole[:-30],
        "cut-early.png": whole[:40],
        "bomb.png": HEAD + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""),
        "vast.png": HEAD + vast + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "crc.png": whole[:40] + b"\0" + whole[41:], "zero.png": png(size=(0, 0)),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file closefile\nshowpage\n",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>",
        "bomb.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        "cut.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0", "cut.webp": b"RIFF\x20\0\0\0WEBPVP8 ",
        "x.tif": b"II*\0\xff\xff\xff\xff",
        "x.fits": b"SIMPLE  =                    T" + b" " * 2850, "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(40),
    }  # fmt: skip
    for name, inside in content.items():
        (folder / name).write_bytes(inside)
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    names = [*content, "folder.png", "loop.png", "missing.png", "x" * 300 + ".png", "nul\0.png"]
    return {name: folder / name for name in names}


def test_image_and_mask_of_any_kind_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("another program was started"))
    for path in bombs(tmp_path).values():
        begun = time.perf_counter()
        with pytest.raises(UsageError) as told:
            read_picture(str(path))
        assert str(told.value).isprintable()
        with pytest.raises(UsageError):
            open_rewards(f"similarity:reference='{path}'" if "\0" not in str(path) else "similarity:reference=x")
        with pytest.raises(UsageError):
            rerun(path)
        assert time.perf_counter() - begun < 3


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    side = int(PIXELS**0.5) + 1
    path = tmp_path / "x.png"
    path.write_bytes(png(size=(side, side), pixels=bytes(10)))
    for read in (read_png, lambda p: read_picture(str(p))):
        with pytest.raises(UsageError, match=f"{side} x {side} pixels"):
            read(path)


@DRAWN
def test_a_damaged_picture_is_read_or_refused(tmp_path: Path, share: float) -> None:
    @drawn(150, share)
    @given(at=st.integers(8, 200), new=st.binary(min_size=1, max_size=8), cut=st.none() | st.integers(0, 300))
    def check(at: int, new: bytes, cut: int | None) -> None:
        whole = bytearray(png(ztext(b"{}")))
        whole[at : at + len(new)] = new
        (tmp_path / "x.png").write_bytes(bytes(whole[:cut]))
        for read in (lambda: read_picture(str(tmp_path / "x.png")), lambda: read_png(tmp_path / "x.png")):
            try:
                read()
            except UsageError as error:
                assert str(error).isprintable()

    check()
