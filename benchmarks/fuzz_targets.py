"""What reads text and files of strangers, each as a function of bytes, with inputs that it understands.

A reader says UsageError to what it cannot use; anything else that it raises is a finding. What is packed or carries a
digest is packed here, around the bytes, so that they come to where they are read: "metadata" is the text inside a PNG,
"meta" that inside an .npz, "state" and "ranking" those inside safetensors. Targets of several files take them from one
input, in order, with `BREAK` between them.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, PngImagePlugin

BREAK = b"\n=====\n"
Reader = Callable[[bytes], Any]
Target = Callable[[], "tuple[Reader, Sequence[bytes]]"]  # imports what it needs: the reader, and inputs it understands


def _folder() -> Path:
    """In memory where the system has that: a disk takes a hundred times as long to write a file anew."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _text(read: Callable[[str], Any]) -> Reader:
    return lambda data: read(data.decode("utf-8", "replace"))


def _file(read: Callable[[Path], Any], name: str) -> Reader:
    """The bytes as a file of that name, alone in its folder."""
    path = _folder() / name

    def act(data: bytes) -> Any:
        path.write_bytes(data)
        return read(path)

    return act


def _files(folder: Path, names: Sequence[str], read: Callable[[Path], Any]) -> Reader:
    """Parts of the bytes as files of those names; a part that is missing is no file."""

    def act(data: bytes) -> Any:
        parts = data.split(BREAK)
        for number, name in enumerate(names):
            if number < len(parts):
                (folder / name).write_bytes(parts[number])
            else:
                (folder / name).unlink(missing_ok=True)
        return read(folder)

    return act


def _picture_bytes(kind: str = "PNG", texts: dict[str, str] | None = None) -> bytes:
    held, info = io.BytesIO(), PngImagePlugin.PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    shown = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(shown).save(held, format=kind, **({"pnginfo": info} if kind == "PNG" else {}))
    return held.getvalue()


def _dumped(value: Any) -> bytes:
    return yaml.safe_dump(value).encode()


