"""A tiny pipeline in a folder, and the command line in this process or in one of its own."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def tiny_folder() -> str:
    """A saved tiny StableDiffusionPipeline, and beside it one whose UNet has other weights."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-pipeline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny.stable_diffusion().save_pretrained(folder / "model")
    tiny.unet(seed=3).save_pretrained(folder / "weak")
    return str(folder / "model")


def tiny_settings(**changes: Any) -> dict[str, Any]:
    """A run of six pictures in two batches."""
    base: dict[str, Any] = dict(
        model=tiny_folder(), prompts=["a red star", "two blue rings"], seeds="0-2", steps=3, guidance="cfg:scale=5",
        width=16, height=16, batch_size=4, threads=1,
    )  # fmt: skip
    return base | changes


def tiny_spec(**changes: Any) -> Any:
    from pilotage.generation import RunSpec

    return RunSpec(**tiny_settings(**changes))


def pilotage(*arguments: str) -> int:
    """The command line in this process: its exit code."""
    from pilotage.cli.main import run

    return run([str(a) for a in arguments])


def tiny_flags(output: Path, *more: str) -> list[str]:
    """`generate` with the tiny model."""
    flags = ["--model", tiny_folder(), "--steps", "3", "--width", "16", "--height", "16", "--threads", "1"]
    return ["generate", "a red star", "two blue rings", "--seeds", "0-2", *flags, "-o", str(output), *more]


def process(code: str, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """A Python program beside this one that can import the package and the test tools."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_NUM_THREADS": "1"}
    environment["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch's threads do not survive a fork, and some of these fork
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **settings)
