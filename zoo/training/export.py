"""Stage `export`: half-precision safetensors in the diffusers layout, with a hash of each file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..embedded import WEIGHTS
from . import autoencoder, common, denoiser, text

LIMIT = 20_000_000  # bytes altogether


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in state.items()}


def run(work: Path, **_: float) -> None:
    """Write all weights that exist so far; a stage that is not done yet contributes its latest checkpoint."""
    log, final = common.Log(work, "export"), work / "denoiser.safetensors"
    states, numbers = common.restore(final if final.exists() else work / "denoiser-latest.safetensors")
    weak = work / "weak.safetensors"
    weak_states, weak_numbers = common.restore(weak) if weak.exists() else (states, numbers)
    unet, unet_weak, encoder, vae = denoiser.build(), denoiser.build(), text.build_encoder(), autoencoder.build()
    unet.load_state_dict(states["unet"])
    encoder.load_state_dict(states["text"])
    unet_weak.load_state_dict(weak_states["unet"])
    vae.load_state_dict(common.restore(work / "vae.safetensors")[0]["model"])
    partial = WEIGHTS.with_name("weights-partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe = denoiser.pipeline(unet.half().eval(), encoder.half().eval(), vae.half().eval())
    pipe.scheduler = denoiser.shipped_scheduler()
    pipe.save_pretrained(partial)
    unet_weak.half().save_pretrained(partial / "unet_weak")
    for name in ("judge", "guide", "features"):
        if (work / f"{name}.safetensors").exists():
            state = common.restore(work / f"{name}.safetensors")[0]["model"]
            save_file(_half(state), partial / f"{name}.safetensors")
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    hashes = {p.relative_to(partial).as_posix(): common.sha256(p) for p in files}
    (partial / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    total = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    if total > LIMIT:
        raise SystemExit(f"the weights take {total} bytes, more than {LIMIT}; use smaller networks")
    old = WEIGHTS.with_name("weights-old")
    shutil.rmtree(old, ignore_errors=True)
    if WEIGHTS.exists():
        WEIGHTS.rename(old)
    partial.rename(WEIGHTS)
    shutil.rmtree(old, ignore_errors=True)
    log(event="end", final=final.exists(), step=numbers["step"], weak_step=weak_numbers["step"], bytes=total)
    if final.exists():
        summarise(work)


def summarise(work: Path) -> None:
    """Keep the log's beginning and end of each stage and at most 40 records of training between them."""
    records = [json.loads(line) for line in (work / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept: list[dict[str, object]] = []
    for stage in dict.fromkeys(r["stage"] for r in records):
        own = [r for r in records if r["stage"] == stage]
        training = [r for r in own if r["event"] == "train"]
        every = max(1, len(training) // 40)
        skipped = {id(r) for i, r in enumerate(training) if i % every}
        kept += [r for r in own if id(r) not in skipped]
    text_lines = "".join(json.dumps(r) + "\n" for r in kept)
    (Path(__file__).parent / "log.jsonl").write_text(text_lines, encoding="utf-8")
