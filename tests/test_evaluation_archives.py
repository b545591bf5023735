"""Zips and arrays in files: the same pictures, captions and labels as from a folder; parts, picks and threads."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle  # noqa: TID251 - what multiprocessing does to our own objects
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_sources_help import encoded, make_tar, make_zip, pixels, refused, same
from PIL import Image

from pilotage.errors import UsageError
from pilotage.evaluation import Picture, open_source
from pilotage.evaluation.sources import IndexedSource, items, part, size_of
from pilotage.evaluation.sources.pool import AHEAD, CHUNK, in_order


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES = {f"{name}.png": encoded(i) for i, name in enumerate(["b/2", "a", "b/10", "c"])}


# -- zips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"captions.csv": b"file,caption\nb/2.png,two\na.png,one\n"},
        {"prompts.txt": b"w\nx\ny\nz\n"},
        {"dataset.json": json.dumps({"labels": [["a.png", 3], ["b/2.png", [0.0, 1.0, 0.0]]]}).encode()},
        {"dataset.json": b'{"labels": null}'},
        {"b/manifest.jsonl": b'{"file": "2.png"}\n{"file": "gone.png"}\n'},
    ],
)
def test_a_zip_is_what_its_folder_is(tmp_path: Path, beside: dict[str, bytes], method: int) -> None:
    files = FILES | beside | {".hidden.png": b"x", "notes.md": b"x", "inner.zip": b"x"}
    folder = open_source(unpacked(tmp_path / "folder", files))
    packed = open_source(make_zip(tmp_path / "x.zip", files, method))
    found = list(packed)
    assert same(found, list(folder)) and packed.notes == folder.notes and len(found) == size_of(packed)
    assert [p.key for p in found] == (["b/2.png"] if "b/manifest.jsonl" in beside else sorted(FILES))
    assert packed.notes["archives among the pictures left out"] == 1 and packed.notes["PNG files"] == len(found)


def test_labels_and_captions_may_lie_in_the_one_folder_at_the_top(tmp_path: Path) -> None:
    files = {f"top/{name}": content for name, content in FILES.items()} | {
        "top/dataset.json": json.dumps({"labels": [["b/2.png", 7]]}).encode(),
        "top/captions.csv": b"file,caption\na.png,one\n",
    }
    found = {p.key: (p.text, p.label) for p in open_source(make_zip(tmp_path / "x.zip", files))}
    assert found["top/b/2.png"] == (None, 7) and found["top/a.png"] == ("one", None)


def test_labels_that_cannot_be_right(tmp_path: Path) -> None:
    for text, says in [
        ("{", "dataset.json is not understood"),
        ('{"labels": [["a.png", 0.5]]}', "0.5 is no class"),
        ('{"labels": [["z.png", 1]]}', "names none of the pictures, such as 'a.png'"),
        ("[" * 10_000, "dataset.json is not understood"),
    ]:
        refused(make_zip(tmp_path / "x.zip", FILES | {"dataset.json": text.encode()}), says)


def test_errors_in_a_zip_name_the_member(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "x.zip", {}), "x.zip holds no pictures")
    refused(make_zip(tmp_path / "x.zip", FILES | {"d/bad.png": b"no"}), "x.zip, member d/bad.png cannot be read as a")
    refused(make_zip(tmp_path / "x.zip", FILES | {"prompts.txt": b"a"}), "x.zip, member prompts.txt has 1 lines for 4")
    clear = encoded(array=np.zeros((3, 3, 4), np.uint8))
    refused(make_zip(tmp_path / "x.zip", {"t.png": clear}), "member t.png is transparent; give a background")
    assert len(list(open_source(tmp_path / "x.zip", background=(0, 0, 0)))) == 1


# -- arrays in files ------------------------------------------------------------------------------------------------

BATCH = np.stack([pixels(i) for i in range(5)])


def pictures_in(source: Any, **options: Any) -> np.ndarray:
    return np.stack([p.pixels for p in open_source(source, **options)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels_first", [False, True])
def test_npz_of_pictures_and_labels(tmp_path: Path, save: Any, channels_first: bool) -> None:
    batch = BATCH.transpose(0, 3, 1, 2) if channels_first else BATCH
    batch = np.ascontiguousarray(batch)
    save(tmp_path / "x.npz", batch, np.arange(5) * 2)
    found = list(open_source(tmp_path / "x.npz"))
    assert (np.stack([p.pixels for p in found]) == BATCH).all() and [p.label for p in found] == [0, 2, 4, 6, 8]
    assert [p.key for p in found] == list("01234")
    save(tmp_path / "y.npz", images=batch, labels=np.array(list("abcde")), mu=np.zeros(3), sigma=np.eye(3))
    assert [p.label for p in open_source(tmp_path / "y.npz")] == list("abcde")
    assert [k for k in open_source(tmp_path / "y.npz").pick(["3", "1"])] == ["1", "3"]
    save(tmp_path / "z.npz", batch, np.arange(4))
    refused(tmp_path / "z.npz", "5 pictures but 4 labels")


def test_npy_in_either_order_and_as_floats(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", BATCH)
    assert (pictures_in(tmp_path / "x.npy") == BATCH).all()
    (tmp_path / "x.npy").rename(tmp_path / "x.bin")
    assert (pictures_in(tmp_path / "x.bin") == BATCH).all()  # by its content
    np.save(tmp_path / "x.npy", np.asfortranarray(BATCH))
    assert (pictures_in(tmp_path / "x.npy") == BATCH).all()
    for kind in ("<f4", ">f4", "<f8", "<f2"):
        np.save(tmp_path / "x.npy", (BATCH / 255).astype(kind))
        assert (pictures_in(tmp_path / "x.npy", value_range=(0, 1)) == BATCH).all()
        refused(tmp_path / "x.npy", "holds floats; pass value_range")
    np.savez(tmp_path / "x.npz", np.asfortranarray(BATCH))
    assert (pictures_in(tmp_path / "x.npz") == BATCH).all()


def test_arrays_are_mapped_not_read(tmp_path: Path) -> None:
    """A sparse file of 200 GB of pictures opens at once and gives one of them."""
    shape = (1_000_000, 256, 256, 3)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        try:
            file.truncate(start + int(np.prod(shape)))
        except OSError:
            pytest.skip("the disk has no sparse files of this size")
    source = open_source(tmp_path / "x.npy")
    assert size_of(source) == 1_000_000 and next(items(source, [999_999])).pixels.shape == (256, 256, 3)


def test_what_is_no_picture_says_what_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(8), sigma=np.eye(8))
    refused(tmp_path / "a.npz", r"a.npz holds the mean and covariance of features \(mu, sigma\), no pictures; give the")
    (tmp_path / "a.npz").rename(tmp_path / "a.stats")
    refused(tmp_path / "a.stats", "holds the mean and covariance of features")
    np.savez(tmp_path / "b.npz", feats=np.zeros((3, 8)))
    refused(tmp_path / "b.npz", "holds features")
    np.savez(tmp_path / "c.npz", something=np.zeros(3))
    refused(tmp_path / "c.npz", "holds something, no pictures; call the array arr_0 or images")
    np.save(tmp_path / "d.npy", np.zeros((10, 8)))
    refused(tmp_path / "d.npy", r"float64 \(10, 8\), which are features or statistics, no pictures")
    np.save(tmp_path / "e.npy", pixels())
    refused(tmp_path / "e.npy", r"uint8 \(6, 6, 3\), no pictures; pictures are uint8 \(N, H, W, 3\)")
    np.save(tmp_path / "f.npy", BATCH.astype(np.int64))
    refused(tmp_path / "f.npy", "holds int64; pictures are uint8, or floats")
    np.save(tmp_path / "g.npy", BATCH[:0])
    refused(tmp_path / "g.npy", "g.npy has no pictures")


# -- parts, picks, processes ----------------------------------------------------------------------------------------


def every_source(folder: Path) -> list[Any]:
    files = {f"{i:02d}.png": encoded(i) for i in range(11)}
    batch = np.stack([pixels(i) for i in range(11)])
    np.savez(folder / "a.npz", batch)
    np.savez_compressed(folder / "b.npz", batch)
    np.save(folder / "c.npy", batch)
    paths = [unpacked(folder / "folder", files), make_zip(folder / "x.zip", files), make_tar(folder / "x.tar", files)]
    return [
        *paths,
        make_tar(folder / "x.tgz", files, "w:gz"),
        folder / "a.npz",
        folder / "b.npz",
        folder / "c.npy",
        batch,
    ]


def test_parts_are_disjoint_and_whole_for_every_source(tmp_path: Path) -> None:
    for given in [*every_source(tmp_path), "embedded:test:11"]:
        whole = list(open_source(given))
        for world in (1, 2, 3, 12):
            parts = [list(part(open_source(given), rank, world)) for rank in range(world)]
            for rank, found in enumerate(parts):
                assert same(found, whole[rank::world])
                size = size_of(part(open_source(given), rank, world))
                assert size == len(found) or (size is None and ".t" in str(given))
    with pytest.raises(UsageError, match="rank must be 0 to 1 of 2"):
        part(open_source(BATCH), 2, 2)


def test_items_and_picks_of_every_source(tmp_path: Path) -> None:
    for given in every_source(tmp_path):
        source = open_source(given)
        whole = list(source)
        notes = Counter(source.notes)
        assert same(list(source.items([0, 3, 4, 10, 99])), [whole[i] for i in (0, 3, 4, 10)])
        assert source.notes["PNG files"] == (4 if notes else 0)
        wanted = [whole[7].key, whole[2].key]
        picked = source.pick(wanted)
        assert list(picked) == wanted[::-1] and same(list(picked.values()), [whole[2], whole[7]])
        assert source.notes["PNG files"] == (4 if notes else 0)  # picking is no pass
        with pytest.raises(UsageError, match="has no picture nowhere"):
            source.pick([whole[0].key, "nowhere"])
        with pytest.raises(UsageError, match="must ascend"):
            list(source.items([3, 3]))


def test_iterators_are_skipped_and_not_read_further_than_asked() -> None:
    taken: list[int] = []

    def stream() -> Any:
        for i in itertools.count():
            taken.append(i)
            yield pixels(i)

    found = list(items(open_source(stream()), [1, 4]))
    assert [p.key for p in found] == ["1", "4"] and (found[1].pixels == pixels(4)).all() and taken[-1] == 4
    rest = part(open_source(iter([pixels(i) for i in range(5)])), 1, 2)
    assert [p.key for p in rest] == ["1", "3"] and size_of(rest) is None


def test_captions_of_ones_own_go_with_parts_and_picks(tmp_path: Path) -> None:
    for given in every_source(tmp_path)[:4]:
        source = open_source(given, captions=[f"c{i}" for i in range(11)])
        assert [p.text for p in source] == [f"c{i}" for i in range(11)] and source.notes["PNG files"] == 11
        assert [p.text for p in part(source, 1, 4)] == ["c1", "c5", "c9"] and source.notes["PNG files"] == 3
        assert [p.text for p in source.pick(["04.png", "03.png"]).values()] == ["c3", "c4"]
        short = [f"c{i}" for i in range(3)]
        refused(given, "captions", captions=short)


def _read(source: Any, indices: list[int], out: Any) -> None:
    out.put([(p.key, int(p.pixels.sum())) for p in source.items(indices)])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork")
def test_forked_processes_read_an_opened_source(tmp_path: Path) -> None:
    """Handles are opened anew, for they would share a place in the file."""
    context = multiprocessing.get_context("fork")
    for given in every_source(tmp_path)[:7]:
        source = open_source(given)
        expected = [(p.key, int(p.pixels.sum())) for p in source]
        reading = iter(source)
        assert next(reading).key == expected[0][0]
        out = context.Queue()
        mates = [context.Process(target=_read, args=(source, [1, 2, 9], out)) for _ in range(2)]
        for mate in mates:
            mate.start()
        assert [(p.key, int(p.pixels.sum())) for p in reading] == expected[1:]
        for mate in mates:
            assert out.get(timeout=60) == [expected[i] for i in (1, 2, 9)]
            mate.join()


def test_another_process_has_its_own_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race that a shared place in the file would be is too rare to wait for."""
    _, zipped, _, _, _, compressed, *_ = map(open_source, every_source(tmp_path))
    assert len(list(zipped)) == 11 and next(iter(compressed)).key == "0"
    handle, stream = zipped.archive._archive(), compressed.rows._stream
    assert zipped.archive._archive() is handle and compressed.rows._stream is stream
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert [p.key for p in compressed.items([5])] == ["5"] and compressed.rows._stream is not stream
    assert zipped.archive._archive() is not handle and len(list(zipped)) == 11


