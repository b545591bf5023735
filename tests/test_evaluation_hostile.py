"""Files that lie: each is refused in one line that names it; nothing is written, executed, or waited for."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_sources_help import encoded, make_tar, make_zip, pixels, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin

from pilotage.errors import UsageError
from pilotage.evaluation import open_source
from pilotage.evaluation.sources.limits import PIXELS, SMALL_BYTES

ESCAPES = ["../x.png", "a/../../x.png", "/etc/x.png", "a\\..\\x.png", "C:x.png", "line\nbreak.png", "nul\x01.png"]


@pytest.fixture(autouse=True)
def _nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working and the temporary folder stay empty."""
    for name, use in (("work", monkeypatch.chdir), ("temporary", lambda p: monkeypatch.setenv("TMPDIR", str(p)))):
        (tmp_path / name).mkdir()
        use(tmp_path / name)
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert not list((tmp_path / "work").iterdir()) and not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path.parent / "x.png").exists()


# -- zips -----------------------------------------------------------------------------------------------------------


def entry(path: Path, name: str, content: bytes, change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """A zip of one member, made with an eye on its header."""
    info = zipfile.ZipInfo(name)
    if change:
        change(info)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(info, content)
    return path


def patched(path: Path, signature: bytes, offset: int, value: bytes) -> Path:
    """Bytes of the last header of that signature replaced."""
    content = bytearray(path.read_bytes())
    at = content.rindex(signature) + offset
    content[at : at + len(value)] = value
    path.write_bytes(content)
    return path


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


@pytest.mark.parametrize("name", ESCAPES)
def test_zip_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    refused(make_zip(tmp_path / "x.zip", {"a.png": encoded(), name: b"x"}), "x.zip, member .*, is not a name inside")


def test_zip_members_of_other_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"

    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    refused(entry(path, "a.png", b"/etc/passwd", link), "member a.png, is a link or a device; pack the picture itself")
    entry(path, "a.png", encoded())
    for signature, offset in ((LOCAL, 6), (CENTRAL, 8)):
        patched(path, signature, offset, b"\x01\x00")
    refused(path, "member a.png, is encrypted; pack it without a password")
    for method, number in ((zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)):
        refused(
            make_zip(path, {"a.png": encoded()}, method), f"member a.png, is packed by method {number}; pack it stored"
        )


def test_zip_members_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed.writestr("a.png", encoded(0))
        packed.writestr("a.png", encoded(1))
    refused(tmp_path / "x.zip", "member a.png, is there twice")


def test_zip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    zeros = bytes(SMALL_BYTES + 1)
    refused(make_zip(path, {"a.bmp": zeros}, zipfile.ZIP_DEFLATED), r"member a.bmp, unpacks \d+ bytes to \d+: a bomb")
    blank = encoded(kind="BMP", array=np.zeros((512, 512, 3), np.uint8))
    assert len(list(open_source(make_zip(path, {"a.bmp": blank}, zipfile.ZIP_DEFLATED)))) == 1  # blank is no bomb
    monkeypatch.setattr("pilotage.evaluation.sources.zip_archive.TOTAL_BYTES", 2**22)
    many = {f"{i}.bmp": bytes(2**19) for i in range(12)}
    refused(make_zip(path, many, zipfile.ZIP_DEFLATED), r"x.zip of \d+ bytes unpacks to \d+: a bomb")
    # members that share their bytes: the directory says more packed bytes than the file has
    patched(entry(path, "a.png", encoded()), CENTRAL, 20, struct.pack("<II", 10**6, 10**6))
    refused(path, r"x.zip of \d+ bytes unpacks to 1000000: a bomb")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("by", [-20, 20])
def test_zip_sizes_that_lie(tmp_path: Path, method: int, by: int) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": encoded()}, method)
    size = len(encoded()) + by
    patched(path, CENTRAL, 24, struct.pack("<I", size))
    refused(path, "member a.png cannot be unpacked .*; it is cut off or damaged")


def test_zip_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 and then nothing")
    refused(path, "x.zip cannot be unpacked .*; it is cut off or damaged, copy it again")
    path.write_bytes(b"")
    refused(path, "x.zip cannot be unpacked")
    make_zip(path, {"a.png": encoded()})
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, "x.zip cannot be unpacked")


# -- tars -----------------------------------------------------------------------------------------------------------


