"""Checkpoints of transformers, from a folder or a hub id."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import UsageError


def load_pretrained(kind: Any, name: str, model_type: str, allow_download: bool, **settings: Any) -> Any:
    """A model of the class `kind`, in eval mode, without gradients. name: a folder, or a hub id owner/name.

    A hub id comes from the local cache unless `allow_download`; no code of the model is run. Errors: neither folder nor
    id, another type of model, weights that are missing (transformers itself would draw random ones).
    """
    from transformers import AutoConfig

    where = source_of(name, allow_download)
    with quiet(), refused(name, allow_download):
        found = AutoConfig.from_pretrained(**where).model_type
    if found != model_type:
        raise UsageError(f"{name} is a {found} model, not {model_type}; give another")
    with quiet(), refused(name, allow_download):
        model, report = kind.from_pretrained(**where, output_loading_info=True, **settings)
    if report["missing_keys"]:
        first, count = min(report["missing_keys"]), len(report["missing_keys"])
        raise UsageError(f"{name} lacks {count} weights, such as {first}; give the folder of a whole model")
    return model.eval().requires_grad_(False)


def source_of(name: str, allow_download: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` that say where from."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"{name} is no model folder: it has no config.json; save one with save_pretrained")
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    owner, slash, rest = name.partition("/")
    if folder.exists() or not (slash and owner.strip(".~") and rest and "/" not in rest):
        raise UsageError(f"there is no model {name!r}: give a folder with a config.json, or a hub id owner/name")
    return {"pretrained_model_name_or_path": name, "local_files_only": not allow_download}


@contextmanager
def refused(name: str, allow_download: bool) -> Iterator[None]:
    """What transformers raises, in one line with the fix."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        if Path(name).expanduser().is_dir():
            raise UsageError(f"cannot load the model in {name}: {said}") from None
        if not allow_download:
            raise UsageError(
                f"the model {name} is not in the local cache; add allow_download=true to fetch it, or give a folder"
            ) from None
        raise UsageError(f"cannot download {name}: check the name and the network ({said})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