def test_sources_can_be_sent_to_processes(tmp_path: Path) -> None:
    for given in every_source(tmp_path)[:7]:
        source = open_source(given)
        whole = list(source)
        sent = pickle.dumps(source)
        assert same(list(pickle.loads(sent)), whole)
    np.save(tmp_path / "large.npy", np.zeros((100, 32, 32, 3), np.uint8))
    source = open_source(tmp_path / "large.npy")
    assert len(list(source)) == 100 and len(pickle.dumps(source)) < 2000  # no pixels


# -- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_keep_order_notes_and_the_place_of_errors(tmp_path: Path, workers: int) -> None:
    count = 3 * CHUNK + 5
    expected = [Picture(pixels(i), f"{i:03d}.png") for i in range(count)]

    def paths(files: dict[str, bytes]) -> list[Path]:
        folder = unpacked(tmp_path / "folder", files)
        return [folder, make_zip(tmp_path / "x.zip", files), make_tar(tmp_path / "x.tar", files)]

    files = {f"{i:03d}.png": encoded(i) for i in range(count)}
    for path in paths(files):
        source = open_source(path, workers=workers)
        assert same(list(source), expected) and source.notes == {"PNG files": count}
    for path in paths(files | {"020.png": b"broken", "025.png": b"broken"}):
        source, found = open_source(path, workers=workers), []
        with pytest.raises(UsageError, match=r"020.png cannot be read"):
            for picture in source:
                found.append(picture)
        assert same(found, expected[:20]) and source.notes == {"PNG files": 20}
        # notes count what was given, not what was decoded ahead
        assert len(list(itertools.islice(source, 3))) == 3 and source.notes == {"PNG files": 3}
    with pytest.raises(UsageError, match="workers must be 1 or more"):
        list(open_source(tmp_path / "folder", workers=0))