def tar_of(path: Path, *infos: tarfile.TarInfo, end: bytes = bytes(1024), form: int = tarfile.GNU_FORMAT) -> Path:
    """Headers as they are, each with zeros for its content up to 2048 bytes."""
    blocks = [info.tobuf(form) + bytes(min(max(info.size, 0), 2048) // 512 * 512) for info in infos]
    path.write_bytes(b"".join(blocks) + end)
    return path


def info(name: str = "a.png", **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize("name", ESCAPES)
def test_tar_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = make_tar(tmp_path / "x.tar", {"a.png": encoded(), name: b"x"}, format=form)
        refused(path, "x.tar, member .*, is not a name inside the archive")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
def test_tar_members_of_other_kinds(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "x.tar", info(type=kind, linkname="/etc/passwd"))
    refused(path, "x.tar, member a.png, is a link, a device or a sparse file; pack the picture itself")


def test_tar_members_of_one_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        for name in ("a.png", "./a.png"):
            packed.addfile(info(name, size=len(encoded())), io.BytesIO(encoded()))
    refused(tmp_path / "x.tar", "member ./a.png, is there twice")


@pytest.mark.parametrize("size", [-512, -(2**62), 2**40, 2**62])
def test_tar_sizes_that_cannot_be(tmp_path: Path, size: int) -> None:
    """Negative ones send a reader that trusts them back to the header it came from, for ever."""
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        path = tar_of(tmp_path / "x.tar", info(type=kind, size=size))
        refused(path, r"x.tar, member a.png, has -?\d+ bytes, which cannot be|claims more than it has")
    refused(tar_of(tmp_path / "x.tar", info(size=100_000)), "claims more than it has")


@pytest.mark.parametrize(
    "record",
    [b"10 size=-1\n", b"0 path=x\n", b"99 path=x\n", b"path", b"-5 a=b\n", b"9 path x\n", b" " * 9, b"10 size=a1\n"],
)
def test_tar_long_headers_that_lie(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "x.tar"
    header = info("long", type=tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(header + record.ljust(512, b"\0") + info().tobuf() + bytes(1024))
    refused(path, "x.tar")


def test_tar_cut_off_anywhere_is_said(tmp_path: Path) -> None:
    """Also between two members, where readers end quietly with fewer pictures."""
    whole = make_tar(tmp_path / "x.tar", {f"{i}.png": encoded(i) for i in range(3)}).read_bytes()
    member = 512 + -(-len(encoded()) // 512) * 512
    for cut in (0, 1, 511, 512, 600, member, member + 512, 3 * member, 3 * member + 511):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        refused(tmp_path / "x.tar", "x.tar cannot be read as a tar .*; it is cut off or damaged, copy it again")
        (tmp_path / "x.tgz").write_bytes(gzip.compress(whole[:cut]))
        refused(tmp_path / "x.tgz", "x.tgz cannot be read as a tar .it ends too early.; it is cut off or damaged")
    (tmp_path / "x.tar").write_bytes(whole[:member] + b"\xff" * 512 + whole[member + 512 :])
    refused(tmp_path / "x.tar", "x.tar cannot be read as a tar .*; it is cut off or damaged")
    zipped = gzip.compress(whole)
    (tmp_path / "x.tgz").write_bytes(zipped[: len(zipped) // 2])
    refused(tmp_path / "x.tgz", "x.tgz cannot be read as a tar")


def test_gzip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotage.evaluation.sources.tar_reader.TOTAL_BYTES", 2**20)
    make_tar(tmp_path / "x.tgz", {f"{i}.bmp.md5": bytes(2**20) for i in range(8)}, "w:gz")
    refused(tmp_path / "x.tgz", "claims more than it has")


# -- arrays ---------------------------------------------------------------------------------------------------------


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def head(shape: str, kind: str = "'|u1'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (head("(99999999999, 9, 9, 3)"), "is cut off: uint8 .* does not fit into its"),
        (head(f"({2**63}, {2**63}, 9, 3)"), "is cut off"),
        (head("(-1, 9, 9, 3)"), "is cut off"),
        (head("(1, -9, -9, 3)"), "is cut off"),
        (head("(1, 1, 1, 3)", "'|O'"), "holds pickled objects, which are never loaded"),
        (head("(1, 1, 1, 3)", "[('a', '|O')]"), "holds pickled objects, which are never loaded"),
        (head("(1, 1, 1, 3)", "'|V3'"), "cut off|holds .*V3"),
        (head("(1, 1, 1, 3)", "'nonsense'"), "cannot be read as an array"),
        ("__import__('os').mkdir('hacked')", "cannot be read as an array"),
        ("(" * 110, "cannot be read as an array"),
        ("{", "cannot be read as an array"),
    ],
)
def test_array_headers_that_lie(tmp_path: Path, header: str, says: str) -> None:
    (tmp_path / "x.npy").write_bytes(npy(header, bytes(3)))
    refused(tmp_path / "x.npy", "x.npy.*(" + says + ")")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        make_zip(tmp_path / "x.npz", {"arr_0.npy": npy(header, bytes(3))}, method)
        refused(tmp_path / "x.npz", "x.npz.*(" + says + ")")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.npy").write_bytes(npy(header, bytes(3)))
    refused(tmp_path / "f", "x.npy")


class Trap:
    """Makes a folder when unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hacked",)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    trap = np.empty((1, 1, 1, 3), dtype=object)
    trap[...] = Trap()
    np.save(tmp_path / "x.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "x.npz", trap)
    np.savez_compressed(tmp_path / "y.npz", images=np.zeros((1, 2, 2, 3), np.uint8), labels=trap[0, 0, 0, :1])
    for name in ("x.npy", "x.npz", "y.npz"):
        refused(tmp_path / name, f"{name}.*holds pickled objects, which are never loaded")
    (tmp_path / "x.pkl").write_bytes(b"cos\nmkdir\n(S'hacked'\ntR.")
    refused(tmp_path / "x.pkl", "x.pkl is a file, not a folder of pictures nor a zip, tar, npz or npy")


# -- pictures -------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100)))


def test_pictures_of_too_many_pixels(tmp_path: Path) -> None:
    side = int(PIXELS**0.5)
    for width, height, says in [
        (side + 1, side, f"x.png has {side + 1} x {side} pixels, more than {PIXELS}; scale it down"),
        (2**31 - 1, 2**31 - 1, "x.png cannot be read as a picture"),
    ]:
        (tmp_path / "f").mkdir(exist_ok=True)
        (tmp_path / "f" / "x.png").write_bytes(png(width, height))
        refused(tmp_path / "f", says)
        refused(make_zip(tmp_path / "x.zip", {"x.png": png(width, height)}), "x.zip, member " + says)


def test_formats_that_start_programs_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to an interpreter, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("the interpreter was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(hacked) (w) file closefile\nshowpage\n"
    refused(make_zip(tmp_path / "x.zip", {"a.png": script}), "member a.png cannot be read as a picture")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(script)
    refused(tmp_path / "f", "a.png cannot be read as a picture")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_pipes_and_odd_names_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")  # reading it would wait for ever
    (folder / "loop").symlink_to(folder)
    (folder / "a.png").write_bytes(encoded())
    assert [p.key for p in open_source(folder)] == ["a.png"]
    (folder / "line\nbreak.png").write_bytes(b"")
    refused(folder, r"line\\nbreak.png' cannot be read as a picture")
    refused("nul\0.png", "cannot be opened|there is no folder")
    refused("x" * 5000, "cannot be opened|there is no folder")


# -- anything at all ------------------------------------------------------------------------------------------------


def _samples() -> dict[str, bytes]:
    """A small file of each kind, by its name."""
    files = {f"{i}.png": encoded(i) for i in range(2)} | {"1.txt": b"text", "captions.csv": b"file,caption\n0.png,x\n"}
    batch = np.stack([pixels(i) for i in range(2)])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_zip(place / "stored.zip", files)
        make_zip(place / "packed.zip", files, zipfile.ZIP_DEFLATED)
        make_tar(place / "pax.tar", files | {"x" * 120 + ".png": encoded()}, format=tarfile.PAX_FORMAT)
        make_tar(place / "gnu.tgz", files | {"x" * 120 + ".png": encoded()}, "w:gz", format=tarfile.GNU_FORMAT)
        np.savez(place / "stored.npz", batch, np.arange(2))
        np.savez_compressed(place / "packed.npz", batch, np.arange(2))
        np.save(place / "batch.npy", batch)
        for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"):
            (place / f"a.{kind.lower()}").write_bytes(encoded(kind=kind))
        return {path.name: path.read_bytes() for path in place.iterdir()}


SAMPLES = _samples()
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)


@settings(max_examples=400, deadline=timedelta(seconds=10), database=None, derandomize=True)
@given(name=st.sampled_from(sorted(SAMPLES)), changes=CHANGES, cut=st.one_of(st.none(), st.floats(0, 1)))
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[float, int]], cut: float | None
) -> None:
    """Flipped bytes and lost ends: pictures, or one line; never another error, never for long."""
    content = bytearray(SAMPLES[name])
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    content = content if cut is None else content[: int(cut * len(content))]
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(content)
    is_picture = name.startswith("a.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for picture in open_source(folder if is_picture else folder / name):
                assert picture.pixels.dtype == np.uint8 and picture.pixels.ndim == 3
    except UsageError as error:
        assert "\n" not in str(error) and name in str(error)