def _lines(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


# -- lines -----------------------------------------------------------------------------------------------------------


def guidance() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.guidance.grammar import parse, spell
    from pilotage.guidance.registry import RULES

    def act(line: str) -> None:
        rule = parse(line)
        assert parse(spell(rule)) == rule, f"{line!r} is not read back"

    lines = [name.encode() for name in RULES]
    return _text(act), [*_understood(_text(act), lines), b"cfg:scale=3 + interval:low=0.3,high=5 + rescale:phi=0.7"]


def _understood(read: Reader, lines: Sequence[bytes]) -> list[bytes]:
    """Without those that need more than their name, such as a file."""
    from pilotage.errors import UsageError

    found = []
    for line in lines:
        with suppress(UsageError):
            read(line)
            found.append(line)
    return found


def samplers() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.samplers.grids import GRIDS, parse_grid
    from pilotage.samplers.registry import SAMPLERS, make_sampler

    def act(data: bytes) -> None:
        line = data[1:].decode("utf-8", "replace")
        (parse_grid if data[:1] == b"g" else make_sampler)(line)

    named = [f"s{name}".encode() for name in SAMPLERS] + [f"g{name}".encode() for name in GRIDS]
    return act, [*_understood(act, named), b"gkarras:p=5", b"srestart:repeats=2"]


def rewards() -> tuple[Reader, Sequence[bytes]]:
    """A line with a slash may name a file of this disk, and is left out."""
    from pilotage.finetune.rewards import open_rewards

    lines = (
        b"adherence",
        b"saturation",
        b"0.5 * saturation + 2 * brightness",
        b"jpeg",
        b"minimum of saturation + brightness",
    )
    return _text(lambda line: None if "/" in line else open_rewards(line)), lines


# -- settings --------------------------------------------------------------------------------------------------------


def settings() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.generation.comparison import CompareSpec
    from pilotage.generation.settings import presets, resolve

    spec = {"prompts": ["a star", "two"], "seeds": "0-3", "axes": {"guidance": ["none", "cfg:scale=3"]}, "steps": 2}
    shipped = [path.read_bytes() for path in presets().values()]
    return _file(lambda path: resolve(CompareSpec, None, path), "x.yaml"), [_dumped(spec), *shipped]


def training() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.finetune.spec import FinetuneSpec
    from pilotage.generation.settings import presets, resolve

    shipped = [path.read_bytes() for path in presets("finetune").values()]
    return _file(lambda path: resolve(FinetuneSpec, None, path), "x.yaml"), shipped


def prompts() -> tuple[Reader, Sequence[bytes]]:
    """The first byte says whether it is a table or a list."""
    from pilotage.generation import RunSpec
    from pilotage.generation.prompts import read_prompts

    folder = _folder()

    def act(data: bytes) -> None:
        path = folder / ("x.csv" if data[:1] == b"c" else "x.txt")
        path.write_bytes(data[1:])
        RunSpec(**read_prompts(path)).pictures()

    return act, [b"ta red star\ntwo rings\n", b'cprompt,seed\na star,3\n"two, rings",4\n', b"cprompt\na star\n"]


# -- run folders -----------------------------------------------------------------------------------------------------

TRAINED = {"update": 3, "seconds": 2.0, "pictures": 8, "reward": 0.5, "held_out": {"reward": 0.1}, "notices": ["low"]}


def run() -> tuple[Reader, Sequence[bytes]]:
    """What `status`, the same command again, and the page of a comparison read of a folder of pictures."""
    from pilotage.generation import RunSpec
    from pilotage.generation.folder import Finished, as_begun, look_at, refuse_other_run
    from pilotage.generation.manifest import gather
    from pilotage.generation.run_source import RunSource
    from pilotage.generation.status import status_of

    spec, folder, picture = RunSpec(prompts=["a star"], seeds="0-1", memory="auto"), _folder(), _picture_bytes()
    (folder / "000000.png").write_bytes(picture)

    def act(folder: Path) -> None:
        found = status_of(folder)
        assert found.line().isprintable() and json.dumps(found.plain())
        RunSource.read_from(folder / "run.yaml")
        items = look_at(folder, 2).items
        finished = Finished(folder, spec, items)
        assert finished.seconds >= 0 and all(count >= 0 for count in finished.evaluations.values())
        assert all(file.parent == folder and file.is_file() for file in finished.files)
        gather(folder, items)
        refuse_other_run(folder, as_begun(folder, spec))

    item = {"index": 0, "file": "000000.png", "seed": 0, "prompt": "a star", "bytes": len(picture), "seconds": 0.5,
            "changed": 1, "sha256": hashlib.sha256(picture).hexdigest(), "evaluations": {"cond": 25.0}}  # fmt: skip
    log = [{"event": e, "time": "", "seconds": s, "finished": n, "of": 2, "processes": 1, "note": "x", "why": "y"}
           for e, s, n in (("begin", 0.0, 0), ("progress", 9.5, 1), ("failed", 10.0, 1))]  # fmt: skip
    head = _dumped({"spec": spec.plain(), "revision": "x", "inputs": {}, "versions": {}})
    lock = _lines({"pid": 2**22 + 1, "host": "elsewhere"})
    reader = _files(folder, ("run.yaml", "manifest.jsonl", "log.jsonl", "run.lock"), act)
    return reader, [BREAK.join((head, _lines(item), _lines(*log), lock)), BREAK.join((head, b"", _lines(log[0])))]


def log() -> tuple[Reader, Sequence[bytes]]:
    """What `status`, the same command again, and the page read of a folder of a training."""
    from pilotage.finetune.spec import FinetuneSpec
    from pilotage.generation.status import status_of
    from pilotage.training.page import write_page
    from pilotage.training.run_folder import cut_log, read_log, refuse_other_run

    spec = FinetuneSpec(prompts=["a star"], reward="saturation", updates=4)

    def act(folder: Path) -> None:
        found = status_of(folder)
        assert found.line().isprintable() and json.dumps(found.plain())
        write_page(folder)
        (folder / "index.html").unlink()
        refuse_other_run(folder, spec)
        cut_log(folder, 2)
        assert all(line["update"] <= 2 for line in read_log(folder))

    head = _dumped({"kind": "finetune", "spec": spec.plain(), "versions": {}})
    lines = _lines(*({**TRAINED, "update": update, "reward": 0.1 * update} for update in range(4)))
    return _files(_folder(), ("run.yaml", "log.jsonl"), act), [BREAK.join((head, lines))]


def student() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.generation import RunSpec
    from pilotage.generation.recommended import base_of, recommended

    def act(folder: Path) -> None:
        base_of(str(folder))
        recommended(str(folder))
        RunSpec(prompts=["a star"], model=str(folder))

    said = {"guidance": "none", "sampler": "stock", "grid": None, "steps": 1, "call": {"eta": 0}}
    seeds = [_lines({"base": "embedded", "settings": said}), _lines({"base": None, "settings": {"steps": 4}})]
    return _files(_folder(), ("pilotage.json",), act), seeds


def report() -> tuple[Reader, Sequence[bytes]]:
    """Read, printed, written again, and shown, alone and beside another."""
    from rich.console import Console

    from pilotage.evaluation.report_page import render
    from pilotage.evaluation.results import Report, Result

    parts = [Result(f"adherence{part}", 0.5, (0.4, 0.6), "bootstrap", 0.1, "chance", 0.9, True, "p", 8, 9,
                    {"x": [1.0, 2.0]}, ("few",), {"extractor": "e"}) for part in ("", "/colour")]  # fmt: skip
    facts = {"real": {"name": "a", "pictures": 8}, "generated": {"name": "b"}}
    other = Report((*parts, Result("coverage", 0.25)), {"fid": "few"}, ("w",), facts, {"seconds": 1.5})

    def act(path: Path) -> None:
        found = Report.read(path)
        Console(file=io.StringIO(), width=150).print(found.table())
        found.to_json()
        assert "<script" not in render([found]) + render({"one": found, "other": other})

    return _file(act, "x.json"), [other.to_json().encode()]


# -- pictures --------------------------------------------------------------------------------------------------------


def _record() -> dict[str, Any]:
    from pilotage.generation import RunSpec

    spec = RunSpec(prompts=["a star"], seeds="3", steps=2, threads=1).plain()
    batch = {"pictures": 1, "rows_per_call": 2, "evaluations": {"cond": 2}}
    told = {"revision": "", "inputs": {}, "versions": {"torch": "2"}, "threads": 1, "device": "cpu", "hardware": ""}
    return {"format": 1, "spec": spec, "index": 0, "prompt": "a star", "seed": 3, "evaluations": {"cond": 2.0},
            "batch": batch, "run": told}  # fmt: skip


def png() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.generation.metadata import KEY, read_png

    made = _picture_bytes("PNG", {KEY: json.dumps(_record())})
    return _file(lambda path: read_png(path, trust=False), "x.png"), [made]


def metadata() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.generation.metadata import KEY, read_png

    path = _folder() / "x.png"

    def act(data: bytes) -> None:
        path.write_bytes(_picture_bytes("PNG", {KEY: data.decode("utf-8", "replace")}))
        read_png(path, trust=False)

    return act, [json.dumps(_record()).encode()]


def picture() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.generation.call import read_picture

    kinds = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
    return _file(lambda path: read_picture(str(path)), "x.png"), [_picture_bytes(kind) for kind in kinds]


# -- sets of pictures, and what is known of them ---------------------------------------------------------------------


def archive() -> tuple[Reader, Sequence[bytes]]:
    """A zip or a tar by what it begins with."""
    import tarfile

    from pilotage.evaluation import open_source

    packed, rolled = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.png", _picture_bytes())
        file.writestr("captions.csv", "file,caption\na.png,a star\n")
    with tarfile.open(fileobj=rolled, mode="w") as tar:
        for name, content in (("a.png", _picture_bytes()), ("a.txt", b"a star"), ("a.json", b'{"caption": "x"}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    seeds = [packed.getvalue(), rolled.getvalue()]
    return _file(lambda path: list(open_source(path)), "x"), seeds


def beside() -> tuple[Reader, Sequence[bytes]]:
    """What lies beside pictures in a folder: manifest, captions, prompts, labels, and the captions of training data."""
    from pilotage.distill.data import _captions
    from pilotage.evaluation import open_source

    folder, names = _folder(), ("manifest.jsonl", "captions.csv", "prompts.txt", "dataset.json", "metadata.jsonl")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(_picture_bytes())

    def act(folder: Path) -> None:
        """An empty file is left out, so that what comes after it is read."""
        for name in names:
            if (folder / name).is_file() and not (folder / name).read_bytes():
                (folder / name).unlink()
        found = list(open_source(folder))
        assert all(picture.key in ("a.png", "b.png") for picture in found)
        if (folder / "metadata.jsonl").is_file():
            _captions(folder)

    manifest, captions = _lines({"file": "a.png"}, {"file": "b.png"}), b"file,caption\na.png,a star\n"
    labels = _lines({"labels": [["a.png", 3], ["b.png", [0, 1]]]})
    listed = _lines({"file_name": "a.png", "text": "a star"})
    return _files(folder, names, act), [BREAK.join((manifest, captions, b"", labels, listed)),
                                        BREAK.join((b"", b"", b"one\ntwo\n", b"", listed))]  # fmt: skip


def statistics() -> tuple[Reader, Sequence[bytes]]:
    from pilotage.evaluation.statistics import read_statistics

    held = io.BytesIO()
    np.savez(held, mu=np.zeros(3), sigma=np.eye(3))
    return _file(lambda path: read_statistics(path, assume="clean"), "x.npz"), [held.getvalue()]


def meta() -> tuple[Reader, Sequence[bytes]]:
    """What our own statistics say of themselves."""
    from pilotage.evaluation import reference
    from pilotage.evaluation.statistics import read_statistics, write_statistics

    path = _folder() / "x.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    write_statistics(reference(pictures, features="pixels"), path)
    with np.load(path) as opened:
        arrays = {name: opened[name] for name in opened.files}
    said = str(arrays.pop("meta"))

    def act(data: bytes) -> None:
        np.savez(path, **arrays, meta=np.array(data.decode("utf-8", "replace")))
        read_statistics(path)

    return act, [said.encode()]


def fits() -> tuple[Reader, Sequence[bytes]]:
    """Grids and linear coefficients, by the first byte."""
    from pilotage.guidance.modifiers.linear import LinearCoefficients
    from pilotage.samplers.fit_grid import FittedGrid

    folder = _folder()
    grid, linear = FittedGrid("embedded", "euler", "", (9.0, 1.0)), {"rhos": [9.0], "cond": [[1.0]], "null": [[]]}
    grid.save(folder / "x.json")

    def act(data: bytes) -> None:
        (folder / "x.json").write_bytes(data[1:])
        (FittedGrid if data[:1] == b"g" else LinearCoefficients).load(folder / "x.json")

    facts = {"model": "", "scheduler": "", "null_prompt": "", "scale": 7.5, "intercept": [0.0], "residual": [0.1]}
    return act, [b"g" + (folder / "x.json").read_bytes(), b"l" + _lines(linear | facts)]


# -- what was learnt -------------------------------------------------------------------------------------------------


def checkpoint() -> tuple[Reader, Sequence[bytes]]:
    import torch

    from pilotage.training.checkpoint import Damaged, read, write

    path = _folder() / "000001.safetensors"
    write(path, {"update": 1, "weights": [torch.arange(3.0)], "name": ("a", None)})

    def act(path: Path) -> None:
        try:
            read(path)
        except Damaged:
            return

    return _file(act, "000001.safetensors"), [path.read_bytes()]


def state() -> tuple[Reader, Sequence[bytes]]:
    """The plain part of a checkpoint, with the digest that fits it."""
    import torch
    from safetensors.torch import save_file

    from pilotage.training.checkpoint import Damaged, _digest, flattened, read

    path = _folder() / "000001.safetensors"
    plain, tensors = flattened({"update": 1, "weights": [torch.arange(3.0)], "name": ("a", None)}, "state")

    def act(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        head = json.dumps({"plain": text, "sha256": _digest(text, tensors)})
        save_file(tensors, path, metadata={"state": head})
        try:
            read(path)
        except Damaged:
            return

    return act, [json.dumps(plain).encode()]


def ranking() -> tuple[Reader, Sequence[bytes]]:
    """The plain part of the state of a ranking."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from pilotage.finetune.ranking.drawing import Drawing
    from pilotage.finetune.ranking.files import STATE, Ranking, Stop, Wish, read_state, write_state

    folder, latent, wish = _folder(), torch.zeros(1, 2, 2), Wish(Drawing("a star"))
    write_state(folder, wish, Ranking(wish.method.begin(latent), (Stop(latent, 0),), 1))
    with safe_open(folder / STATE, "pt") as file:
        said = file.metadata()["ranking"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def act(data: bytes) -> None:
        save_file(tensors, folder / STATE, metadata={"ranking": data.decode("utf-8", "replace")})
        read_state(folder, wish)

    return act, [said.encode()]


_ALL = (
    guidance, samplers, rewards, settings, training, prompts, run, log, student, report, png, metadata, picture,
    archive, beside, statistics, meta, fits, checkpoint, state, ranking,
)  # fmt: skip
TARGETS: dict[str, Target] = {target.__name__: target for target in _ALL}