def test_threads_do_not_run_away_and_end_with_their_reader() -> None:
    begun = []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.0005)
        return i

    results = in_order(itertools.count(), work, workers=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.1)
    assert len(begun) <= (AHEAD * 3 + 2) * CHUNK
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_an_error_of_the_jobs_comes_after_their_results() -> None:
    def jobs() -> Any:
        yield from range(11)
        raise UsageError("the archive ends")

    for workers in (1, 2):
        found = []
        with pytest.raises(UsageError, match="the archive ends"):
            for result in in_order(jobs(), lambda i: i * i, workers):
                found.append(result)
        assert found == [i * i for i in range(11)]


def test_threads_decode_at_the_same_time(tmp_path: Path) -> None:
    """Two pictures are in work at once: a barrier of two passes only then."""
    barrier = threading.Barrier(2, timeout=20)

    class Meeting(IndexedSource):
        workers = 2

        def __len__(self) -> int:
            return 2 * CHUNK

        def key(self, index: int) -> str:
            return str(index)

        def read_one(self, index: int) -> Any:
            barrier.wait()
            return Picture(pixels(), str(index)), []

    assert [p.key for p in Meeting("meeting")] == [str(i) for i in range(2 * CHUNK)]


# -- rows of a dataset ----------------------------------------------------------------------------------------------


