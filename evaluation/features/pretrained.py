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
    """Without the progress bars and advice of transformers and diffusers."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