class Rows:
    """As `datasets.Dataset` looks from outside."""

    column_names = ("image", "text", "label")

    def __init__(self, count: int):
        self.count, self.asked = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.count:
            raise IndexError
        self.asked.append(index)
        return {"image": Image.fromarray(pixels(index)), "text": f"t{index}", "label": index % 3}


def test_rows_of_a_dataset() -> None:
    rows = Rows(7)
    source = open_source(rows)
    assert size_of(source) == 7
    assert same(list(source), [Picture(pixels(i), str(i), f"t{i}", i % 3) for i in range(7)])
    rows.asked.clear()
    assert [p.key for p in part(source, 2, 3)] == ["2", "5"] and rows.asked == [2, 5]
    streamed = open_source({"image": pixels(i), "caption": "c", "label": "cat"} for i in range(2))
    assert same(list(streamed), [Picture(pixels(i), str(i), "c", "cat") for i in range(2)])
    classes = list(open_source([(pixels(i), 2 * i) for i in range(2)]))
    assert same(classes, [Picture(pixels(i), str(i), None, 2 * i) for i in range(2)])
    grey = open_source(iter([{"image": Image.fromarray(pixels()).convert("L")}, [Image.fromarray(pixels(1))] * 2]))
    assert len(list(grey)) == 3 and grey.notes == {"greyscale converted to RGB": 1}
    refused(iter([{"photo": pixels()}]), "item 0 has photo but no image; rename the column")
    refused(iter([torch.zeros(3, 4, 4)]), "value_range")
    refused(iter([object()]), "picture 0 is of object")
